"""Show what drives the layers of torchvision's AlexNet and of ZFNet on one photo, and how good their first filters are.

python scripts/compare.py elephant.jpg alexnet-owt-7be5be79.pth [zfnet.pth]      ("random" for no weights)
"""

import sys

import torchviz_cnn as tvc

photo, *weights = sys.argv[1:]
image = tvc.read_image(photo)
names = dict(zip(("alexnet", "zfnet"), (*weights, "random"), strict=False))
nets = {name: tvc.load_model(name, file) for name, file in names.items()}
found = tvc.compare({name: (net.model, net.preprocess(image)[None]) for name, net in nets.items()})

print(found)
found.plot(image).save("compare.png")
