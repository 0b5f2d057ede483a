"""Commands that make a page: `demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchviz_cnn import demo
from torchviz_cnn.commands.shared import add_out


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="photos (default: a cat)")
    add_out(parser, "torchviz-demo")


def run_demo(args: argparse.Namespace) -> None:
    """see it work on the bundled network: activations, class heatmaps, a page"""
    page = demo.run(args.out, args.images, progress=sys.stderr.isatty())
    print(f"open {page}")
