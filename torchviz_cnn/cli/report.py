"""Commands that make a page: `demo`, `report`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torchviz_cnn as tvc
from torchviz_cnn.cli import demo
from torchviz_cnn.cli.shared import add_network, add_out, network, positive


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="photos (default: a cat)")
    add_out(parser, "torchviz-demo")


def run_demo(args: argparse.Namespace) -> None:
    """see it work on the bundled network: the report of a cat"""
    page = demo.run(args.out, args.images, command=_command(args), progress=sys.stderr.isatty())
    print(f"open {page}")


def add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", type=Path, metavar="IMAGE", help="photos (none: a page of the network alone)")
    add_network(parser)
    add("--out", type=Path, default=Path("report"), help="the page (.html), or a folder for it (%(default)s)")
    add("--layers", nargs="+", metavar="LAYER", help="names or glob patterns (default: convolutions and poolings)")
    add("--k", type=positive, default=32, help="how many channels of each layer are shown (%(default)s)")
    add("--channels", nargs="+", type=int, metavar="CHANNEL", help="numbers of the channels to show instead")
    add("--classes", type=positive, default=3, help="how many of each photo's likeliest are explained (%(default)s)")
    add("--top", type=Path, metavar="FOLDER", help="strongest patches, as the top command wrote them")
    add("--atlas", type=Path, metavar="FOLDER", help="filter patterns, as the filters command wrote them")
    add(
        "--budget", type=_seconds, default=60.0, metavar="SECONDS",
        help="how long filter patterns may be made, from the start; 'all' for every channel shown (%(default)s)",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of the filter patterns (%(default)s)")
    add("--batch-size", type=positive, default=4, help="photos at once (%(default)s)")


def run_report(args: argparse.Namespace) -> None:
    """make one offline page that shows a network: predictions, heatmaps, layers, every channel"""
    page = tvc.report(
        network(args), args.images, args.out, layers=args.layers, k=args.k, channels=args.channels, classes=args.classes,
        top=args.top, atlas=args.atlas, budget=args.budget, seed=args.seed, batch_size=args.batch_size,
        command=_command(args), progress=sys.stderr.isatty(),
    )  # fmt: skip
    counts = {"photo": page.photos, "layer": len(page.layers), "filter pattern": page.patterns}
    print(", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items()))
    print(f"open {page}")


def _command(args: argparse.Namespace) -> str:
    return shlex.join(["torchviz-cnn", *args.arguments])


def _seconds(text: str) -> float | None:
    if text == "all":
        return None
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds, nor 'all'") from None
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value
