"""The command `demo`: the bundled network on a photo, all that can be seen, on one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import torchviz_cnn as tvc
from torchviz_cnn.cli import shared
from torchviz_cnn.core.errors import ImageError

BUDGET = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="photos (default: a cat)")
    shared.add_out(parser, "torchviz-demo")
    shared.add_budget(parser, BUDGET)


def run(args: argparse.Namespace) -> None:
    """Show what the bundled network sees: the report of a cat."""
    photos = shared.readable_photos(args, None)
    page = write_page(args.out, photos, budget=args.budget, command=args.command_line, progress=True)
    print(f"open {page}")


def write_page(
    out: Path,
    images: Sequence[Path] = (),
    *,
    budget: float | None = BUDGET,
    command: str | None = None,
    progress: bool = False,
) -> tvc.Report:
    """Write the report of the bundled network for photos, by default a cat, to `index.html` in a folder.

    No further filter pattern is begun after `budget` seconds. The page names the `command` line that made it.
    """
    net = tvc.load_model("cats_and_dogs")
    photos = list(images) or {"chelsea": _cat()}
    layers = [name for name, _ in net.model.named_children() if name.startswith(("bn", "pool"))]
    return tvc.report(net, photos, out / "index.html", layers=layers, budget=budget, command=command, progress=progress)


def _cat() -> Image.Image:
    """Chelsea the cat, a CC0 photo that scikit-image carries."""
    try:
        from skimage import data
    except ImportError:
        raise ImageError(
            "the demo's photo comes with scikit-image: pip install scikit-image, or name a photo"
        ) from None
    return Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]


COMMAND = shared.Command("demo", run, add_arguments)
