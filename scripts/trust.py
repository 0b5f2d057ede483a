"""Compare methods on a folder of photos: which of their maps can be believed, with a torchvision network.

python scripts/trust.py photos/ squeezenet1_0 squeezenet1_0.pth [METHOD ...]
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

photos, name, weights, *methods = arguments("FOLDER MODEL WEIGHTS [METHOD ...]")
net = tvc.load_model(name, weights)
result = tvc.trust(net, photos, methods=methods or None, out="trust", progress=sys.stderr.isatty())

print(result)
print("open trust/index.html")
