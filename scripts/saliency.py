"""Draw which pixels a torchvision network's answer depends on.

python scripts/saliency.py elephant.jpg squeezenet1_0 squeezenet1_0.pth [guided]
"""

import sys

import torchviz_cnn as tvc

photo, name, weights, *rule = sys.argv[1:]
net = tvc.load_model(name, weights)
image = tvc.read_image(photo)
found = tvc.saliency(net.model, net.preprocess(image)[None], relu="guided" if rule else "standard")

print(found.headline(categories=net.categories))
found.image(image).save("saliency.png")
found.overlay(image).save("saliency_overlay.png")
found.plot(image, categories=net.categories).save("saliency_panel.png")
