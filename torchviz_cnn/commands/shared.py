"""What commands share: the network, the photos in batches, and the names of the files they write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

import torchviz_cnn as tvc
from torchviz_cnn import results
from torchviz_cnn.errors import InputError
from torchviz_cnn.images import Geometry


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
    return results.file_names(paths)


def batches(net: tvc.Network, photos: dict[Path, str], args: argparse.Namespace) -> Iterator[tuple[list[Path], Tensor]]:
    paths = list(photos)
    with tqdm(total=len(paths), unit=" photos", leave=False, disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(paths), args.batch_size):
            part = paths[start : start + args.batch_size]
            yield part, torch.stack([net.preprocess(tvc.read_image(path)) for path in part])
            bar.update(len(part))


def together(what: str, photos: dict[Path, str], part: Sequence[Path]) -> str:
    """The name of the file with the numbers of a batch: all photos, or part of them."""
    return f"{what}.npz" if len(photos) == len(part) else f"{what}_{photos[part[0]]}.npz"


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
