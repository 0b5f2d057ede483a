"""The command `cam`."""

import argparse
from functools import partial

from torchviz_cnn.cli import shared
from torchviz_cnn.cli.class_maps import add_class_map, draw_class_maps


def run(args: argparse.Namespace) -> None:
    """Draw class heatmaps over photos."""
    draw_class_maps(args, "cam")


COMMAND = shared.Command("cam", run, partial(add_class_map, kind="cam"))
