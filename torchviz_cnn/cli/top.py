"""The command `top`: the strongest activations over a folder of photos, one process or many."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

import torchviz_cnn as tvc
from torchviz_cnn.cli.shared import add_network, add_out, network, positive
from torchviz_cnn.runs import files
from torchviz_cnn.runs.ranks import joined
from torchviz_cnn.scores.projection import Projection


def add_top(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_out(parser, "top")
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="photos, in any format; in folders by class or not")
    add("--layers", "--layer", nargs="+", help="names or glob patterns (default: all convolutions)")
    add("--k", type=positive, default=9, help="how many per channel (%(default)s)")
    add(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with what --out holds of the same run (default); with --no-resume that is an error",
    )  # fmt: skip
    add("--batch-size", type=positive, default=32, help="photos at once (%(default)s)")
    add("--workers", type=_whole, help="processes that decode photos (default: all processors but one)")
    add("--save-every", type=positive, default=50, metavar="BATCHES", help="how often --out is written (%(default)s)")
    add("--exact", action="store_true", help="order the strongest by double precision (default: as computed)")
    add("--pages", type=_whole, default=16, metavar="CHANNELS", help="channels on each layer's page (%(default)s)")
    add("--channels", type=_whole, nargs="+", help="these channels on the pages, instead of evenly chosen ones")
    add(
        "--projection", choices=[*get_args(Projection), "none"], default="deconvnet",
        help="what is drawn beside the patches (%(default)s)",
    )  # fmt: skip
    add("--context", type=float, default=1.0, help="how much more than the receptive field patches show (%(default)s)")


def top(args: argparse.Namespace) -> None:
    """find what drives every channel most in a folder of photos: patches, projections, statistics"""
    with joined(args.device) as ranks:
        args.device = ranks.device
        net = network(args)
        found = tvc.top_activations(
            net, args.folder, args.layers, args.k, batch_size=args.batch_size, workers=args.workers, out=args.out,
            resume=args.resume, save_every=args.save_every, exact=args.exact, progress=sys.stderr.isatty(),
        )  # fmt: skip
    if not ranks.first:
        return
    left_out = f", {len(found.skipped)} of them not readable" if found.skipped else ""
    print(f"{found.count} photos{left_out} -> {args.out}")
    for reason in list(found.skipped.values())[:10]:
        print(f"  not readable: {reason}")
    for layer in found.layers:
        print(f"  {layer}: {found.statistics[layer].summary()}")
    files.save_image(args.out / "statistics.png", found.plot())
    if args.pages or args.channels:
        draw_pages(args, found)


def draw_pages(args: argparse.Namespace, found: tvc.TopActivations) -> None:
    """A page for each layer, beside the results."""
    how: dict[str, Any] = {
        "projection": None if args.projection == "none" else args.projection,
        "context": args.context,
    }
    for place, layer in enumerate(found.layers):
        channels = args.channels or found.some_channels(layer, args.pages)
        try:
            page = found.page(layer, channels, **how)
        except tvc.LayerError as error:  # this network has no deconvnet
            print(f"  {layer}: patches alone, as {error}", file=sys.stderr)
            page = found.page(layer, channels, **{**how, "projection": None})
        file = files.save_image(args.out / "pages" / f"{place:02d}_{files.safe_name(layer)}.png", page)
        print(f"  {file}")


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value
