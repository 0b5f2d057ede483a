"""Lay a class heatmap over a photo, with a torchvision network.

python scripts/grad_cam.py elephant.jpg vgg16 vgg16-397923af.pth [features.29]
"""

from usage import arguments

import torchviz_cnn as tvc

photo, name, weights, *layer = arguments("PHOTO MODEL WEIGHTS [LAYER]")
heat = tvc.grad_cam(tvc.load_model(name, weights), photo, *layer)

print(f"{heat.headline()}; {heat.method} at {heat.layer}")
heat.overlay().save("grad_cam_overlay.png")
heat.plot().save("grad_cam.png")
