"""The command `filters`: filter patterns of many layers, one process or many."""

import argparse
from typing import Any, get_args

import torch

import torchviz_cnn as tvc
from torchviz_cnn.ascent.atlas import Rectify
from torchviz_cnn.ascent.loop import Precision
from torchviz_cnn.ascent.recipes import RECIPES, Normalize, Optimizer, Parameters, Quality
from torchviz_cnn.cli import shared
from torchviz_cnn.cli.shared import positive
from torchviz_cnn.core.errors import InputError, counted
from torchviz_cnn.layers.defaults import convolutions, input_channels
from torchviz_cnn.runs import files
from torchviz_cnn.runs.ranks import joined


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_network(parser)
    shared.add_out(parser, "filters")
    shared.add_layers(parser, "the first convolution of each block; all: every convolution")
    shared.add_channels(parser, "these channels of each layer, instead of the first")
    add = parser.add_argument
    add("--k", help="how many channels of each layer, or all (default: 64; all with --layers all)")
    add("--preset", choices=[*RECIPES], help="the textbook's constants, or clean (default: dlwp-2025)")
    add("--quality", choices=get_args(Quality), help="clean: natural colours, steady under small movements")
    add("--size", type=positive, nargs="+", metavar="PIXELS", help="side, or height and width, of the patterns")
    add("--steps", type=positive, help="number of steps (default: the preset's)")
    add("--step", type=float, help="how far a step goes (default: the preset's)")
    add("--normalize", choices=get_args(Normalize), help="what a gradient is divided by (default: the preset's)")
    add("--border", type=int, help="positions at each side of the map that do not count (default: the preset's)")
    add("--parameters", choices=get_args(Parameters), help="what is optimised: pixels or Fourier spectrum")
    add("--optimizer", choices=get_args(Optimizer), help="plain gradient ascent or Adam")
    words = "where negative activations count as 0 (default: in layers that are linear in the image)"
    add("--rectify", choices=get_args(Rectify), default="first", help=words)
    add("--seed", type=int, default=0, help="seed of the initial noise (%(default)s)")
    add("--precision", choices=get_args(Precision), default="float32", help="auto: bfloat16 where it is fast")
    add("--columns", type=positive, help="patterns side by side in the pictures (default: 8, or 16 for more than 64)")


def run(args: argparse.Namespace) -> None:
    """Draw what filters respond to most: patterns by gradient ascent from noise."""
    size, every = shared.two_sides("--size", args.size), args.layers == ["all"]
    preset: Any = args.preset or ("clean" if args.quality == "clean" else "dlwp-2025")
    changes = shared.options(args, "step", "normalize", "border", "parameters", "optimizer")
    with joined(args.device) as ranks:
        args.device = ranks.device
        net = shared.network(args)
        if every:
            args.layers = convolutions(net, torch.zeros(1, input_channels(net.model), *(size or net.input_size)))
        with shared.going_on(args.out):
            atlas = tvc.filter_atlas(
                net,
                args.out,
                **shared.options(args, "layers", "channels", "steps", "quality", "rectify", "seed", "precision"),
                k=_count(args.k, every),
                size=size,
                preset=tvc.Recipe.named(preset, **changes),
                name=args.model,
                ranks=ranks,
                progress=True,
            )
        if ranks.first:
            _draw(args, atlas)


def _draw(args: argparse.Namespace, atlas: tvc.Atlas) -> None:
    for layer in atlas.layers:
        patterns = atlas.patterns(layer)
        columns = args.columns or (8 if len(patterns.values) <= 64 else 16)
        file = files.save_image(args.out / f"{files.safe_name(layer)}.png", patterns.grid(columns))
        dead = f", no gradient in {', '.join(map(str, patterns.dead))}" * bool(patterns.dead)
        shared.say(f"{file}: {counted(len(patterns.values), 'filter')}, {int(patterns.raised.sum())} raised{dead}")


def _count(text: str | None, every: bool) -> int | None:
    if text == "all" or (text is None and every):
        return None
    if text is not None and not (text.isdigit() and int(text) >= 1):
        raise InputError(f"--k is how many, or all, not {text!r}")
    return int(text or 64)


COMMAND = shared.Command("filters", run, add_arguments)
