"""Project the strongest units of a torchvision network's layers down to the pixels that drove them.

python scripts/deconvnet.py elephant.jpg squeezenet1_0 squeezenet1_0.pth features.0 features.5 features.12
"""

from usage import arguments

import torchviz_cnn as tvc

photo, name, weights, *layers = arguments("PHOTO MODEL WEIGHTS LAYER ...")
units = tvc.deconvnet(tvc.load_model(name, weights), photo, layers, k=5)

print(units)
units.plot().save("deconvnet.png")
