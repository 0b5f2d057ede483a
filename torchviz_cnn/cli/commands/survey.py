"""The command `survey`: what a network predicts of a folder of photos, where it looks, and what it confuses."""

from __future__ import annotations

import argparse
from pathlib import Path

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import in_options, positive, whole
from torchviz_cnn.cli.choices import methods_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_out(parser, "survey", "folder for the results; the same command goes on with what it holds")
    add = parser.add_argument
    add("folder", metavar="DIR", help="photos, in any format; in a folder for each class or not; or tar files of them")
    words = "the true classes: a CSV file of file,class, 'folders', or 'none' (default: the folders by class, if any)"
    add("--truth", metavar="FILE", help=words)
    words = "masks of the objects, called as their photos: the share of the evidence on them is measured"
    add("--masks", type=Path, metavar="DIR", help=words)
    words = "which values of a mask are the object (default: all but 0)"
    add("--mask-values", type=whole, nargs="+", metavar="NUMBER", help=words)
    kinds = [name for kind in ("cam", "saliency", "occlusion") for name in methods_of(kind)]
    words = "what makes the heatmaps, as cam --method and saliency --method (%(default)s)"
    add("--method", choices=kinds, default="grad-cam", metavar="METHOD", help=words)
    add("--layer", help="whose maps are weighed (default: the last with the last convolution's resolution)")
    arguments.add_output(parser, "holds the class scores")
    add("--k", type=positive, default=12, metavar="PHOTOS", help="how many photos of each kind are shown (%(default)s)")
    words = "seed of the choice of the photos that are shown at random (%(default)s)"
    add("--seed", type=whole, default=0, metavar="NUMBER", help=words)
    words = "go on with what --out holds of the same run (default); with --no-resume that is an error"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=words)
    add("--batch-size", type=positive, default=16, metavar="NUMBER", help="photos at once (%(default)s)")
    words = "processes that decode photos (default: all processors but one)"
    add("--workers", type=whole, metavar="NUMBER", help=words)
    arguments.add_decode(parser)
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Say over a folder of photos what a network predicts, where it looks, and what it confuses."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.runs.ranks import joined

    names = ("truth", "masks", "mask_values", "layer", "output", "k", "seed", "resume", "batch_size", "workers")
    with joined(shared.device(args.device)) as ranks, shared.going_on(args.out):
        args.device = ranks.device
        net = shared.network(args, verbose=ranks.first)
        method = args.method.replace("-", "_")
        result = tvc.survey(
            net, args.folder, method=method, **shared.options(args, *names, "decode", "out"), progress=True
        )
    if not ranks.first:
        return
    for line in str(result).splitlines():
        shared.say(line)
    for reason in list(result.skipped.values())[:10]:
        shared.say(f"  left out: {in_options(reason, args.options)}")
    shared.say(f"open {args.out / 'index.html'}; predictions.csv, classes.csv and heatmaps/ are beside it")
    args.skipped += result.skipped.values() if ranks.count == 1 else ()  # torchrun takes exit code 1 for a failure


COMMAND = arguments.Command(
    "survey",
    run,
    add_arguments,
    "DIR",
    (
        "survey photos/",
        "survey photos/ --truth none --method competitive-cam --k 6 --out without_labels",
        "survey photos/ --model cats_and_dogs --batch-size 32 --out cats_and_dogs",
    ),
)
