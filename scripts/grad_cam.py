"""Lay a class heatmap over a photo, with a torchvision network.

python scripts/grad_cam.py elephant.jpg vgg16 vgg16-397923af.pth features.29
"""

import sys

import torchviz_cnn as tvc

photo, name, weights, *layer = sys.argv[1:]
net = tvc.load_model(name, weights)
image = tvc.read_image(photo)
heatmap = tvc.grad_cam(net.model, net.preprocess(image)[None], *layer)

print(f"{heatmap.headline(categories=net.categories)}; {heatmap.method} at {heatmap.layer}")
heatmap.overlay(image, alpha=0.4).save("grad_cam_overlay.png")
heatmap.plot(image, categories=net.categories).save("grad_cam.png")
