"""What `cam`, `saliency` and `occlusion` do: explain photos by a method of the table, and draw its maps over them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import torchviz_cnn as tvc
from torchviz_cnn.attribution.methods import Kind, Method
from torchviz_cnn.cli import clips, shared
from torchviz_cnn.cli.arguments import BATCH_SIZE, option
from torchviz_cnn.cli.choices import methods_of
from torchviz_cnn.cli.class_map_command import OPTIONS
from torchviz_cnn.cli.outputs import Outputs, together
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media import render
from torchviz_cnn.runs import files
from torchviz_cnn.scores.outputs import probabilities

ALSO_LIKELY = 0.2
"""From what probability on the second likeliest class of a photo is one to tell of."""
PICTURES = ("heatmap", "overlay", "panel")


def draw_class_maps(args: argparse.Namespace, kind: Kind) -> None:
    """Explain each photo and class by the chosen method, then draw and save the maps."""
    method, chosen = _chosen(args, kind)
    args.options -= {option(name) for name in OPTIONS if name not in method.options}
    shown = {"progress": True} if "progress" in method.options or kind == "occlusion" else {}
    render.colormap(np.zeros((1, 1)), args.colormap or "gray")  # an unknown one is reported before the work
    if args.preset and (args.blend != "add" or args.colormap):
        raise InputError("--preset says how to blend and colour: leave --blend and --colormap out")
    is_clip = kind == "cam" and clips.is_clip(args)
    if args.batch_size is None:  # of a slow method, the pictures of a photo are written before the next photo begins
        args.batch_size = 1 if method.slow and not is_clip else BATCH_SIZE
    if is_clip:
        clips.draw(args, args.method, chosen)
        return
    photos = shared.named_photos(args)
    outputs = Outputs(args, photos)
    net = shared.network(args)
    target, names = shared.asked_target(net, args.target)
    if args.output is not None:
        chosen["output"] = args.output
    asked = [args.method, *filter(None, [getattr(args, "layer", None)])]
    for paths, images in shared.batches(photos, args, net.preprocess):
        classes = [target] * len(paths) if isinstance(target, list) else target
        maps: Any = method.explain(net, images, target=classes, **chosen, **shown)
        maps.save(outputs.path([together(photos, paths), *asked, *names], ".npz", paths))
        at = f" at {maps.layer}" if isinstance(maps, tvc.Heatmap) else ""
        for index, path in enumerate(paths):
            several = maps.label is not None and maps.target.ndim == 2
            labels = [f"{names[0]}[{nth}]" for nth in range(maps.target.shape[1])] if several else names
            for nth, category in enumerate(labels or [""]):
                shared.say(f"{path}: {maps.headline(index, nth, args.truth)}; {maps.method}{at}")
                parts = [photos[path], *asked, *filter(None, [category])]
                _draw(args, maps, outputs.paths(parts, [f"_{kind}.png" for kind in PICTURES], [path]), index, nth)
            if args.method == "grad-cam" and not args.target:
                _tell_of_rival(net, maps, index)


def _draw(args: argparse.Namespace, maps: Any, paths: list[Path], index: int, nth: int) -> None:
    which: dict[str, Any] = {"index": index, "nth": nth}
    coloured = {**which, "colormap": args.colormap}
    over = {**coloured, "alpha": args.alpha, "blend": args.blend}
    shown = maps.clipped() if isinstance(maps, tvc.Saliency) else maps  # a few pixels would leave the others black
    overlay = shown.overlay(**over, preset=args.preset)
    drawings = (shown.image(**coloured), overlay, maps.plot(truth=args.truth, **over))
    for path, picture in zip(paths, drawings, strict=True):
        files.save_image(path, picture)
    x, y = maps.peak(**which)
    where = f"strongest at x {x}, y {y}" if maps.map(**which).any() else "all zero"
    stem = str(paths[0]).removesuffix(f"_{PICTURES[0]}.png")
    shared.say(f"  {stem}_{{{','.join(PICTURES)}}}.png, {where}")


def _tell_of_rival(net: tvc.Network, maps: tvc.Heatmap, index: int) -> None:
    """Say where the second likeliest class of a photo is likely too, and what tells the places of both apart."""
    shares, classes = probabilities(maps.logits[index : index + 1], maps.activation)[0].sort(descending=True)
    if len(shares) > 1 and float(shares[1]) >= ALSO_LIKELY:
        also = f"{net.category(int(classes[1]))} ({float(shares[1]):.3f})"
        shared.say(f"  also likely: {also}; if the photo shows both, --method competitive-cam tells them apart")


def _chosen(args: argparse.Namespace, kind: Kind) -> tuple[Method, dict[str, Any]]:
    """The method and the options given for it. Raises InputError for an option that it does not take."""
    methods = methods_of(kind)
    method = methods[args.method]
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    for name in given:
        if name not in method.options:
            takers = [taker for taker, other in methods.items() if name in other.options]
            raise InputError(f"{option(name)} is for --method {', '.join(takers)}, not for {args.method}")
    return method, given
