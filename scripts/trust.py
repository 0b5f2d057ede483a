"""Compare methods on a folder of photos: which of their maps can be believed, with a torchvision network.

python scripts/trust.py photos/ squeezenet1_0 squeezenet1_0.pth [METHOD ...]
"""

import sys

import torchviz_cnn as tvc

if len(sys.argv) < 4:
    sys.exit(__doc__)
photos, name, weights, *methods = sys.argv[1:]
net = tvc.load_model(name, weights)
result = tvc.trust(net, photos, methods=methods or None, out="trust", progress=sys.stderr.isatty())

print(result)
print("open trust/index.html")
