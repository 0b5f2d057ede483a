"""For every channel of a torchvision network's layers, what drives it most in a folder of photos: figure 2 of ZFNet.

python scripts/top_activations.py photos/ squeezenet1_0 squeezenet1_0.pth features.3 features.7 features.12
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

photos, name, weights, *layers = arguments("FOLDER MODEL WEIGHTS LAYER ...")
net = tvc.load_model(name, weights)
top = tvc.top_activations(net, photos, layers, out="top", progress=sys.stderr.isatty())

print(top)
top.plot().save("statistics.png")
for layer in layers:
    top.page(layer).save(f"{layer}.png")
