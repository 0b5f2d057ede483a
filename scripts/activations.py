"""Draw what every convolution and pooling layer of a torchvision network gives for a photo.

python scripts/activations.py elephant.jpg vgg16 vgg16-397923af.pth
"""

import sys

import torchviz_cnn as tvc

photo, name, weights = sys.argv[1:4]
net = tvc.load_model(name, weights)
x = net.preprocess(tvc.read_image(photo))[None]
activations = tvc.capture(net.model, x)

for layer in activations:
    if activations[layer].ndim == 4:
        activations.plot(layer).save(f"activations_{layer}.png")
        print(f"{layer}: {float(activations.sparsity(layer)):.0%} of the channels are zero everywhere")
