"""Make the pictures of README and docs from what the code computes: the bundled network on a CC0 photo.

python scripts/figures.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from saliency_methods import draw
from skimage import data

import torchviz_cnn as tvc
from torchviz_cnn import render


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    net = tvc.load_model("cats_and_dogs")
    photo = Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]
    x = net.preprocess(photo)[None]

    heat = tvc.grad_cam(net.model, x, target=net.class_index("cat"))
    save(heat.plot(photo, truth="cat", categories=net.categories), folder / "grad_cam.png", 1400)

    acts = tvc.capture(net.model, x)
    save(acts.plot("conv3", channels=range(48)), folder / "activations.png", 1200)
    layers = [name for name in acts if acts[name].shape[2] > 1]
    rows = [strip(acts, name) for name in layers]
    save(stack(rows), folder / "depth.png", 1000)
    save(draw(net, photo, patch=32), folder / "saliency_methods.png", 1400)
    found = tvc.deconvnet(net.model, x, [f"relu{i}" for i in (1, 2, 3, 4, 5)], top=4)
    save(found.plot(photo), folder / "deconvnet.png", 1200)


def strip(acts: tvc.Activations, layer: str, side: int = 96) -> Image.Image:
    """The first 12 channels of a layer in a row, all tiles of one size."""
    tiles = [Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST) for tile in acts.tiles(layer)[:12]]
    row = render.tile_grid(np.stack([np.asarray(tile) for tile in tiles]), columns=12, margin=2)
    return Image.fromarray(render.colormap(row, "viridis"))


def stack(rows: list[Image.Image]) -> Image.Image:
    picture = Image.new("RGB", (rows[0].width, sum(row.height + 2 for row in rows) - 2))
    for i, row in enumerate(rows):
        picture.paste(row, (0, i * (row.height + 2)))
    return picture


def save(picture: Image.Image, path: Path, width: int) -> None:
    """As a palette PNG, at most `width` pixels wide: small enough for a repository."""
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    palette = picture.quantize(256)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "figures")
