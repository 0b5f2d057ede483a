"""The command `report`."""

import argparse
from pathlib import Path

import torchviz_cnn as tvc
from torchviz_cnn.cli import shared
from torchviz_cnn.core.errors import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", type=Path, metavar="IMAGE", help="photos (none: a page of the network alone)")
    shared.add_network(parser)
    add("--out", type=Path, default=Path("report"), help="the page (.html), or a folder for it (%(default)s)")
    shared.add_layers(parser, "all convolution and pooling layers")
    add("--k", type=shared.positive, default=32, help="how many channels of each layer are shown (%(default)s)")
    shared.add_channels(parser, "these channels of each layer, instead of the strongest")
    add("--classes", type=shared.positive, default=3, help="how many are explained of each photo (%(default)s)")
    shared.add_target(parser, "the likeliest of each photo")
    add("--top", type=Path, metavar="FOLDER", help="strongest patches, as the top command wrote them")
    add("--atlas", type=Path, metavar="FOLDER", help="filter patterns, as the filters command wrote them")
    add("--trust", type=Path, metavar="FOLDER", help="figures of these photos, as the trust command wrote them")
    shared.add_budget(parser, 60.0)
    add("--seed", type=int, default=0, help="seed of the filter patterns (%(default)s)")
    add("--batch-size", type=shared.positive, default=4, help="photos at once (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Make one offline page that shows a network: predictions, heatmaps, layers, every unit."""
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
    counts = {"photo": page.photos, "layer": len(page.layers), "filter pattern": page.patterns}
    print(", ".join(counted(count, what) for what, count in counts.items()))
    print(f"open {page}")


COMMAND = shared.Command("report", run, add_arguments)
