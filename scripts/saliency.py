"""Draw which pixels a torchvision network's answer depends on.

python scripts/saliency.py elephant.jpg squeezenet1_0 squeezenet1_0.pth [standard|guided|deconvnet]
"""

import sys
from typing import Any

import torchviz_cnn as tvc

photo, name, weights, *rest = sys.argv[1:]
rule: Any = rest[0] if rest else "standard"
net = tvc.load_model(name, weights)
image = tvc.read_image(photo)
found = tvc.saliency(net.model, net.preprocess(image)[None], relu=rule).clipped()

print(found.headline(categories=net.categories))
found.image(image).save("saliency.png")
found.overlay(image).save("saliency_overlay.png")
found.plot(image, categories=net.categories).save("saliency_panel.png")
