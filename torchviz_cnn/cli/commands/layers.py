"""The command `layers`."""

import argparse

import torchviz_cnn as tvc
from torchviz_cnn.cli import shared


def run(args: argparse.Namespace) -> None:
    """Print the network's layers: shapes, parameters, receptive fields."""
    net = shared.network(args)
    print(tvc.describe(net, net.input_size))


COMMAND = shared.Command("layers", run, shared.add_network)
