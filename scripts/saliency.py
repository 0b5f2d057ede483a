"""Draw which pixels a torchvision network's score depends on.

python scripts/saliency.py elephant.jpg squeezenet1_0 squeezenet1_0.pth [standard|guided|deconvnet]
"""

from typing import Any

from usage import arguments

import torchviz_cnn as tvc

photo, name, weights, *rest = arguments("PHOTO MODEL WEIGHTS [standard|guided|deconvnet]")
rule: Any = rest[0] if rest else "standard"
pixels = tvc.saliency(tvc.load_model(name, weights), photo, relu=rule).clipped()

print(pixels.headline())
pixels.image().save("saliency.png")
pixels.overlay().save("saliency_overlay.png")
pixels.plot().save("saliency_panel.png")
