"""The command `saliency`."""

import argparse
from functools import partial

from torchviz_cnn.cli import shared
from torchviz_cnn.cli.class_maps import add_class_map, draw_class_maps


def run(args: argparse.Namespace) -> None:
    """Draw which pixels a class score depends on: gradients, guided backpropagation, SmoothGrad and others."""
    draw_class_maps(args, "saliency")


COMMAND = shared.Command("saliency", run, partial(add_class_map, kind="saliency"))
