"""Draw what a torchvision network takes for a class, from several kinds of noise.

python scripts/maximize.py vgg16 vgg16-397923af.pth "African elephant"
"""

import sys

import torchviz_cnn as tvc

if len(sys.argv) != 4:
    sys.exit(__doc__)
name, weights, target = sys.argv[1:]
goal = tvc.objectives.class_score(target) - 0.1 * tvc.objectives.total_variation()
images = tvc.maximize(tvc.load_model(name, weights), goal, images=4, quality="clean", progress=sys.stderr.isatty())

print(f"{images.objective}: {images.scores[:, 0].tolist()} became {images.scores[:, -1].tolist()}")
images.grid(columns=4).save("maximize.png")
