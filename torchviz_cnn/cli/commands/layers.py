"""The command `layers`."""

import argparse

import torchviz_cnn as tvc
from torchviz_cnn.cli import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_network(parser)
    parser.add_argument("--models", action="store_true", help="print the names that --model knows, and nothing else")


def run(args: argparse.Namespace) -> None:
    """Print the network's layers: shapes, parameters, receptive fields."""
    if args.models:
        print(*tvc.model_names(), sep="\n")
        return
    net = shared.network(args)
    print(tvc.describe(net, net.input_size, progress=True))


COMMAND = shared.Command("layers", run, add_arguments)
