"""The command line: arguments in, one call of the library each, files and a few lines out."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import torchviz_cnn as tvc
from torchviz_cnn import demo, render, results
from torchviz_cnn.errors import InputError, did_you_mean
from torchviz_cnn.images import Geometry
from torchviz_cnn.methods.scores import Score


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument command: invalid choice: '(.*?)'", message)
        if wrong:
            message = (
                f"no command {wrong[1]!r}{did_you_mean(wrong[1], COMMANDS) or ';'} there are {', '.join(COMMANDS)}"
            )
        self.exit(2, f"{self.prog}: error: {message}\n")


def layers(args: argparse.Namespace) -> None:
    """print the network's layers: shapes, parameters, receptive fields"""
    net = _network(args)
    print(tvc.describe(net.model, net.input_size))


def predict(args: argparse.Namespace) -> None:
    """print the classes that the network sees in photos"""
    net = _network(args)
    photos = _photos(args.images)
    for paths, x in _batches(net, photos, args):
        chances = tvc.predict(net.model, x)
        values, indices = chances.topk(min(args.top, chances.shape[1]))
        for path, row, classes in zip(paths, values.tolist(), indices.tolist(), strict=True):
            print(path)
            for value, index in zip(row, classes, strict=True):
                print(f"  {value:.3f}  {net.category(index)} ({index})")


def activations(args: argparse.Namespace) -> None:
    """draw what layers give for photos: a grid of channels per layer"""
    net = _network(args)
    photos = _photos(args.images)
    for paths, x in _batches(net, photos, args):
        acts = tvc.capture(net.model, x, args.layer or None)
        drawn = [name for name, maps in acts.items() if maps.ndim == 4 and maps.shape[2] * maps.shape[3] > 1]
        if not drawn:
            raise InputError(f"none of the layers {', '.join(acts)} has maps larger than one pixel to draw")
        for index, path in enumerate(paths):
            folder = args.out / photos[path]
            print(f"{path} -> {folder}")
            for place, name in enumerate(tqdm(drawn, photos[path], leave=False, disable=not sys.stderr.isatty())):
                results.save_image(folder / f"{place:02d}_{results.safe_name(name)}.png", acts.plot(name, index))
                shape = " x ".join(map(str, acts[name].shape[1:]))
                print(f"  {name}: {shape}, {float(acts.sparsity(name)[index]):.0%} of the channels all zero")
            if args.save:
                one = tvc.Activations({name: tensor[index : index + 1] for name, tensor in acts.items()})
                one.save(folder / "activations.safetensors")


def cam(args: argparse.Namespace) -> None:
    """draw class heatmaps over photos"""
    net = _network(args)
    photos = _photos(args.images)
    classes = [net.class_index(target) for target in args.target or ()]
    for paths, x in _batches(net, photos, args):
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
        heat.save(args.out / _together("heatmaps", photos, paths))


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


def occlusion(args: argparse.Namespace) -> None:
    """slide a grey square over photos and draw where the score of a class falls"""

    def explain(net: tvc.Network, x: Tensor, target: list[list[int]] | None) -> tvc.Occlusion:
        return tvc.occlusion(
            net.model, x, target, patch=args.patch, stride=args.stride, score=args.score, progress=sys.stderr.isatty()
        )

    _explain(args, explain)


def deconvnet(args: argparse.Namespace) -> None:
    """project the strongest units of layers down to the pixels of photos that drove them"""
    net = _network(args)
    photos = _photos(args.images)
    layers = args.layer or tvc.layer_names(net.model, types=torch.nn.Conv2d)
    for paths, x in _batches(net, photos, args):
        found = tvc.deconvnet(net.model, x, layers, args.channel, top=None if args.channel else args.top)
        for index, path in enumerate(paths):
            file = results.save_image(
                args.out / f"{photos[path]}_deconvnet.png", found.plot(tvc.read_image(path), index=index)
            )
            units = zip(found.layers, found.channels[index].tolist(), found.activations[index].tolist(), strict=True)
            print(f"{path} -> {file}")
            for layer, channel, activation in units:
                print(f"  {layer} channel {channel}: {activation:.3g}")
        found.save(args.out / _together("deconvnet", photos, paths))


def run_demo(args: argparse.Namespace) -> None:
    """see it work on the bundled network: activations, class heatmaps, a page"""
    page = demo.run(args.out, args.images, progress=sys.stderr.isatty())
    print(f"open {page}")


COMMANDS = {
    "demo": run_demo,
    "layers": layers,
    "predict": predict,
    "activations": activations,
    "cam": cam,
    "saliency": saliency,
    "deconvnet": deconvnet,
    "occlusion": occlusion,
}
SALIENCY_METHODS = (
    "saliency", "guided", "deconvnet", "guided-grad-cam", "smooth-grad", "integrated-gradients", "input-x-gradient",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        with _surroundings():
            COMMANDS[args.command](args)
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the user's network or file may raise anything; --traceback shows where
        if args.traceback:
            raise
        kind = "" if isinstance(error, tvc.TorchvizError) else f"{type(error).__name__}: "
        print(f"{parser.prog}: error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Networks beside the user can be imported, warnings are one line, and no name is too odd for the terminal."""
    path = list(sys.path)
    sys.path.insert(0, os.getcwd())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        sys.path[:] = path


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("torchviz-cnn", description="See what a convolutional network sees.")
    parser.add_argument("--version", action="version", version=f"torchviz-cnn {tvc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    made = {
        name: commands.add_parser(name, help=run.__doc__, description=run.__doc__) for name, run in COMMANDS.items()
    }
    drawing = ("activations", "cam", "saliency", "deconvnet", "occlusion")
    for name in ("layers", "predict", *drawing):
        _add_network(made[name])
    for name in ("predict", *drawing):
        made[name].add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="photos, in any format")
        made[name].add_argument("--batch-size", type=_positive, default=16, help="photos at once (%(default)s)")
    for name in drawing:
        made[name].add_argument("--out", type=Path, default=Path("out"), help="folder to write to (%(default)s)")
    made["demo"].add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="photos (default: a cat)")
    made["demo"].add_argument(
        "--out", type=Path, default=Path("torchviz-demo"), help="folder to write to (%(default)s)"
    )
    made["predict"].add_argument("--top", type=_positive, default=5, help="how many classes (%(default)s)")
    made["activations"].add_argument(
        "--layer", nargs="+", help="names or glob patterns (default: all convolution and pooling layers)"
    )
    made["activations"].add_argument("--save", action="store_true", help="also write the tensors, as safetensors")
    add = made["cam"].add_argument
    add(
        "--method", choices=["grad-cam", "cam"], default="grad-cam", help="cam: exact, for networks that end in pooling"
    )
    add("--layer", help="the layer to explain (default: the last one with the last convolution's resolution)")
    _add_class_map(made["cam"], "jet")
    _add_class_map(made["saliency"], None)
    _add_class_map(made["occlusion"], "jet")
    add = made["saliency"].add_argument
    add("--method", choices=SALIENCY_METHODS, default="saliency", help="what to draw (%(default)s)")
    add("--layer", help="the layer of guided Grad-CAM (default: as for cam)")
    add("--channels", choices=["max", "sum"], default="max", help="how the colours are joined (%(default)s)")
    add = made["deconvnet"].add_argument
    add("--layer", nargs="+", help="a column each (default: all convolutions)")
    add("--channel", type=int, nargs="+", help="channels of each layer (default: the strongest for each photo)")
    add("--top", type=_positive, default=4, help="how many of the strongest channels (%(default)s)")
    add = made["occlusion"].add_argument
    add("--patch", type=_positive, default=32, help="side of the square in pixels of the input (%(default)s)")
    add("--stride", type=_positive, help="how far it moves at a time (default: half its side)")
    for command in made.values():
        command.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_class_map(parser: argparse.ArgumentParser, colormap: str | None) -> None:
    add = parser.add_argument
    add("--target", nargs="+", metavar="CLASS", help="class names or indices (default: each photo's top class)")
    add("--score", choices=get_args(Score), default="logit", help="which number of the class (%(default)s)")
    add("--truth", help="the true class, for the title")
    add("--alpha", type=float, default=0.4, help="strength of the colours over the photo (%(default)s)")
    add("--blend", choices=get_args(render.Blend), default="add", help="add: as in the textbook; mix: translucent")
    add("--colormap", default=colormap, help=f"a name that matplotlib knows ({colormap or 'gray, hot over the photo'})")


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="cats_and_dogs", help="bundled, torchvision's, or package.module:factory (%(default)s)")
    add("--weights", help="a checkpoint file, 'random', or 'DEFAULT' to download torchvision's")
    add("--labels", help="class names: a file with one per line, or JSON")
    add("--geometry", choices=get_args(Geometry), help="how a photo becomes the input (default: as trained)")
    add("--input-size", type=_positive, nargs="+", metavar="PIXELS", help="side, or height and width, of the input")
    add("--device", default="cpu", help="cpu, cuda, mps (%(default)s)")


def _network(args: argparse.Namespace) -> tvc.Network:
    size = args.input_size
    if size is not None and len(size) > 2:
        raise InputError(f"--input-size takes a side, or height and width, not {len(size)} numbers")
    return tvc.load_model(
        args.model,
        args.weights,
        labels=args.labels,
        geometry=args.geometry,
        input_size=None if size is None else (size[0], size[-1]),
        device=args.device,
    )


def _photos(paths: Sequence[Path]) -> dict[Path, str]:
    """Each photo with a name for its files; read once, so that a broken one is named before anything is written."""
    for path in paths:
        tvc.read_image(path)
    return results.file_names(paths)


def _batches(
    net: tvc.Network, photos: dict[Path, str], args: argparse.Namespace
) -> Iterator[tuple[list[Path], Tensor]]:
    paths = list(photos)
    with tqdm(total=len(paths), unit=" photos", leave=False, disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(paths), args.batch_size):
            part = paths[start : start + args.batch_size]
            yield part, torch.stack([net.preprocess(tvc.read_image(path)) for path in part])
            bar.update(len(part))


def _explain(
    args: argparse.Namespace,
    explain: Callable[[tvc.Network, Tensor, list[list[int]] | None], tvc.Saliency | tvc.Occlusion],
) -> None:
    """Draw and save what a method of the input finds for each photo and class."""
    net = _network(args)
    photos = _photos(args.images)
    classes = [net.class_index(target) for target in args.target or ()]
    for paths, x in _batches(net, photos, args):
        found = explain(net, x, [classes] * len(paths) if classes else None)
        for index, path in enumerate(paths):
            photo = tvc.read_image(path)
            print(f"{path}: {found.headline(index, 0, args.truth, net.categories)}; {found.method}")
            for k in range(max(len(classes), 1)):
                _write_heatmap(args, net, found, photo, photos[path], index, k)
        found.save(args.out / _together(args.command, photos, paths))


def _together(what: str, photos: dict[Path, str], part: Sequence[Path]) -> str:
    """The name of the file with the numbers of a batch: all photos, or part of them."""
    return f"{what}.npz" if len(photos) == len(part) else f"{what}_{photos[part[0]]}.npz"


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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
    if issubclass(category, tvc.TorchvizWarning):
        with contextlib.suppress(OSError):
            print(f"torchviz-cnn: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
