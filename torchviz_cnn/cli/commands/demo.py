"""The command `demo`: a trained network on photos, all that can be seen, on one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.choices import choices
from torchviz_cnn.core.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

BUDGET = 60.0
_LAYERS = ("stem.conv", *(f"blocks.{n}.project.conv" for n in (1, 4, 7, 10, 15)), "head.conv")
"""EfficientNet-Lite0's, from edges over textures to parts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="photos (default: scikit-image's)")
    words = "the network (default: efficientnet_lite0 where it is installed, else cats_and_dogs)"
    parser.add_argument("--model", choices=choices("network_with_weights"), help=words)
    arguments.add_out(parser, "torchviz-demo")
    arguments.add_budget(parser, BUDGET)


def run(args: argparse.Namespace) -> None:
    """Show what a trained network sees: the report of a cup of coffee, a cat and a rocket."""
    from torchviz_cnn.cli import shared

    photos = shared.readable_photos(args, None)
    model = args.model or shared.default_network(True)
    page = write_page(args.out, photos, model=model, budget=args.budget, command=args.command_line, progress=True)
    if page.about_patterns:
        print(page.about_patterns)
    print(f"open {page}")


def write_page(
    out: Path,
    images: Sequence[Path] = (),
    *,
    model: str,
    budget: float | None = BUDGET,
    command: str | None = None,
    progress: bool = False,
) -> tvc.Report:
    """Write the report of a trained network for photos, by default for scikit-image's, to `index.html` in a folder.

    No further filter pattern is begun after `budget` seconds. The page names the `command` line that made it.
    """
    from torchviz_cnn.models.catalogue import INSTALLED

    net = tvc.load_model(model)
    layers, shown = (list(_LAYERS), ["coffee", "chelsea", "rocket"]) if model in INSTALLED else (None, ["chelsea"])
    photos = list(images) or {name: _photo(name) for name in shown}
    return tvc.report(net, photos, out / "index.html", layers=layers, budget=budget, command=command, progress=progress)


def _photo(name: str) -> Image.Image:
    """A photo that scikit-image carries, CC0 or in the public domain."""
    from PIL import Image

    try:
        from skimage import data
    except ImportError:
        raise ImageError(
            "the demo's photos come with scikit-image: pip install 'torchviz-cnn[demo]', or name a photo"
        ) from None
    return Image.fromarray(getattr(data, name)())


COMMAND = arguments.Command(
    "demo",
    run,
    add_arguments,
    "[IMAGE ...]",
    ("demo", "demo --budget 300 --out demo", "demo cat.jpg --model cats_and_dogs"),
)
