"""The commands `cam`, `saliency` and `occlusion`: the methods of a kind, and the options that they take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from operator import methodcaller
from typing import Any

from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import Command, positive
from torchviz_cnn.cli.choices import choices, methods_of, suits

OPTIONS: dict[str, dict[str, Any]] = {
    "layer": {"help": "the layer whose maps are weighted (default: the last with the last convolution's resolution)"},
    "score": {
        "type": methodcaller("replace", "-", "_"),
        "choices": choices("score"),
        "help": "the score to explain (default: logit)",
    },
    "reduce": {"choices": choices("reduce"), "help": "how the colours of a pixel become one value (default: max)"},
    "other_activations": arguments.OTHER_ACTIVATIONS,
    "patch": {
        "type": positive,
        "metavar": "PIXELS",
        "help": "side of the square, in pixels of the input (default: 32)",
    },
    "stride": {
        "type": positive,
        "metavar": "PIXELS",
        "help": "how far the square moves at a time, in pixels of the input (default: half its side)",
    },
}
"""The options of methods that the command line offers, by the names that the table of methods gives them."""


def class_map_command(kind: Any, words: str, *examples: str) -> Command:
    """The command that draws the maps of a kind; `words` are its help."""

    def run(args: argparse.Namespace) -> None:
        from torchviz_cnn.cli.class_maps import draw_class_maps

        draw_class_maps(args, kind)

    run.__doc__ = words
    return Command(kind, run, partial(_add_arguments, kind=kind), "IMAGE ...", examples)


def _add_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the methods of a kind, the options that they take, and how a map is drawn."""
    methods = methods_of(kind)
    words = "photos, or folders of them" + ("; or one clip, or the number of a camera" if kind == "cam" else "")
    arguments.add_photos(parser, words, _batch_words(methods))
    parser.set_defaults(batch_size=None)  # `draw_class_maps` sets it, by the method
    clip = ", or the clip, which makes one of a folder of frames" if kind == "cam" else ""
    arguments.add_out(parser, words=f"folder to write to{clip}")
    arguments.add_target(parser, "each photo's top class")
    _add_methods(parser, methods, kind)
    for name, option in OPTIONS.items():
        takers = [taker for taker, method in methods.items() if name in method.options]
        if takers:
            only = f"; for {', '.join(takers)}" if len(takers) < len(methods) else ""
            parser.add_argument(arguments.option(name), **{**option, "help": option["help"] + only})
    _add_drawing(parser)
    if kind == "cam":
        _add_clips(parser)
    arguments.add_network(parser)


def _batch_words(methods: Mapping[str, Any]) -> str:
    """The help of --batch-size."""
    slow = [name for name, method in methods.items() if method.slow]
    if len(slow) == len(methods):
        return "photos at once (1)"
    few = f"; for {', '.join(slow)} 1, so that each picture is written when it is made" if slow else ""
    return f"photos at once ({arguments.BATCH_SIZE}{few})"


def _add_methods(parser: argparse.ArgumentParser, methods: Any, kind: str) -> None:
    first = next(iter(methods))
    if len(methods) == 1:
        parser.set_defaults(method=first)
        return
    words = "what to draw: see below (%(default)s)"
    parser.add_argument("--method", choices=list(methods), default=first, metavar="METHOD", help=words)
    rows = [f"  {name:22}{method.shows} ({method.paper})" for name, method in methods.items()]
    parser.epilog = "\n".join(["methods:", *rows])
    if kind == "cam":
        begin = [f"{name.replace('_', '-')} for {what}" for name, what in suits().items()]
        parser.epilog += f"\n\nBegin with {', and '.join(begin)}."


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how maps are drawn").add_argument
    add("--truth", metavar="CLASS", help="the true class, for the title")
    add("--alpha", type=arguments.share, default=0.4, help="strength of the colours over the photo, 0..1 (%(default)s)")
    words = "add: as in the textbook; mix: translucent (%(default)s)"
    add("--blend", choices=choices("blend"), default="add", help=words)
    words = "a name that matplotlib knows (default: jet; for saliency gray, and hot over the photo)"
    add("--colormap", metavar="NAME", help=words)
    words = "draw the overlay as the textbook's listing, to the byte"
    add("--preset", choices=choices("preset_of_overlays"), help=words)


def _add_clips(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("clips").add_argument
    words = "one scale of colours for the whole clip, or for each frame (default: clip)"
    add("--scale", choices=choices("scale"), help=words)
    add("--fps", type=float, metavar="NUMBER", help="frames per second (default: the file's own; 25 of photos)")
    words = "how much of the clip is explained, or how long a camera is recorded (default: all)"
    add("--seconds", type=float, metavar="SECONDS", help=words)
