"""The command `top`: the strongest activations over a folder of photos, one process or many."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import in_options, positive, whole
from torchviz_cnn.cli.choices import choices
from torchviz_cnn.core.errors import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_out(parser, "top")
    add = parser.add_argument
    add("folder", metavar="DIR", help="photos, in any format; in folders by class or not; or tar files of them")
    arguments.add_layers(parser, "all convolutions")
    add("--k", type=positive, default=9, metavar="PHOTOS", help="how many photos per channel (%(default)s)")
    words = "what photos are ordered by; relevance, what a channel adds to a score, shows both (%(default)s)"
    add("--by", choices=choices("by"), default="activation", help=words)
    arguments.add_target(parser, "each photo's top class; for --by relevance")
    words = "go on with what --out holds of the same run (default); with --no-resume that is an error"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=words)
    add("--batch-size", type=positive, default=32, metavar="NUMBER", help="photos at once (%(default)s)")
    words = "processes that decode photos (default: all processors but one)"
    add("--workers", type=whole, metavar="NUMBER", help=words)
    arguments.add_decode(parser)
    words = "after how many batches --out is written each time (%(default)s)"
    add("--save-every", type=positive, default=50, metavar="BATCHES", help=words)
    add("--exact", action="store_true", help="order the strongest by double precision (default: as computed)")
    words = "of a piece of the photos, its first one, from 0: for machines that share the work, see merge (%(default)s)"
    add("--start", type=whole, default=0, metavar="NUMBER", help=words)
    add(
        "--end", type=positive, metavar="NUMBER", help="of a piece, the photo behind its last one (default: to the end)"
    )
    add_pages(parser)
    arguments.add_network(parser)


def add_pages(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what pages of patches show."""
    add = parser.add_argument
    words = "number of channels drawn for each layer; 0: none (%(default)s)"
    add("--pages", type=whole, default=16, metavar="CHANNELS", help=words)
    arguments.add_channels(parser, "these channels on the pages, instead of evenly chosen ones")
    kinds = [*choices("projection"), "none"]
    add("--projection", choices=kinds, default="deconvnet", help="what is drawn next to the patches (%(default)s)")
    words = "side of a patch as a multiple of the receptive field (%(default)s)"
    add("--context", type=float, default=1.0, metavar="NUMBER", help=words)


def run(args: argparse.Namespace) -> None:
    """Find what drives every channel most in a folder of photos: patches, projections, statistics."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.runs.ranks import joined

    with joined(shared.device(args.device)) as ranks, shared.going_on(args.out):
        args.device = ranks.device
        net = shared.network(args, verbose=ranks.first)
        given = shared.options(args, "layers", "k", "by", "output", "batch_size", "workers", "out", "resume")
        given |= shared.options(args, "save_every", "exact", "decode", "start", "end")
        top = tvc.top_activations(net, args.folder, target=_target(net, args), **given, progress=True)
    if ranks.first:
        report(args, top)
        args.skipped += top.skipped.values() if ranks.count == 1 else ()  # torchrun takes exit code 1 for a failure


def _target(net: tvc.Network, args: argparse.Namespace) -> Any:
    """The class or the function whose relevance is asked for."""
    from torchviz_cnn.cli import shared

    target, names = shared.asked_target(net, args.target)
    if isinstance(target, list) and len(target) > 1:
        raise tvc.TargetError(f"relevance is of one class, and --target has {counted(len(names), 'class')}")
    return target[0] if isinstance(target, list) else target


def report(args: argparse.Namespace, top: tvc.TopActivations) -> None:
    """Print what is in a result, and draw its statistics and pages."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.runs import files

    left_out = f", {len(top.skipped)} of them not readable" if top.skipped else ""
    looked_at = counted(top.count, "photo") if top.piece is None else top.looked_at
    shared.say(f"{looked_at}{left_out} -> {args.out}")
    for reason in list(top.skipped.values())[:10]:
        shared.say(f"  not readable: {in_options(reason, args.options)}")
    for layer in top.layers:
        shared.say(f"  {layer}: {top.statistics[layer].summary()}")
    files.save_image(args.out / "statistics.png", top.plot())
    if args.pages or args.channels:
        _draw_pages(args, top)


def _draw_pages(args: argparse.Namespace, top: tvc.TopActivations) -> None:
    """A page for each layer, next to the results."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.page.choice import note_drawn
    from torchviz_cnn.runs import files
    from torchviz_cnn.topk.written.drawing import keeping

    top = keeping(top)
    projection = None if args.projection == "none" else args.projection
    options: dict[str, Any] = {"projection": projection, "context": args.context}
    drawn = {layer: args.channels or top.some_channels(layer, args.pages) for layer in top.layers}
    for place, (layer, channels) in enumerate(drawn.items()):
        try:
            page = top.page(layer, channels, **options)
        except tvc.LayerError as error:  # this network has no deconvnet
            shared.say(f"  {layer}: patches alone, as {in_options(error, args.options)}", sys.stderr)
            page = top.page(layer, channels, **{**options, "projection": None})
        file = files.save_image(args.out / "pages" / f"{place:02d}_{files.safe_name(layer)}.png", page)
        shared.say(f"  {file}")
    note_drawn(args.out, drawn)


COMMAND = arguments.Command(
    "top",
    run,
    add_arguments,
    "DIR",
    (
        "top photos/",
        "top photos/ --layers blocks.4 blocks.10 --k 16 --out strongest",
        "top photos/ --layers blocks.4 --channels 3 12 --projection none",
        "top photos/ --layers blocks.10 --by relevance --target espresso --out used_for",
    ),
)
