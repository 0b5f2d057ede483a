"""The command `report`."""

import argparse
from pathlib import Path

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import positive
from torchviz_cnn.core.errors import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", type=Path, metavar="IMAGE", help="photos (none: a page of the network alone)")
    add("--out", type=Path, default=Path("report"), help="the page (.html), or a folder for it (%(default)s)")
    arguments.add_layers(parser, "those of --top and --atlas, or else all convolutions")
    words = "how many channels of each layer are shown, besides those that --top drew (%(default)s)"
    add("--k", type=positive, default=32, metavar="CHANNELS", help=words)
    arguments.add_channels(parser, "these channels of each layer, instead of the strongest")
    words = "how many classes of each photo are explained (%(default)s)"
    add("--classes", type=positive, default=3, metavar="NUMBER", help=words)
    arguments.add_target(parser, "the likeliest of each photo")
    add("--top", type=Path, metavar="FOLDER", help="strongest patches, as the top command wrote them")
    add("--atlas", type=Path, metavar="FOLDER", help="filter patterns, as the filters command wrote them")
    add("--trust", type=Path, metavar="FOLDER", help="figures of these photos, as the trust command wrote them")
    arguments.add_budget(parser, 60.0)
    add("--seed", type=int, default=0, metavar="NUMBER", help="seed of the filter patterns (%(default)s)")
    add("--batch-size", type=positive, default=4, metavar="NUMBER", help="photos at once (%(default)s)")
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Make one offline page that shows a network: predictions, heatmaps, layers, every unit."""
    from torchviz_cnn.cli import shared

    net = shared.network(args)
    targets, _ = shared.asked_target(net, args.target)
    page = tvc.report(
        net,
        shared.readable_photos(args, net.preprocess),
        args.out,
        **shared.options(
            args, "layers", "k", "channels", "classes", "top", "atlas", "trust", "budget", "seed", "batch_size"
        ),
        targets=targets,
        output=args.output,
        command=args.command_line,
        progress=True,
    )
    print(f"{counted(page.photos, 'photo')}, {counted(len(page.layers), 'layer')}")
    if page.about_patterns:
        print(page.about_patterns)
    print(f"open {page}")


COMMAND = arguments.Command(
    "report",
    run,
    add_arguments,
    "[IMAGE ...]",
    (
        "report coffee.png",
        "report photos/ --layers blocks.4 blocks.10 --budget 300 --out report",
        "report cat.jpg --model cats_and_dogs --target cat dog --out cat.html",
    ),
)
