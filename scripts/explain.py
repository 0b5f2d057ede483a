"""Draw heatmaps of several layers and methods over a photo, from one forward pass, and the layers joined in one.

python scripts/explain.py elephant.jpg vgg16 vgg16-397923af.pth features.22 features.29
"""

from usage import arguments

import torchviz_cnn as tvc

photo, name, weights, *layers = arguments("PHOTO MODEL WEIGHTS LAYER ...")
maps = tvc.explain(tvc.load_model(name, weights), photo, layers=layers, methods=["grad_cam", "hires_cam", "layer_cam"])
maps.plot().save("explain.png")

joined = tvc.join_heatmaps([maps["layer_cam", layer] for layer in layers])
print(f"{joined.headline()}; {joined.method} at {joined.layer}")
joined.overlay().save("explain_joined.png")
