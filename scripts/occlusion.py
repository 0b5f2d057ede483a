"""Slide a grey square over a photo and draw where the score of its class falls, with a torchvision network.

python scripts/occlusion.py elephant.jpg squeezenet1_0 squeezenet1_0.pth
"""

import sys

import torchviz_cnn as tvc

photo, name, weights = sys.argv[1:]
net = tvc.load_model(name, weights)
image = tvc.read_image(photo)
found = tvc.occlusion(
    net.model, net.preprocess(image)[None], patch=40, stride=12, score="probability", progress=sys.stderr.isatty()
)

print(found.headline(categories=net.categories))
found.plot(image, categories=net.categories).save("occlusion.png")
