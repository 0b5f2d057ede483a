"""The command `merge`: one result of runs of `top` that each looked at a piece of the photos."""

from __future__ import annotations

import argparse
from pathlib import Path

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.commands import top
from torchviz_cnn.core.errors import InputError

_OF_NETWORK = (
    "weights",
    "head",
    "labels",
    "geometry",
    "input_size",
    "resize",
    "crop",
    "mean",
    "std",
    "window",
    "bands",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_out(parser, "merged")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="what finished runs of top had as --out")
    top.add_pages(parser)
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Merge pieces, which top made with --start and --end, into the result of a single run.

    Pages show projections where --model names the network.
    """
    from torchviz_cnn.cli import shared

    others = [name for name in _OF_NETWORK if getattr(args, name) is not None]
    if args.model is None and others:
        raise InputError(f"{arguments.option(others[0])} is of a network, and none is given: name it with --model")
    net = None if args.model is None else shared.network(args)
    merged = tvc.merge(*args.folders, out=args.out, model=net)
    if (args.pages or args.channels) and (reason := _why_no_pages(merged)) is not None:
        shared.say(f"no pages are drawn, as {reason}")
        args.pages, args.channels = 0, None
    top.report(args, merged)
    args.skipped += merged.skipped.values()


def _why_no_pages(merged: tvc.TopActivations) -> str | None:
    """Why the photos of a result cannot be read; None where they can."""
    if merged.source is None:
        return "the photos or the index of shards are not where the runs had them, or have changed"
    try:
        merged.source.prepare(None)
    except InputError as error:
        return str(error)
    return None


COMMAND = arguments.Command(
    "merge",
    run,
    add_arguments,
    "DIR [DIR ...]",
    ("merge piece0 piece1 --out strongest", "merge piece0 piece1 --model efficientnet_lite0 --out strongest"),
)
