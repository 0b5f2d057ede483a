"""The command `occlusion`."""

import argparse
from functools import partial

from torchviz_cnn.cli import shared
from torchviz_cnn.cli.class_maps import add_class_map, draw_class_maps


def run(args: argparse.Namespace) -> None:
    """Slide a grey square over photos and draw where the score of a class falls."""
    draw_class_maps(args, "occlusion", progress=True)


COMMAND = shared.Command("occlusion", run, partial(add_class_map, kind="occlusion"))
