"""Make one offline page that shows a network, with a torchvision network.

python scripts/report.py squeezenet1_0 squeezenet1_0.pth elephant.jpg [PHOTO ...]
"""

import sys

import torchviz_cnn as tvc

name, weights, *photos = sys.argv[1:]
net = tvc.load_model(name, weights)
page = tvc.report(net, photos, "report/index.html", progress=True)

print(f"open {page}: {len(page.layers)} layers, {page.patterns} filter patterns")
