"""Make the pictures of README and docs from what the code computes: trained networks on CC0 photos.

python scripts/figures.py [FOLDER]
"""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import known_answers
import numpy as np
import planted_shortcut
from PIL import Image
from randomization import draw as cascade
from saliency_methods import draw
from skimage import data
from usage import tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.ascent.recipes import Quality
from torchviz_cnn.cli.commands import demo
from torchviz_cnn.media import figures, render

RELUS = (
    *("stem", "blocks.2.depthwise.relu", "blocks.4.depthwise.relu"),
    *("blocks.7.expand.relu", "blocks.10.expand.relu", "head"),
)
"""From the first to the last."""
PATTERNS = ("blocks.1", "blocks.4", "blocks.7", "blocks.10")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    net = tvc.load_model("efficientnet_lite0")
    photo = Image.fromarray(data.coffee())  # type: ignore[no-untyped-call]

    heat = tvc.grad_cam(net, photo, target="espresso")
    save(heat.plot(truth="espresso"), folder / "grad_cam.jpg", 1400)
    save(family(net, photo), folder / "cam_family.jpg", 1400)
    save(two_classes(photo), folder / "two_classes.jpg", 1100)
    save(contrast(net, photo), folder / "contrast.jpg", 1200)

    acts = tvc.capture(net, photo, ["blocks.1.expand.relu", *RELUS])
    save(acts.plot("blocks.1.expand.relu", channels=range(48)), folder / "activations.jpg", 1200)
    save(stack([strip(acts, name) for name in RELUS]), folder / "depth.jpg", 1000)
    save(draw(net, photo, patch=32), folder / "saliency_methods.jpg", 1400)

    qualities: tuple[Quality, Quality] = ("textbook", "clean")
    both = [patterns(net, layer, quality, 6) for layer in ("blocks.4", "blocks.10") for quality in qualities]
    save(stack(both), folder / "filters_quality.jpg", 640)
    save(stack([patterns(net, layer, "clean", 8) for layer in PATTERNS]), folder / "filters.jpg", 820)
    save(cascade(net, Image.fromarray(data.chelsea())), folder / "randomization.jpg", 1000)  # type: ignore[no-untyped-call]
    known_answers.main(["--out", str(folder / "known_answers.png")])
    report_page(folder)
    survey_page(folder)
    watched(folder)

    # The deconvnet is for networks that pool by maxima, which EfficientNet does not.
    pooling, cat = tvc.load_model("cats_and_dogs"), Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]
    projections = tvc.deconvnet(pooling, cat, [f"relu{i}" for i in (1, 2, 3, 4, 5)], k=4)
    save(projections.plot(), folder / "deconvnet.jpg", 1200)
    save(top_page(pooling), folder / "top.jpg", 1200)


def family(net: tvc.Network, photo: Image.Image) -> Image.Image:
    """All heatmaps of a late and an early layer, from one call."""
    methods = ["grad_cam", "hires_cam", "xgrad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam"]
    maps = tvc.explain(net, photo, "espresso", ["head", "blocks.10"], [*methods, "ablation_cam", "score_cam"])
    return maps.plot()


def two_classes(cup: Image.Image) -> Image.Image:
    """A cat above a cup of coffee: where each is, by two methods."""
    net, side = tvc.load_model("efficientnet_lite0", geometry="stretch"), (450, 300)
    both = Image.new("RGB", (side[0], 2 * side[1]))
    both.paste(Image.fromarray(data.chelsea()).resize(side))  # type: ignore[no-untyped-call]
    both.paste(cup.resize(side), (0, side[1]))
    target = [["Egyptian cat", "espresso"]]
    pictures = [method(net, both, target=target).two_classes() for method in (tvc.grad_cam, tvc.competitive_cam)]
    return figures.panel([both, *pictures], ["photo", "Grad-CAM", "Competitive CAM"])


def contrast(net: tvc.Network, photo: Image.Image) -> Image.Image:
    """Two classes of one photo, and why it is the first and not the second, with negative evidence."""
    why = tvc.targets.contrast("espresso", "cup")
    targets: dict[str, Any] = {"espresso": "espresso", "cup": "cup", "espresso, not cup": why}
    maps = [tvc.grad_cam(net, photo, target=target, relu=False) for target in targets.values()]
    pictures = [photo, *(heat.overlay(alpha=0.7) for heat in maps)]
    return figures.panel(pictures, ["photo", *targets])


def patterns(net: tvc.Network, layer: str, quality: Quality, count: int, side: int = 100) -> Image.Image:
    """What the first so many filters of a layer want to see, in a row."""
    filters = tvc.filter_patterns(net, layer, range(count), quality=quality, size=128)
    tiles = [filters.image(i).resize((side, side), Image.Resampling.LANCZOS) for i in range(count)]
    return Image.fromarray(render.tile_grid(np.stack([np.asarray(tile) for tile in tiles]), columns=count, margin=2))


def watched(folder: Path) -> None:
    """A shortcut being learned, as scripts/watch.py shows it."""
    given = list(sys.argv)
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv[:] = ["scripts/watch.py", scratch]
        runpy.run_path(str(Path(__file__).with_name("watch.py")), run_name="__main__")
        save(Image.open(Path(scratch) / "strip.png"), folder / "watch.jpg", 1400)
    sys.argv[:] = given


def report_page(folder: Path) -> None:
    """The demo's report: its top, and beside it one unit."""
    with tempfile.TemporaryDirectory() as scratch:
        page = demo.write_page(Path(scratch), model="efficientnet_lite0", budget=150).path
        photograph(page, {"": "light", unit_with_pattern(page): "dark"}, folder / "report.jpg")


def survey_page(folder: Path) -> None:
    """The survey of a network with a shortcut: the page's top, and beside it one photo."""
    with tempfile.TemporaryDirectory() as scratch:
        planted_shortcut.main(["--out", scratch])
        page = Path(scratch) / "survey" / "index.html"
        first = json.loads(re.findall('"name":(\\[.*?\\])', page.read_text(encoding="utf-8"))[0])[0]
        photograph(page, {"": "light", f"#photo={quote(first, safe='')}": "dark"}, folder / "survey.jpg")


def photograph(page: Path, views: dict[str, str], path: Path) -> None:
    """A page as the system's Chromium shows it at some addresses, each by day or by night, side by side."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        print(f"no Chromium here: {path.name} stays as it is", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    shots = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for address, scheme in views.items():
            view: Any = {
                "viewport": {"width": 1120, "height": 1000},
                "color_scheme": scheme,
                "reduced_motion": "reduce",
            }
            tab = browser.new_context(**view).new_page()
            tab.goto(page.resolve().as_uri() + address)
            tab.wait_for_timeout(1500)
            shots.append(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))
        browser.close()
    both = Image.new("RGB", (sum(shot.width for shot in shots) + 16, shots[0].height), "white")
    for i, shot in enumerate(shots):
        both.paste(shot, (i * (shot.width + 16), 0))
    save(both, path, 1400)


def unit_with_pattern(page: Path) -> str:
    """The address of the first channel in the middle of the network that has a filter pattern on a page."""
    (embedded,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    several = [layer for layer in json.loads(embedded)["layers"] if layer["patterns"]]
    layer = several[len(several) // 2]
    return f"#{layer['name']}/{next(iter(layer['patterns']))}"


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
    tiles = [Image.fromarray(tile) for tile in acts.tiles(layer)[:12]]
    # Values of a small map stay squares; a large one is made smaller without patterns of its own.
    how = Image.Resampling.NEAREST if tiles[0].width <= side else Image.Resampling.LANCZOS
    tiles = [tile.resize((side, side), how) for tile in tiles]
    row = render.tile_grid(np.stack([np.asarray(tile) for tile in tiles]), columns=12, margin=2)
    return Image.fromarray(render.colormap(row, "viridis"))


def stack(rows: list[Image.Image]) -> Image.Image:
    picture = Image.new("RGB", (rows[0].width, sum(row.height + 2 for row in rows) - 2))
    for i, row in enumerate(rows):
        picture.paste(row, (0, i * (row.height + 2)))
    return picture


def save(picture: Image.Image, path: Path, width: int) -> None:
    """As a JPEG, at most `width` pixels wide: small enough for a repository."""
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.convert("RGB").save(path, quality=90, subsampling=0)


if __name__ == "__main__":
    tell_mistakes()
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "figures")
