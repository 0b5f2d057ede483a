"""Commands that draw a map for a class over photos: `cam`, `saliency`, `occlusion`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image
from torch import Tensor

import torchviz_cnn as tvc
from torchviz_cnn.cli.shared import (
    Pictures,
    add_network,
    add_other_activations,
    add_out,
    add_photos,
    batches,
    named_photos,
    network,
    positive,
    together,
)
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media import render
from torchviz_cnn.runs import files
from torchviz_cnn.scores.targets import Score

KINDS = ("heatmap", "overlay", "panel")
SALIENCY_METHODS = (
    "saliency", "guided", "deconvnet", "guided-grad-cam", "smooth-grad", "integrated-gradients", "input-x-gradient",
)  # fmt: skip


def add_cam(parser: argparse.ArgumentParser) -> None:
    _add_class_map(parser, "jet")
    add = parser.add_argument
    add(
        "--method", choices=["grad-cam", "cam"], default="grad-cam", help="cam: exact, for networks that end in pooling"
    )
    add("--layer", help="the layer to explain (default: the last one with the last convolution's resolution)")


def cam(args: argparse.Namespace) -> None:
    """draw class heatmaps over photos"""
    if args.method == "cam" and args.score != "logit":
        raise InputError(f"--method cam explains the logit; --score {args.score} is for grad-cam")

    def explain(net: tvc.Network, x: Tensor, target: list[list[int]] | None) -> tvc.Heatmap:
        if args.method == "cam":
            return tvc.class_activation_map(net.model, x, target, layer=args.layer)
        return tvc.grad_cam(net.model, x, args.layer, target, score=args.score)

    _explain(args, explain, "heatmaps")


def add_saliency(parser: argparse.ArgumentParser) -> None:
    _add_class_map(parser, None)
    add = parser.add_argument
    add("--method", choices=SALIENCY_METHODS, default="saliency", help="what to draw (%(default)s)")
    add("--layer", help="the layer of guided Grad-CAM (default: as for cam)")
    add("--channels", choices=["max", "sum"], default="max", help="how the colours are joined (%(default)s)")
    add_other_activations(parser)


def saliency(args: argparse.Namespace) -> None:
    """draw which pixels the answer depends on: gradients, guided backpropagation, SmoothGrad, ..."""

    if args.layer is not None and args.method != "guided-grad-cam":
        raise InputError(
            f"--layer is for --method guided-grad-cam; {args.method} explains the input from the score alone"
        )

    def explain(net: tvc.Network, x: Tensor, target: list[list[int]] | None) -> tvc.Saliency:
        options: dict[str, Any] = {"score": args.score, "reduce": args.channels}
        if args.method == "guided-grad-cam":
            others = args.other_activations
            return tvc.guided_grad_cam(net.model, x, args.layer, target, other_activations=others, **options)
        if args.method in ("saliency", "guided", "deconvnet"):
            rule: Any = "standard" if args.method == "saliency" else args.method
            return tvc.saliency(net.model, x, target, relu=rule, other_activations=args.other_activations, **options)
        methods = {
            "input-x-gradient": tvc.input_x_gradient,
            "smooth-grad": tvc.smooth_grad,
            "integrated-gradients": tvc.integrated_gradients,
        }
        return methods[args.method](net.model, x, target, **options)  # type: ignore[operator, no-any-return]

    _explain(args, explain, args.method, args.method)


def add_occlusion(parser: argparse.ArgumentParser) -> None:
    _add_class_map(parser, "jet")
    add = parser.add_argument
    add("--patch", type=positive, default=32, help="side of the square in pixels of the input (%(default)s)")
    add("--stride", type=positive, help="how far it moves at a time (default: half its side)")


def occlusion(args: argparse.Namespace) -> None:
    """slide a grey square over photos and draw where the score of a class falls"""

    def explain(net: tvc.Network, x: Tensor, target: list[list[int]] | None) -> tvc.Occlusion:
        return tvc.occlusion(
            net.model, x, target, patch=args.patch, stride=args.stride, score=args.score, progress=sys.stderr.isatty()
        )

    _explain(args, explain, "occlusion", "occlusion")


def _add_class_map(parser: argparse.ArgumentParser, colormap: str | None) -> None:
    add_network(parser)
    add_photos(parser)
    add_out(parser)
    add = parser.add_argument
    add("--target", nargs="+", metavar="CLASS", help="class names or indices (default: each photo's top class)")
    add("--score", choices=get_args(Score), default="logit", help="which number of the class (%(default)s)")
    add("--truth", help="the true class, for the title")
    add("--alpha", type=_share, default=0.4, help="strength of the colours over the photo (%(default)s)")
    add("--blend", choices=get_args(render.Blend), default="add", help="add: as in the textbook; mix: translucent")
    add("--colormap", default=colormap, help=f"a name that matplotlib knows ({colormap or 'gray, hot over the photo'})")


def _explain(
    args: argparse.Namespace,
    explain: Callable[[tvc.Network, Tensor, list[list[int]] | None], tvc.Heatmap | tvc.Saliency | tvc.Occlusion],
    numbers: str,
    label: str = "",
) -> None:
    """Draw and save what a method finds for each photo and class. `numbers` names the file with the numbers, `label` goes
    into the pictures' names."""
    render.colormap(np.zeros((1, 1)), args.colormap or "gray")  # an unknown one is told before the work, not after
    net = network(args)
    photos = named_photos(args.images)
    pictures = Pictures(args.out, photos)
    classes = [net.class_index(target) for target in args.target or ()]
    for paths, x in batches(net, photos, args):
        found = explain(net, x, [classes] * len(paths) if classes else None)
        found.save(args.out / together(numbers, photos, paths))
        for index, path in enumerate(paths):
            photo = tvc.read_image(path)
            for k in range(max(len(classes), 1)):
                at = f" at {found.layer}" if isinstance(found, tvc.Heatmap) else ""
                print(f"{path}: {found.headline(index, k, args.truth, net.categories)}; {found.method}{at}")
                parts = [photos[path], label]
                if len(classes) > 1:
                    parts.append(files.safe_name(net.category(int(found.target[index, k]))))
                _draw(args, net, found, photo, pictures.paths("_".join(filter(None, parts)), KINDS), index, k)


def _draw(
    args: argparse.Namespace,
    net: tvc.Network,
    found: tvc.Heatmap | tvc.Saliency | tvc.Occlusion,
    photo: Image.Image,
    paths: Sequence[Path],
    index: int,
    k: int,
) -> None:
    drawn: dict[str, Any] = {"index": index, "nth": k, "colormap": args.colormap}
    over = {**drawn, "alpha": args.alpha, "blend": args.blend}
    shown = found.clipped() if isinstance(found, tvc.Saliency) else found  # a few pixels would leave the others black
    drawings = (
        shown.image(photo, **drawn),
        shown.overlay(photo, **over),
        found.plot(photo, truth=args.truth, categories=net.categories, **over),
    )
    for path, picture in zip(paths, drawings, strict=True):
        files.save_image(path, picture)
    x, y = found.peak(photo, index=index, nth=k)
    where = f"strongest at x {x}, y {y}" if found.map(index, k).any() else "all zero"
    stem = str(paths[0]).removesuffix(f"_{KINDS[0]}.png")
    print(f"  {stem}_{{{','.join(KINDS)}}}.png, {where}")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"alpha is a share from 0 to 1, not {text}")
    return value
