"""Make the pictures of README and docs from what the code computes: the bundled network on a CC0 photo.

python scripts/figures.py [FOLDER]
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from saliency_methods import draw
from skimage import data

import torchviz_cnn as tvc
from torchviz_cnn.ascent.recipes import Quality
from torchviz_cnn.cli.commands import demo
from torchviz_cnn.media import render


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    net = tvc.load_model("cats_and_dogs")
    photo = Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]

    heat = tvc.grad_cam(net, photo, target="cat")
    save(heat.plot(truth="cat"), folder / "grad_cam.png", 1400)

    acts = tvc.capture(net, photo)
    save(acts.plot("conv3", channels=range(48)), folder / "activations.png", 1200)
    layers = [name for name in acts if acts[name].shape[2] > 1]
    rows = [strip(acts, name) for name in layers]
    save(stack(rows), folder / "depth.png", 1000)
    save(draw(net, photo, patch=32), folder / "saliency_methods.png", 1400)
    projections = tvc.deconvnet(net, photo, [f"relu{i}" for i in (1, 2, 3, 4, 5)], k=4)
    save(projections.plot(), folder / "deconvnet.png", 1200)

    qualities: tuple[Quality, Quality] = ("textbook", "clean")
    both = [patterns(net, layer, quality, 6) for layer in ("conv3", "conv5") for quality in qualities]
    save(stack(both), folder / "filters_quality.png", 640)
    deeper = [patterns(net, layer, "clean", 8) for layer in ("conv3", "conv5")]
    save(stack([patterns(net, "conv1", "textbook", 8), *deeper]), folder / "filters.png", 820)
    save(top_page(net), folder / "top.png", 1200)
    report_page(folder)


def patterns(net: tvc.Network, layer: str, quality: Quality, count: int, side: int = 100) -> Image.Image:
    """What the first so many filters of a layer want to see, in a row."""
    recipe = tvc.Recipe.named("clean" if quality == "clean" else "dlwp-2025", rectify=layer == "conv1")
    filters = tvc.filter_patterns(net, layer, range(count), preset=recipe, size=128)
    tiles = [filters.image(i).resize((side, side), Image.Resampling.LANCZOS) for i in range(count)]
    return Image.fromarray(render.tile_grid(np.stack([np.asarray(tile) for tile in tiles]), columns=count, margin=2))


def report_page(folder: Path) -> None:
    """The demo's report as the system's Chromium shows it: its top, and beside it one unit."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        print("no Chromium here: report.png stays as it is", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    shots = []
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        page = demo.write_page(Path(scratch)).path.as_uri()
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for address, scheme in (("#/heatmaps", "light"), ("#bn5/505", "dark")):
            view: Any = {
                "viewport": {"width": 1120, "height": 1000},
                "color_scheme": scheme,
                "reduced_motion": "reduce",
            }
            tab = browser.new_context(**view).new_page()
            tab.goto(page + address)
            tab.wait_for_timeout(1500)
            shots.append(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))
        browser.close()
    both = Image.new("RGB", (sum(shot.width for shot in shots) + 16, shots[0].height), "white")
    for i, shot in enumerate(shots):
        both.paste(shot, (i * (shot.width + 16), 0))
    save(both, folder / "report.png", 1400)


def top_page(net: tvc.Network, layer: str = "relu3", count: int = 8) -> Image.Image:
    """The strongest of a layer's channels over tiles of CC0 photos, of which no two overlap."""
    tiles, side = [], 100
    for make in (data.chelsea, data.coffee, data.rocket, data.brick, data.grass, data.gravel):
        photo = Image.fromarray(make())  # type: ignore[no-untyped-call]
        corners = [
            (x, y) for y in range(0, photo.height - side + 1, side) for x in range(0, photo.width - side + 1, side)
        ]
        tiles += [photo.crop((x, y, x + side, y + side)) for x, y in corners]
    top = tvc.top_activations(net, tiles, layer)
    return top.page(layer, top.strongest_channels(layer, count), columns=2, side=64)


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
