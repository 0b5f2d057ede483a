"""The command `trust`: how far each method can be believed for a network, on one's own photos."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import in_options, positive, whole
from torchviz_cnn.core.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="+", metavar="DIR", help="a folder of photos, tar files of them as one pattern, or photos")
    arguments.add_out(parser, "trust", "folder for the results; the same command goes on with what it holds")
    words = "names as of cam --method and saliency --method, occlusion, or all (default: ten quick ones)"
    add("--methods", "--method", dest="methods", nargs="+", metavar="METHOD", help=words)
    arguments.add_layers(parser, "the one that each method takes")
    words = "masks of the objects, called as their photos, for the pointing game and the energy in the mask"
    add("--masks", type=Path, metavar="DIR", help=words)
    words = "which values of a mask are the object (default: all but 0)"
    add("--mask-values", type=whole, nargs="+", metavar="NUMBER", help=words)
    words = "the true classes: a CSV file of file,class, or 'folders' (default: the network's top class is explained)"
    add("--truth", metavar="FILE", help=words)
    arguments.add_output(parser, "is explained")
    words = "seconds that it may take: photos are measured for as long as there is time for them"
    arguments.add_budget(parser, "all", words)
    words = "photos whose pixels are taken away and put in: insertion, deletion, average drop, ROAD (%(default)s)"
    add("--perturbed", type=positive, default=64, metavar="PHOTOS", help=words)
    words = "mosaics of four photos that the network recognises; 0: none (%(default)s)"
    add("--mosaics", type=whole, default=40, metavar="NUMBER", help=words)
    words = "with what probability the network recognises the photos of mosaics (%(default)s)"
    add("--threshold", type=float, default=0.99, metavar="SHARE", help=words)
    add(
        "--steps", type=positive, default=32, metavar="NUMBER", help="in how many steps pixels go or come (%(default)s)"
    )
    add("--seed", type=whole, default=0, metavar="NUMBER", help="seed of what is random (%(default)s)")
    add("--batch-size", type=positive, default=8, metavar="NUMBER", help="photos at once (%(default)s)")
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Measure how far each method's maps can be believed for a network: a table, and what it says in words."""
    from torchviz_cnn.cli import shared

    methods = [name.replace("-", "_") for name in args.methods or ()] or None
    net = shared.network(args)
    photos = _photos(args, net)
    names = (
        "layers",
        "masks",
        "mask_values",
        "budget",
        "perturbed",
        "mosaics",
        "threshold",
        "steps",
        "seed",
        "batch_size",
        "output",
        "out",
    )
    options = shared.options(args, *names)
    with shared.going_on(args.out):
        result = tvc.trust(net, photos, methods=methods, truth=args.truth, **options, progress=True)
    print(f"explained is {result.explained}")
    args.skipped += result.skipped.values()
    for line in str(_worded(result, args.options)).splitlines():
        shared.say(line)
    shared.say(f"open {args.out / 'index.html'}; the figures are in trust.csv, trust.json and trust.md beside it")


def _worded(result: tvc.Trust, options: Collection[str]) -> tvc.Trust:
    """The same with why values are missing in the words of the command line."""
    rows = [replace(row, refused=row.refused and in_options(row.refused, options)) for row in result.rows]
    measured = {
        key: replace(one, reasons={image: in_options(why, options) for image, why in one.reasons.items()})
        for key, one in result.measured.items()
    }
    return replace(result, rows=tuple(rows), measured=measured)


def _photos(args: argparse.Namespace, net: tvc.Network) -> str | list[Path]:
    """A folder or a pattern of tar files as it is given, or the photos that can be read."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.media.datasets.shards.patterns import are_shards

    first, *others = args.images
    tars = next((place for place in args.images if are_shards(place)), None)
    if tars is not None and others:
        raise InputError(
            f"tar files are given as one pattern, in quotes and alone; {tars} is one of {len(args.images)}"
        )
    if tars is not None or (not others and Path(first).is_dir()):
        return str(first)
    args.images = [Path(place) for place in args.images]
    return shared.readable_photos(args, net.preprocess)


COMMAND = arguments.Command(
    "trust",
    run,
    add_arguments,
    "DIR ...",
    (
        "trust photos/ --budget 600",
        "trust photos/ --masks masks/ --methods grad-cam competitive-cam saliency --out trust",
        "trust photos/ --truth folders --methods all",
    ),
)
