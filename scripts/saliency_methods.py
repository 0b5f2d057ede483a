"""Draw every method that says which pixels matter side by side, for one photo and a network.

python scripts/saliency_methods.py elephant.jpg squeezenet1_0 squeezenet1_0.pth methods.png
"""

import numpy as np
from PIL import Image
from usage import arguments

import torchviz_cnn as tvc
from torchviz_cnn.media.figures import panel


def draw(net: tvc.Network, photo: Image.Image, patch: int = 40) -> Image.Image:
    """All methods for a photo's top class, in two rows."""
    x = net.preprocess(photo)[None]  # a result that knows no photo draws the map alone
    maps = {
        "gradient": tvc.saliency(net, x),
        "input x gradient": tvc.input_x_gradient(net, x),
        "SmoothGrad": tvc.smooth_grad(net, x),
        "VarGrad": tvc.smooth_grad(net, x, statistic="variance"),
        "integrated gradients": tvc.integrated_gradients(net, x),
        "guided backpropagation": tvc.saliency(net, x, relu="guided"),
        "deconvnet of the class": tvc.saliency(net, x, relu="deconvnet"),
        "guided Grad-CAM": tvc.guided_grad_cam(net, x),
    }
    hidden = tvc.occlusion(net, x, patch=patch, stride=8, score="probability")
    pictures = [net.preprocess.prepare(photo), *(one.clipped().image() for one in maps.values()), hidden.image()]
    titles = ["what the network sees", *maps, "occlusion"]
    rows = [panel(pictures[i : i + 5], titles[i : i + 5]) for i in (0, 5)]
    return Image.fromarray(np.concatenate([np.asarray(row) for row in rows]))


if __name__ == "__main__":
    photo, name, weights, out = arguments("PHOTO MODEL WEIGHTS PICTURE")
    draw(tvc.load_model(name, weights), tvc.read_image(photo)).save(out)
