"""Draw what the filters of a torchvision network want to see: grids of 8 x 8, one for each block or layer named.

python scripts/filter_patterns.py vgg16 vgg16-397923af.pth [features.0 features.5 ...]
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

name, weights, *layers = arguments("MODEL WEIGHTS [LAYER ...]")
net = tvc.load_model(name, weights)
atlas = tvc.filter_atlas(net, f"{name}_filters", layers or None, name=name, progress=sys.stderr.isatty())

for layer in atlas.layers:
    patterns = atlas.patterns(layer)
    patterns.grid().save(f"{name}_{layer}.png")
    raised = int(patterns.raised.sum())
    print(f"{layer}: {raised} of {len(patterns.values)} raised, dead: {patterns.dead or 'none'}")
