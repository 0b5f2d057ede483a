"""What commands share: the network, the photos in batches, and the names of the files they write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.media.images import Geometry
from torchviz_cnn.runs import files


def add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="cats_and_dogs", help="bundled, torchvision's, or package.module:factory (%(default)s)")
    add("--weights", help="a checkpoint file, 'random', or 'DEFAULT' to download torchvision's")
    add("--labels", help="class names: a file with one per line, or JSON")
    add("--geometry", choices=get_args(Geometry), help="how a photo becomes the input (default: as trained)")
    add("--input-size", type=positive, nargs="+", metavar="PIXELS", help="side, or height and width, of the input")
    add("--device", default="cpu", help="cpu, cuda, mps (%(default)s)")


def add_photos(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that takes photos."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="photos, in any format")
    parser.add_argument("--batch-size", type=positive, default=16, help="photos at once (%(default)s)")


def add_out(parser: argparse.ArgumentParser, default: str = "out") -> None:
    """Where a command writes to."""
    parser.add_argument("--out", type=Path, default=Path(default), help="folder to write to (%(default)s)")


def add_other_activations(parser: argparse.ArgumentParser) -> None:
    """What a backward rule of ReLUs does about activations that are none."""
    parser.add_argument(
        "--other-activations", choices=get_args(OtherActivations), default="error",
        help="plain: let the gradient of activations that are no ReLUs through as it is (default: an error)",
    )  # fmt: skip


def network(args: argparse.Namespace) -> tvc.Network:
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


def named_photos(paths: Sequence[Path]) -> dict[Path, str]:
    """Each photo with a name for its files; read once, so that a broken one is named before anything is written."""
    for path in paths:
        tvc.read_image(path)
    return files.file_names(paths)


def batches(net: tvc.Network, photos: dict[Path, str], args: argparse.Namespace) -> Iterator[tuple[list[Path], Tensor]]:
    paths = list(photos)
    with tqdm(total=len(paths), unit=" photos", leave=False, disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(paths), args.batch_size):
            part = paths[start : start + args.batch_size]
            yield part, torch.stack([net.preprocess(tvc.read_image(path)) for path in part])
            bar.update(len(part))


class Pictures:
    """The names of the pictures a command writes: none is a photo it was given, and none is used twice."""

    def __init__(self, out: Path, photos: Iterable[Path]) -> None:
        files.require_folder(out)
        self._out = out
        self._taken = {path.resolve() for path in photos}

    def paths(self, name: str, kinds: Sequence[str]) -> list[Path]:
        """A path for each kind of picture, `NAME_KIND.png`; with a number after the name where one is taken."""
        copy, free = 1, name
        while any(path.resolve() in self._taken for path in self._of(free, kinds)):
            copy += 1
            free = f"{name}-{copy}"
        paths = self._of(free, kinds)
        self._taken.update(path.resolve() for path in paths)
        return paths

    def _of(self, name: str, kinds: Sequence[str]) -> list[Path]:
        return [self._out / f"{name}_{kind}.png" for kind in kinds]


def together(what: str, photos: dict[Path, str], part: Sequence[Path]) -> str:
    """The name of the file with the numbers of a batch: all photos, or part of them."""
    return f"{what}.npz" if len(photos) == len(part) else f"{what}_{photos[part[0]]}.npz"


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
