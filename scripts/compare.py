"""Show what drives the layers of AlexNet and of ZFNet on one photo, and how good their first filters are.

python scripts/compare.py elephant.jpg alexnet-owt-7be5be79.pth [zfnet.pth]      ("random" for no weights)
"""

from usage import arguments

import torchviz_cnn as tvc

photo, *weights = arguments("PHOTO ALEXNET_WEIGHTS [ZFNET_WEIGHTS]")
files = dict(zip(("alexnet", "zfnet"), (*weights, "random"), strict=False))
comparison = tvc.compare({name: tvc.load_model(name, file) for name, file in files.items()}, photo=photo)

print(comparison)
comparison.plot().save("compare.png")
