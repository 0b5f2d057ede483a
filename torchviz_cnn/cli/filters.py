"""The command that makes filter patterns: `filters`."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

import torch

import torchviz_cnn as tvc
from torchviz_cnn.ascent.atlas import Rectify
from torchviz_cnn.ascent.loop import Precision
from torchviz_cnn.ascent.recipes import RECIPES, Normalize, Optimizer, Parameters, Quality
from torchviz_cnn.cli.shared import add_network, add_out, network, positive
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.layers.defaults import convolutions
from torchviz_cnn.runs import files
from torchviz_cnn.runs.ranks import joined


def add_filters(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_out(parser, "filters")
    add = parser.add_argument
    add("--layer", nargs="+", help="names, or all (default: the first convolution of each block)")
    add("--channels", help="how many of each layer, or all (default: 64; all with --layer all)")
    add("--preset", choices=[*RECIPES], help="the textbook's constants, or clean (default: dlwp-2025)")
    add("--quality", choices=get_args(Quality), help="clean: natural colours, steady under small movements")
    add("--size", type=positive, nargs="+", metavar="PIXELS", help="side, or height and width, of the patterns")
    add("--steps", type=positive, help="how many steps up (default: the preset's)")
    add("--step", type=float, help="how far a step goes (default: the preset's)")
    add("--normalize", choices=get_args(Normalize), help="what a gradient is divided by (default: the preset's)")
    add("--border", type=int, help="positions at each side of the map that do not count (default: the preset's)")
    add("--parameters", choices=get_args(Parameters), help="what is changed (default: the preset's)")
    add("--optimizer", choices=get_args(Optimizer), help="how (default: the preset's)")
    add(
        "--rectify", choices=get_args(Rectify), default="first",
        help="where negative activations count as 0 (default: in layers that are linear in the image)",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of the noise at the start (%(default)s)")
    add("--precision", choices=get_args(Precision), default="float32", help="auto: bfloat16 where it is fast")
    add("--columns", type=positive, help="patterns side by side in the pictures (default: 8, or 16 for more than 64)")


def filters(args: argparse.Namespace) -> None:
    """draw what filters want to see: patterns by gradient ascent from noise"""
    if args.size is not None and len(args.size) > 2:
        raise InputError(f"--size takes a side, or height and width, not {len(args.size)} numbers")
    every = args.layer == ["all"]
    with joined(args.device) as ranks:
        args.device = ranks.device
        net = network(args)
        size = None if args.size is None else (args.size[0], args.size[-1])
        layers = args.layer
        if every:
            recipe_size = size or net.input_size
            layers = convolutions(net.model, torch.zeros(1, len(net.preprocess.mean), *recipe_size))
        try:
            recipe = tvc.Recipe.named(
                args.preset or ("clean" if args.quality == "clean" else "dlwp-2025"), step=args.step,
                normalize=args.normalize, border=args.border, parameters=args.parameters, optimizer=args.optimizer,
            )  # fmt: skip
            atlas = tvc.filter_atlas(
                net, args.out, layers, k=_channels(args.channels, every), size=size, steps=args.steps, preset=recipe,
                quality=args.quality, rectify=args.rectify, seed=args.seed, precision=args.precision, name=args.model,
                ranks=ranks, progress=sys.stderr.isatty(),
            )  # fmt: skip
        except KeyboardInterrupt:
            print(f"what is done is in {args.out}; the same command goes on", file=sys.stderr)
            raise
        if ranks.first:
            _draw(args, atlas)


def _draw(args: argparse.Namespace, atlas: tvc.Atlas) -> None:
    for layer in atlas.layers:
        patterns = atlas.patterns(layer)
        columns = args.columns or (8 if len(patterns.values) <= 64 else 16)
        file = files.save_image(args.out / f"{files.safe_name(layer)}.png", patterns.grid(columns))
        dead = f", no gradient in {', '.join(map(str, patterns.dead))}" * bool(patterns.dead)
        print(f"{file}: {len(patterns.values)} filters, {int(patterns.raised.sum())} raised{dead}")


def _channels(text: str | None, every: bool) -> int | None:
    if text is None:
        return None if every else 64
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--channels is how many, or all, not {text!r}")
    return int(text)
