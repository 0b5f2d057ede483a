"""Slide a grey square over a photo and draw where the score of its class falls, with a torchvision network.

python scripts/occlusion.py elephant.jpg squeezenet1_0 squeezenet1_0.pth
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

photo, name, weights = arguments("PHOTO MODEL WEIGHTS")
net = tvc.load_model(name, weights)
drop = tvc.occlusion(net, photo, patch=40, stride=12, score="probability", progress=sys.stderr.isatty())

print(drop.headline())
drop.plot().save("occlusion.png")
