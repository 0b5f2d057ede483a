"""Draw what a torchvision network takes for a class, from several kinds of noise.

python scripts/maximize.py vgg16 vgg16-397923af.pth "African elephant"
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

name, weights, target = arguments("MODEL WEIGHTS CLASS")
goal = tvc.objectives.class_score(target) - 0.1 * tvc.objectives.total_variation()
images = tvc.maximize(tvc.load_model(name, weights), goal, images=4, quality="clean", progress=sys.stderr.isatty())

print(f"{images.objective}: {images.scores[:, 0].tolist()} became {images.scores[:, -1].tolist()}")
images.grid(columns=4).save("maximize.png")
