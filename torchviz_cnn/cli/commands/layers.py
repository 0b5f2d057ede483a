"""The command `layers`."""

import argparse

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", action="store_true", help="print the names that --model knows, and nothing else")
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Print the network's layers: shapes, parameters, receptive fields."""
    if args.models:
        print(*tvc.model_names(), sep="\n")
        return
    from torchviz_cnn.cli import shared

    net = shared.network(args)
    print(tvc.describe(net, net.input_size, progress=True))


COMMAND = arguments.Command(
    "layers", run, add_arguments, "", ("layers", "layers --model resnet50 --weights random", "layers --models")
)
