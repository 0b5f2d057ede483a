"""Project the strongest units of a torchvision network's layers down to the pixels that drove them.

python scripts/deconvnet.py elephant.jpg squeezenet1_0 squeezenet1_0.pth features.0 features.5 features.12
"""

import sys

import torchviz_cnn as tvc

photo, name, weights, *layers = sys.argv[1:]
net = tvc.load_model(name, weights)
image = tvc.read_image(photo)
found = tvc.deconvnet(net.model, net.preprocess(image)[None], layers, k=5)

print(found)
found.plot(image).save("deconvnet.png")
