"""Slide a grey square over a photo and draw where the score of its class falls, with a torchvision network.

python scripts/occlusion.py elephant.jpg squeezenet1_0 squeezenet1_0.pth
"""

import sys

import torchviz_cnn as tvc

if len(sys.argv) != 4:
    sys.exit(__doc__)
photo, name, weights = sys.argv[1:]
net = tvc.load_model(name, weights)
drop = tvc.occlusion(net, photo, patch=40, stride=12, score="probability", progress=sys.stderr.isatty())

print(drop.headline())
drop.plot().save("occlusion.png")
