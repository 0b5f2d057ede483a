"""What commands share: options, the network, the photos in batches, and the names of the files they write."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from PIL import Image
from tqdm import tqdm

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.media.images import Geometry
from torchviz_cnn.runs import files

OTHER_ACTIVATIONS: dict[str, Any] = {
    "choices": get_args(OtherActivations),
    "help": "plain: take the gradient of activations that are no ReLUs as it is (default: an error)",
}


class Command(NamedTuple):
    """A command of the command line."""

    name: str
    run: Callable[[argparse.Namespace], None]
    """What it does; the docstring is its help."""
    add_arguments: Callable[[argparse.ArgumentParser], None]


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a network."""
    add = parser.add_argument
    add("--model", default="cats_and_dogs", help="bundled, torchvision's, or package.module:factory (%(default)s)")
    add("--weights", help="a checkpoint file, 'random', or 'DEFAULT' to download torchvision's")
    add("--labels", help="class names: a file with one per line, or JSON")
    add("--geometry", choices=get_args(Geometry), help="how a photo becomes the input (default: as trained)")
    add("--input-size", type=positive, nargs="+", metavar="PIXELS", help="side, or height and width, of the input")
    add("--device", default="cpu", help="cpu, cuda, mps (%(default)s)")


def add_photos(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that takes photos."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="photos, in any format")
    parser.add_argument("--batch-size", type=positive, default=16, help="photos at once (%(default)s)")


def add_out(parser: argparse.ArgumentParser, default: str = "out") -> None:
    """Add the folder that a command writes to."""
    parser.add_argument("--out", type=Path, default=Path(default), help="folder to write to (%(default)s)")


def add_layers(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option of a command that takes several layers."""
    words = f"names or glob patterns (default: {default})"
    parser.add_argument("--layers", "--layer", dest="layers", nargs="+", metavar="LAYER", help=words)


def add_channels(parser: argparse.ArgumentParser, words: str) -> None:
    """Add the option that selects channels by their numbers."""
    parser.add_argument("--channels", "--channel", dest="channels", type=whole, nargs="+", metavar="NUMBER", help=words)


def add_budget(parser: argparse.ArgumentParser, default: float) -> None:
    """Add the time that filter patterns of a page may take."""
    words = "how long filter patterns may be made, from the start; 'all' for every channel shown (%(default)s)"
    parser.add_argument("--budget", type=_seconds, default=default, metavar="SECONDS", help=words)


def network(args: argparse.Namespace) -> tvc.Network:
    """The network that the options ask for."""
    return tvc.load_model(
        args.model,
        args.weights,
        labels=args.labels,
        geometry=args.geometry,
        input_size=two_sides("--input-size", args.input_size),
        device=args.device,
    )


def options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names, which are those of the function's parameters."""
    return {name: getattr(args, name) for name in names}


def two_sides(option: str, numbers: Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width from one number or two. Raises InputError for more."""
    if numbers is not None and len(numbers) > 2:
        raise InputError(f"{option} takes a side, or height and width, not {len(numbers)} numbers")
    return None if numbers is None else (numbers[0], numbers[-1])


def named_photos(paths: Sequence[Path]) -> dict[Path, str]:
    """Each photo with a name for its files; read once, so that a broken one is named before anything is written."""
    for path in paths:
        tvc.read_image(path)
    return files.file_names(paths)


def batches(photos: Iterable[Path], args: argparse.Namespace) -> Iterator[tuple[list[Path], list[Image.Image]]]:
    """The photos, so many at a time, with a bar where a terminal shows it."""
    paths = list(photos)
    with tqdm(total=len(paths), unit=" photos", leave=False, disable=not on_terminal()) as bar:
        for start in range(0, len(paths), args.batch_size):
            part = paths[start : start + args.batch_size]
            yield part, [tvc.read_image(path) for path in part]
            bar.update(len(part))


def on_terminal() -> bool:
    """Whether someone can see a bar of progress."""
    return sys.stderr.isatty()


class Pictures:
    """The names of the pictures a command writes: none is a photo it was given, and none is used twice."""

    def __init__(self, out: Path, photos: Iterable[Path]) -> None:
        files.require_folder(out)
        self._out = out
        self._taken = {path.resolve() for path in photos}

    def paths(self, name: str, kinds: Sequence[str]) -> list[Path]:
        """A path for each kind of picture, `NAME_KIND.png`; with a number after the name where one is taken."""
        copy, free = 1, name
        while True:
            paths = [self._out / f"{free}_{kind}.png" for kind in kinds]
            places = {path.resolve() for path in paths}
            if not places & self._taken:
                self._taken |= places
                return paths
            copy += 1
            free = f"{name}-{copy}"


def together(what: str, photos: dict[Path, str], part: Sequence[Path]) -> str:
    """The name of the file with the numbers of a batch: all photos, or part of them."""
    return f"{what}.npz" if len(photos) == len(part) else f"{what}_{photos[part[0]]}.npz"


def whole(text: str, least: int = 0) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def _seconds(text: str) -> float | None:
    """A number of seconds; None for `all`."""
    with contextlib.suppress(ValueError):
        if text == "all" or float(text) >= 0:
            return None if text == "all" else float(text)
    raise argparse.ArgumentTypeError(f"{text} is no number of seconds, nor 'all'")
