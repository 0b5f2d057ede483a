"""Draw what every convolution and pooling layer of a torchvision network gives for a photo.

python scripts/activations.py elephant.jpg vgg16 vgg16-397923af.pth
"""

from usage import arguments

import torchviz_cnn as tvc

photo, name, weights = arguments("PHOTO MODEL WEIGHTS")
activations = tvc.capture(tvc.load_model(name, weights), photo)

for layer, maps in activations.items():
    if maps.ndim == 4:
        activations.plot(layer).save(f"activations_{layer}.png")
        print(f"{layer}: {float(activations.sparsity(layer)):.0%} of the channels are zero everywhere")
