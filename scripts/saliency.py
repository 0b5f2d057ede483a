"""Draw which pixels a torchvision network's score depends on.

python scripts/saliency.py elephant.jpg squeezenet1_0 squeezenet1_0.pth [standard|guided|deconvnet]
"""

import sys
from typing import Any

import torchviz_cnn as tvc

if len(sys.argv) < 4:
    sys.exit(__doc__)
photo, name, weights, *rest = sys.argv[1:]
rule: Any = rest[0] if rest else "standard"
pixels = tvc.saliency(tvc.load_model(name, weights), photo, relu=rule).clipped()

print(pixels.headline())
pixels.image().save("saliency.png")
pixels.overlay().save("saliency_overlay.png")
pixels.plot().save("saliency_panel.png")
