"""Draw what every convolution and pooling layer of a torchvision network gives for a photo.

python scripts/activations.py elephant.jpg vgg16 vgg16-397923af.pth
"""

import sys

import torchviz_cnn as tvc

if len(sys.argv) != 4:
    sys.exit(__doc__)
photo, name, weights = sys.argv[1:]
activations = tvc.capture(tvc.load_model(name, weights), photo)

for layer, maps in activations.items():
    if maps.ndim == 4:
        activations.plot(layer).save(f"activations_{layer}.png")
        print(f"{layer}: {float(activations.sparsity(layer)):.0%} of the channels are zero everywhere")
