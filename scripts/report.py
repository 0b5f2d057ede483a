"""Make one offline page that shows a network, with a torchvision network.

python scripts/report.py squeezenet1_0 squeezenet1_0.pth elephant.jpg [PHOTO ...]
"""

import sys

import torchviz_cnn as tvc

if len(sys.argv) < 3:
    sys.exit(__doc__)
name, weights, *photos = sys.argv[1:]
page = tvc.report(tvc.load_model(name, weights), photos, "report/index.html", progress=sys.stderr.isatty())

print(f"open {page}: {len(page.layers)} layers, {page.patterns} filter patterns")
