"""The command `filters`: filter patterns of many layers, one process or many."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import positive
from torchviz_cnn.cli.choices import choices
from torchviz_cnn.core.errors import InputError, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_out(parser, "filters", "folder to write to; the same command goes on with what it holds")
    arguments.add_layers(parser, "the first convolution of each block; all: every convolution")
    arguments.add_channels(parser, "these channels of each layer, instead of the first")
    add = parser.add_argument
    words = "how many channels of each layer, or all (default: 64; all with --layers all)"
    add("--k", metavar="CHANNELS", help=words)
    words = (
        "textbook: the listing's constants; clean: natural colours, steady under small movements (default: textbook)"
    )
    add("--quality", choices=choices("quality"), help=words)
    words = "side, or height and width, of the patterns (default: 64, 200 or 128, as the preset has it)"
    add("--size", type=positive, nargs="+", metavar="PIXELS", help=words)
    words = "patterns side by side in the pictures (default: 8, or 16 for more than 64)"
    add("--columns", type=positive, metavar="NUMBER", help=words)
    add("--seed", type=int, default=0, metavar="NUMBER", help="seed of the initial noise (%(default)s)")
    words = "float32 (default); bfloat16: about half the memory; auto: bfloat16 where it is fast"
    add("--precision", choices=choices("precision"), default="float32", help=words)
    add = parser.add_argument_group("how gradient ascent goes (default: as the preset has it)").add_argument
    words = "the textbook's constants of either edition, or clean (default: dlwp-2025)"
    add("--preset", choices=choices("preset_of_patterns"), help=words)
    add("--steps", type=positive, metavar="NUMBER", help="number of steps")
    add("--step", type=float, metavar="NUMBER", help="how far a step goes")
    add("--normalize", choices=choices("normalize"), help="what a gradient is divided by")
    add("--border", type=int, metavar="NUMBER", help="positions at each side of the map that do not count")
    add("--parameters", choices=choices("parameters"), help="what is optimised: pixels or their Fourier spectrum")
    add("--optimizer", choices=choices("optimizer"), help="plain gradient ascent or Adam")
    words = "layers whose negative activations count as 0: those linear in the image (first), all, none (%(default)s)"
    add("--rectify", choices=choices("rectify"), default="first", help=words)
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Draw what filters respond to most: patterns by gradient ascent from noise."""
    import torch

    from torchviz_cnn.cli import shared
    from torchviz_cnn.layers.defaults import convolutions, input_channels
    from torchviz_cnn.runs.ranks import joined

    size, every = shared.two_sides("--size", args.size), args.layers == ["all"]
    preset: Any = args.preset or ("clean" if args.quality == "clean" else "dlwp-2025")
    changes = shared.options(args, "step", "normalize", "border", "parameters", "optimizer")
    drawn: set[str] = set()
    draw = partial(_draw, args, drawn)
    with joined(shared.device(args.device)) as ranks:
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
                on_layer=draw,
            )
        for layer in atlas.layers if ranks.first else ():
            if layer not in drawn:  # what other processes finished, or earlier runs made
                draw(atlas.patterns(layer))


def _draw(args: argparse.Namespace, drawn: set[str], patterns: tvc.Patterns) -> None:
    """Write the picture of a layer, and note its name."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.media.figures import headed
    from torchviz_cnn.runs import files

    layer = str(patterns.layer)
    columns = args.columns or (8 if len(patterns.values) <= 64 else 16)
    count = counted(len(patterns.values), "channel")
    heading = f"{layer}: {count}, each with its number, by the recipe {patterns.recipe.name}"
    picture = headed(patterns.grid(columns, numbers=True), heading)
    file = files.save_image(args.out / f"{files.safe_name(layer)}.png", picture)
    dead = f", no gradient in {', '.join(map(str, patterns.dead))}" * bool(patterns.dead)
    shared.say(f"{file}: {counted(len(patterns.values), 'filter')}, {int(patterns.raised.sum())} raised{dead}")
    drawn.add(layer)


def _count(text: str | None, every: bool) -> int | None:
    if text == "all" or (text is None and every):
        return None
    if text is not None and not (text.isdigit() and int(text) >= 1):
        raise InputError(f"--k is how many, or all, not {text!r}")
    return int(text or 64)


COMMAND = arguments.Command(
    "filters",
    run,
    add_arguments,
    "",
    (
        "filters --layers blocks.0 blocks.4 --k 16",
        "filters --layers blocks.4 --channels 3 12 --quality clean --size 160",
        "filters --model cats_and_dogs --layers all --out atlas",
        "filters --model vgg16 --weights vgg16-397923af.pth --layers features.10",
    ),
)
