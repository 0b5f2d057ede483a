"""Draw what becomes of the maps of a photo as a network's weights become random, from the output down.

python scripts/randomization.py elephant.jpg squeezenet1_0 squeezenet1_0.pth randomization.png
"""

from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from usage import arguments

import torchviz_cnn as tvc
from torchviz_cnn.media.figures import panel

METHODS = {
    "Grad-CAM": tvc.grad_cam,
    "competitive CAM": tvc.competitive_cam,
    "gradient": tvc.saliency,
    "SmoothGrad": tvc.smooth_grad,
    "guided backpropagation": partial(tvc.saliency, relu="guided"),
    "guided Grad-CAM": tvc.guided_grad_cam,
}


def draw(net: tvc.Network, photo: Image.Image, steps: int = 5) -> Image.Image:
    """A row for each method: its map of the trained network, and with random weights at a few depths."""
    rows = []
    for name, method in METHODS.items():
        pictures: list[Image.Image] = []

        def kept_map(*args: Any, method: Any = method, pictures: Any = pictures, **options: Any) -> Any:
            maps = method(*args, **options)
            pictures.append(maps.clipped().image() if hasattr(maps, "clipped") else maps.image())
            return maps

        measured = tvc.metrics.randomization(net, [photo], kept_map, steps=steps)
        assert measured.curves is not None
        depths = zip(measured.curves.ticks, measured.details["structure"][0].tolist(), strict=True)
        titles = [f"random from {layer}: {f'{kept:.2f} kept' if kept == kept else 'no map'}" for layer, kept in depths]
        rows.append(panel(pictures, [f"{name}, trained network", *titles]))
        print(f"{name:24} keeps {float(measured.details['structure'].nanmean()):.2f} of its structure")
    return Image.fromarray(np.concatenate([np.asarray(row) for row in rows]))


if __name__ == "__main__":
    photo, name, weights, out = arguments("PHOTO MODEL WEIGHTS PICTURE")
    draw(tvc.load_model(name, weights), tvc.read_image(photo)).save(out)
