"""Make one offline page that shows a network, with a torchvision network.

python scripts/report.py squeezenet1_0 squeezenet1_0.pth elephant.jpg [PHOTO ...]
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

name, weights, *photos = arguments("MODEL WEIGHTS [PHOTO ...]")
page = tvc.report(tvc.load_model(name, weights), photos, "report/index.html", progress=sys.stderr.isatty())

print(f"open {page}; layers: {len(page.layers)}. {page.about_patterns}")
