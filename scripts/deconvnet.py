"""Project the strongest units of a torchvision network's layers down to the pixels that drove them.

python scripts/deconvnet.py elephant.jpg squeezenet1_0 squeezenet1_0.pth features.0 features.5 features.12
"""

import sys

import torchviz_cnn as tvc

if len(sys.argv) < 5:
    sys.exit(__doc__)
photo, name, weights, *layers = sys.argv[1:]
units = tvc.deconvnet(tvc.load_model(name, weights), photo, layers, k=5)

print(units)
units.plot().save("deconvnet.png")
