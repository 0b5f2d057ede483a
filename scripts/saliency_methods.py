"""Draw every method that says which pixels matter side by side, for one photo and a network.

python scripts/saliency_methods.py elephant.jpg squeezenet1_0 squeezenet1_0.pth methods.png
"""

import sys

import numpy as np
from PIL import Image

import torchviz_cnn as tvc
from torchviz_cnn.media.render import panel


def draw(net: tvc.Network, photo: Image.Image, patch: int = 40) -> Image.Image:
    """All methods for a photo's top class, in two rows."""
    model, x = net.model, net.preprocess(photo)[None]
    found = {
        "gradient": tvc.saliency(model, x),
        "input x gradient": tvc.input_x_gradient(model, x),
        "SmoothGrad": tvc.smooth_grad(model, x),
        "VarGrad": tvc.smooth_grad(model, x, statistic="variance"),
        "integrated gradients": tvc.integrated_gradients(model, x),
        "guided backpropagation": tvc.saliency(model, x, relu="guided"),
        "deconvnet of the class": tvc.saliency(model, x, relu="deconvnet"),
        "guided Grad-CAM": tvc.guided_grad_cam(model, x),
    }
    hidden = tvc.occlusion(model, x, patch=patch, stride=8, score="probability")
    pictures = [net.preprocess.prepare(photo), *(one.clipped().image() for one in found.values()), hidden.image()]
    titles = ["what the network sees", *found, "occlusion"]
    rows = [panel(pictures[i : i + 5], titles[i : i + 5]) for i in (0, 5)]
    return Image.fromarray(np.concatenate([np.asarray(row) for row in rows]))


if __name__ == "__main__":
    photo, name, weights, out = sys.argv[1:]
    draw(tvc.load_model(name, weights), tvc.read_image(photo)).save(out)
