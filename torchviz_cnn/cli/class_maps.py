"""What `cam`, `saliency` and `occlusion` share: a method of the table, its options, and a map drawn over photos."""

from __future__ import annotations

import argparse
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, get_args

import numpy as np

import torchviz_cnn as tvc
from torchviz_cnn.attribution.methods import SUITS, Kind, Method, methods_of
from torchviz_cnn.attribution.saliency import Reduce
from torchviz_cnn.cli import clips, shared
from torchviz_cnn.cli.outputs import Outputs, together
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media import render
from torchviz_cnn.runs import files
from torchviz_cnn.scores.outputs import probabilities
from torchviz_cnn.scores.targets import Score

ALSO_LIKELY = 0.2
"""From what probability on the second likeliest class of a photo is one to tell of."""
PICTURES = ("heatmap", "overlay", "panel")
_underscored = methodcaller("replace", "-", "_")
_OPTIONS: dict[str, dict[str, Any]] = {
    "layer": {"help": "whose maps are weighed (default: the last with the last convolution's resolution)"},
    "score": {"type": _underscored, "choices": get_args(Score), "help": "the score to explain (default: logit)"},
    "reduce": {"choices": get_args(Reduce), "help": "how the colours of a pixel become one value (default: max)"},
    "other_activations": shared.OTHER_ACTIVATIONS,
    "patch": {"type": shared.positive, "help": "side of the square in pixels of the input (default: 32)"},
    "stride": {"type": shared.positive, "help": "how far the square moves at a time (default: half its side)"},
}
"""The options of methods that the command line offers, by the names that the table of methods gives them."""


def class_map_command(kind: Kind, words: str, **options: Any) -> shared.Command:
    """The command that draws the maps of a kind; `words` are its help, `options` go to every method."""

    def run(args: argparse.Namespace) -> None:
        _draw_class_maps(args, kind, **options)

    run.__doc__ = words
    return shared.Command(kind, run, partial(_add_class_map, kind=kind))


def _add_class_map(parser: argparse.ArgumentParser, kind: Kind) -> None:
    """Add the methods of a kind, the options that they take, and how a map is drawn."""
    shared.add_network(parser)
    if kind == "cam":
        shared.add_photos(parser, "photos, or folders of them; or one clip, or the number of a camera")
        shared.add_out(parser, words="folder to write to, or the clip, which makes one of a folder of frames")
        clips.add_arguments(parser)
    else:
        shared.add_photos(parser)
        shared.add_out(parser)
    methods, add = _methods(kind), parser.add_argument
    first = next(iter(methods))
    if len(methods) > 1:
        add("--method", choices=list(methods), default=first, help="what to draw: see below (%(default)s)")
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        rows = [f"  {name:22}{method.shows} ({method.paper})" for name, method in methods.items()]
        parser.epilog = "\n".join(["methods:", *rows])
        if kind == "cam":
            begin = [f"{name.replace('_', '-')} for {what}" for name, what in SUITS.items()]
            parser.epilog += f"\n\nBegin with {', and '.join(begin)}."
    else:
        parser.set_defaults(method=first)
    if kind == "occlusion":
        parser.set_defaults(batch_size=1)  # minutes each: pictures of a photo come as soon as it is done
    shared.add_target(parser, "each photo's top class")
    for name, option in _OPTIONS.items():
        takers = [taker for taker, method in methods.items() if name in method.options]
        if takers:
            only = f"; for {', '.join(takers)}" if len(takers) < len(methods) else ""
            add(shared.option(name), **{**option, "help": option["help"] + only})
    add("--truth", help="the true class, for the title")
    add("--alpha", type=shared.share, default=0.4, help="strength of the colours over the photo (%(default)s)")
    add("--blend", choices=get_args(render.Blend), default="add", help="add: as in the textbook; mix: translucent")
    add("--colormap", help="a name that matplotlib knows (default: jet; for saliency gray, and hot over the photo)")
    add("--preset", choices=get_args(render.Preset), help="draw the overlay as the textbook's listing, to the byte")


def _draw_class_maps(args: argparse.Namespace, kind: Kind, **options: Any) -> None:
    """Explain each photo and class by the chosen method, then draw and save the maps."""
    method, chosen = _chosen(args, kind)
    shown = {"progress": True} if "progress" in method.options else {}
    render.colormap(np.zeros((1, 1)), args.colormap or "gray")  # an unknown one is reported before the work
    if args.preset and (args.blend != "add" or args.colormap):
        raise InputError("--preset says how to blend and colour: leave --blend and --colormap out")
    if kind == "cam" and clips.is_clip(args):
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
        maps: Any = method.explain(net, images, target=classes, **chosen, **options, **shown)
        if maps.label is None:
            shared.require_labels(args, net, maps.logits.shape[1])
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
    methods = _methods(kind)
    method = methods[args.method]
    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name, None) is not None}
    for name in given:
        if name not in method.options:
            takers = [taker for taker, other in methods.items() if name in other.options]
            raise InputError(f"{shared.option(name)} is for --method {', '.join(takers)}, not for {args.method}")
    return method, given


def _methods(kind: Kind) -> dict[str, Method]:
    return {name.replace("_", "-"): method for name, method in methods_of(kind).items()}
