"""A folder of photos as a dataset, which files belong to photos, and how torchvision's datasets prepare theirs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import ImageError, InputError, counted
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.media.datasets.names import in_order
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.images import Preprocess, read_stored, require_file, size_of


class PhotoFolder(Photos):
    """All photos below a folder, in the order of their names: a map-style dataset of `(input, label)`.

    Where every photo lies in a folder of its class (`cat/1.jpg`, `dog/7.jpg`), `categories` are these folders' names
    and the label an index into them; otherwise the label is -1. Without `preprocess`, items are photos, not inputs.
    Files are opened only when asked for. Raises ImageError for a folder that does not exist or has no photos.
    """

    def __init__(self, path: str | Path, preprocess: Callable[[Image.Image], Tensor] | None = None) -> None:
        self.path = checks.path("a folder of photos", path)
        self.preprocess = preprocess
        if not self.path.is_dir():
            link = "it is a link to nothing" if self.path.is_symlink() else "no such folder"
            raise ImageError(f"{path} is not a folder of photos: {'it is a file' if self.path.exists() else link}")
        self.names = in_order(_photos_below(self.path))
        """Path of each photo below the folder, with `/`; those of very many photos are in a temporary file."""
        if not self.names:
            pattern = self.path / "*.tar"
            tars = f"; it has tar files, whose photos TarShards, top, survey and trust read: {pattern}"
            inside = tars if any(self.path.glob("*.tar")) else ""
            raise ImageError(f"there are no photos in {path}, nor in the folders below it{inside}")
        tops = set(map(_top, self.names))
        self.categories = tuple(sorted(top for top in tops if top is not None)) if None not in tops else ()
        labels = _Labels(self.names, self.categories)
        self.labels = list(labels) if isinstance(self.names, list) else labels

    @property
    def root(self) -> str:
        """The folder, as an absolute path."""
        return str(self.path.resolve())

    def stored(self, index: int) -> Pixels:
        """The photo with the depth and the bands of its file."""
        return read_stored(self.path / self.names[index])

    def encoded(self, index: int) -> bytes:
        """The bytes of the photo's file, of whatever kind. Raises ImageError for what is no file."""
        file = self.path / self.names[index]
        require_file(file)
        return file.read_bytes()

    def size(self, index: int) -> tuple[int, int]:
        """Return the photo's (width, height), of which only the head is read."""
        return size_of(self.path / self.names[index])

    def listing(self) -> dict[str, Any]:
        """How many photos there are, and a checksum over their names and sizes."""
        digest = hashlib.sha256()
        for name in self.names:
            try:
                size = os.path.getsize(os.path.join(self.path, name))
            except OSError:
                size = -1
            digest.update(f"{name} {size}\n".encode(errors="surrogateescape"))
        return {"images": len(self), "checksum": digest.hexdigest(), "of": "names and sizes"}

    def __repr__(self) -> str:
        classes = f" in {counted(len(self.categories), 'class')}" if self.categories else ""
        return f"PhotoFolder({str(self.path)!r}: {counted(len(self), 'photo')}{classes})"


class _Labels(Sequence[int]):
    """The class of each photo, from its name: nothing is kept for each."""

    def __init__(self, names: Sequence[str], categories: tuple[str, ...]) -> None:
        self.names = names
        self.place = {name: i for i, name in enumerate(categories)}

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self._of(name) for name in self.names[index]]
        return self._of(self.names[index])

    def __iter__(self) -> Iterator[int]:
        return map(self._of, self.names)

    def _of(self, name: str) -> int:
        return self.place.get(_top(name) or "", -1)


def _top(name: str) -> str | None:
    """The folder that a photo's path begins with; None for one that lies in no folder."""
    return name.partition("/")[0] if "/" in name else None


def _photos_below(folder: Path) -> Iterator[str]:
    """The paths of all photos below a folder, with `/`, in no order; links are followed, no folder is entered twice."""
    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    waiting, visited = [""], set()
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below)
        real = os.path.realpath(place)
        if real in visited:  # a link back to where it came from
            continue
        visited.add(real)
        folders = []
        for name, is_folder in _entries(place):
            if name.startswith("."):
                continue
            if is_folder:
                folders.append(f"{below}{name}/")
            elif os.path.splitext(name)[1].lower() in readable:
                yield f"{below}{name}"
        waiting += reversed(folders)


def _entries(place: str) -> Iterator[tuple[str, bool]]:
    """What is in a folder, and whether it is a folder, one by one; nothing where it cannot be read."""
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                yield entry.name, _is_folder(entry)
    except OSError:
        return


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def by_name(files: Sequence[str], names: Sequence[str], what: str) -> dict[int, str]:
    """The file of each name that has one, by its place: the one called as the longest end of the name's path.

    Suffixes of pictures do not count. Raises InputError for two files that are called alike, and for one file that
    would be that of two names.

    >>> by_name(["cat/1.png", "2.png"], ["photos/cat/1.jpg", "photos/dog/1.jpg", "photos/dog/2.jpg"], "mask")
    {0: 'cat/1.png', 2: '2.png'}
    """
    known: dict[str, str] = {}
    for file in files:
        key = without_suffix(file)
        if key in known:
            raise InputError(f"two {what}s are called alike, but for the kind of file: {known[key]} and {file}")
        known[key] = file
    chosen: dict[int, str] = {}
    owners: dict[str, str] = {}
    for place, name in enumerate(names):
        parts = without_suffix(name).split("/")
        ends = ("/".join(parts[first:]) for first in range(len(parts)))
        file_of = next((known[end] for end in ends if end in known), None)
        if file_of is None:
            continue
        if file_of in owners:
            raise InputError(f"the {what} {file_of} would be that of two photos: {owners[file_of]} and {name}")
        owners[file_of], chosen[place] = name, file_of
    return chosen


def without_suffix(name: str) -> str:
    """A path without the suffix of a picture, with `/`."""
    path = PurePath(name.replace(os.sep, "/"))
    is_picture = path.suffix.lower() in Image.registered_extensions()
    return (path.with_suffix("") if is_picture else path).as_posix()


def file_of_item(dataset: Any, index: int) -> str | None:
    """The file that an item is of, as the `samples` of torchvision's `ImageFolder` and its like tell, one for each."""
    samples = getattr(dataset, "samples", None)
    if not callable(getattr(dataset, "loader", None)) or not isinstance(samples, list):
        return None
    if not hasattr(dataset, "__len__") or len(samples) != len(dataset) or not -len(samples) <= index < len(samples):
        return None
    sample = samples[index]
    return str(sample[0]) if isinstance(sample, (tuple, list)) and isinstance(sample[0], (str, Path)) else None


def preprocess_of_transform(transform: Any) -> Preprocess | None:
    """Where on a photo a torchvision transform looks, as a Preprocess; None for one that is not understood.

    Understood are torchvision's presets for classification, and a Resize, CenterCrop, or both, followed by whatever
    turns pixels into numbers without moving them.
    """
    if transform is None or isinstance(transform, Preprocess):
        return transform
    steps = list(getattr(transform, "transforms", [transform]))
    if len(steps) == 1 and isinstance(getattr(steps[0], "crop_size", None), list):  # torchvision's preset
        resize, crop = _both_sides(steps[0].resize_size), _both_sides(steps[0].crop_size)
        return Preprocess(crop, "crop", resize[0]) if len(set(resize)) == 1 else None
    if any(not type(step).__module__.startswith("torchvision.transforms") for step in steps):
        return None
    moving = [step for step in steps if type(step).__name__ not in _STILL]
    kinds = [type(step).__name__ for step in moving]
    if kinds == ["Resize", "CenterCrop"] and isinstance(_one(moving[0].size), int):
        return Preprocess(_both_sides(moving[1].size), "crop", int(_one(moving[0].size)))
    if kinds == ["Resize"] and not isinstance(_one(moving[0].size), int):
        return Preprocess(_both_sides(moving[0].size), "stretch")
    return None


def makes_inputs(transform: Any) -> bool:
    """Whether a torchvision transform that is understood makes numbers of floating point, and not another photo."""
    if isinstance(transform, Preprocess) or isinstance(getattr(transform, "crop_size", None), list):
        return True
    made = False
    for step in getattr(transform, "transforms", [transform]):
        kind, dtype = type(step).__name__, getattr(step, "dtype", None)
        if kind in ("ToTensor", "Normalize"):
            made = True
        elif isinstance(dtype, torch.dtype):
            made = dtype.is_floating_point
        elif kind in ("ToPILImage", "PILToTensor", "ToImage"):
            made = False
    return made


_STILL = {
    *("ToTensor", "PILToTensor", "ToImage", "ToPILImage", "ConvertImageDtype", "ToDtype", "ToPureTensor"),
    *("Normalize", "Grayscale", "RGB", "Identity"),
}
"""Transforms that turn pixels into numbers without moving them."""


def _one(size: Any) -> Any:
    return size[0] if isinstance(size, (list, tuple)) and len(size) == 1 else size


def _both_sides(size: Any) -> tuple[int, int]:
    size = _one(size)
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
