"""Commands that draw a map for a class over photos: `cam`, `saliency`, `occlusion`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, get_args

from PIL import Image
from torch import Tensor

import torchviz_cnn as tvc
from torchviz_cnn import render, results
from torchviz_cnn.commands.shared import (
    add_network,
    add_out,
    add_photos,
    batches,
    named_photos,
    network,
    positive,
    together,
)
from torchviz_cnn.methods.scores import Score

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
    net = network(args)
    photos = named_photos(args.images)
    classes = [net.class_index(target) for target in args.target or ()]
    for paths, x in batches(net, photos, args):
        target = [classes] * len(paths) if classes else None
        if args.method == "cam":
            heat = tvc.class_activation_map(net.model, x, target, layer=args.layer)
        else:
            heat = tvc.grad_cam(net.model, x, args.layer, target, score=args.score)
        for index, path in enumerate(paths):
            photo = tvc.read_image(path)
            print(f"{path}: {heat.headline(index, 0, args.truth, net.categories)}; {heat.method} at {heat.layer}")
            for k in range(max(len(classes), 1)):
                _write_heatmap(args, net, heat, photo, photos[path], index, k)
        heat.save(args.out / together("heatmaps", photos, paths))


def add_saliency(parser: argparse.ArgumentParser) -> None:
    _add_class_map(parser, None)
    add = parser.add_argument
    add("--method", choices=SALIENCY_METHODS, default="saliency", help="what to draw (%(default)s)")
    add("--layer", help="the layer of guided Grad-CAM (default: as for cam)")
    add("--channels", choices=["max", "sum"], default="max", help="how the colours are joined (%(default)s)")


def saliency(args: argparse.Namespace) -> None:
    """draw which pixels the answer depends on: gradients, guided backpropagation, SmoothGrad, ..."""

    def explain(net: tvc.Network, x: Tensor, target: list[list[int]] | None) -> tvc.Saliency:
        options = {"score": args.score, "channels": args.channels}
        if args.method == "guided-grad-cam":
            return tvc.guided_grad_cam(net.model, x, args.layer, target, **options)
        if args.method in ("saliency", "guided", "deconvnet"):
            rule: Any = "standard" if args.method == "saliency" else args.method
            return tvc.saliency(net.model, x, target, relu=rule, **options)
        methods = {
            "input-x-gradient": tvc.input_x_gradient,
            "smooth-grad": tvc.smooth_grad,
            "integrated-gradients": tvc.integrated_gradients,
        }
        return methods[args.method](net.model, x, target, **options)  # type: ignore[operator, no-any-return]

    _explain(args, explain)


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

    _explain(args, explain)


def _add_class_map(parser: argparse.ArgumentParser, colormap: str | None) -> None:
    add_network(parser)
    add_photos(parser)
    add_out(parser)
    add = parser.add_argument
    add("--target", nargs="+", metavar="CLASS", help="class names or indices (default: each photo's top class)")
    add("--score", choices=get_args(Score), default="logit", help="which number of the class (%(default)s)")
    add("--truth", help="the true class, for the title")
    add("--alpha", type=float, default=0.4, help="strength of the colours over the photo (%(default)s)")
    add("--blend", choices=get_args(render.Blend), default="add", help="add: as in the textbook; mix: translucent")
    add("--colormap", default=colormap, help=f"a name that matplotlib knows ({colormap or 'gray, hot over the photo'})")


def _explain(
    args: argparse.Namespace,
    explain: Callable[[tvc.Network, Tensor, list[list[int]] | None], tvc.Saliency | tvc.Occlusion],
) -> None:
    """Draw and save what a method of the input finds for each photo and class."""
    net = network(args)
    photos = named_photos(args.images)
    classes = [net.class_index(target) for target in args.target or ()]
    for paths, x in batches(net, photos, args):
        found = explain(net, x, [classes] * len(paths) if classes else None)
        for index, path in enumerate(paths):
            photo = tvc.read_image(path)
            print(f"{path}: {found.headline(index, 0, args.truth, net.categories)}; {found.method}")
            for k in range(max(len(classes), 1)):
                _write_heatmap(args, net, found, photo, photos[path], index, k)
        found.save(args.out / together(args.command, photos, paths))


def _write_heatmap(
    args: argparse.Namespace,
    net: tvc.Network,
    heat: tvc.Heatmap | tvc.Saliency | tvc.Occlusion,
    photo: Image.Image,
    name: str,
    index: int,
    k: int,
) -> None:
    drawn: dict[str, Any] = {"index": index, "k": k, "colormap": args.colormap}
    over = {**drawn, "alpha": args.alpha, "blend": args.blend}
    if heat.target.ndim == 2 and heat.target.shape[1] > 1:
        name = f"{name}_{results.safe_name(net.category(int(heat.target[index, k])))}"
    pictures = {
        "heatmap": heat.image(photo, **drawn),
        "overlay": heat.overlay(photo, **over),
        "panel": heat.plot(photo, truth=args.truth, categories=net.categories, **over),
    }
    for kind, picture in pictures.items():
        results.save_image(args.out / f"{name}_{kind}.png", picture)
    x, y = heat.peak(photo, index=index, k=k)
    print(f"  {args.out / name}_{{heatmap,overlay,panel}}.png, strongest at x {x}, y {y}")
