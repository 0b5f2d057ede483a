"""The images of a measurement: a batch, photos, a folder or a dataset, of which a few are read at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchviz_cnn.core.errors import ImageError, InputError
from torchviz_cnn.hooks.inputs import several_inputs
from torchviz_cnn.hooks.network import Model, preprocess_of
from torchviz_cnn.media.datasets.givers import gives_stored
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.datasets.shards.patterns import are_shards
from torchviz_cnn.media.datasets.shards.tar_shards import TarShards
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.origin import is_photo, stored

Images = Any
"""A batch (N, C, H, W); with a Network photos, a folder of them, or any map-style dataset, of which a few are read at a
time."""


class AllImages:
    """The images of a measurement, of which a few are read at a time."""

    def __init__(self, x: Images, model: Model) -> None:
        self.skipped: dict[int, str] = {}
        """What could not be read, by its number."""
        self._folder = False
        if several_inputs(x):
            raise InputError("metrics take images alone, and the model is given several inputs")
        if isinstance(x, Tensor) and x.ndim != 4 and x.is_floating_point():
            raise InputError(f"images are a batch (N, C, H, W), not {tuple(x.shape)}")
        if isinstance(x, (str, os.PathLike)) and Path(x).is_dir():
            x = PhotoFolder(Path(x))
        x = TarShards(x) if are_shards(x) else x
        self.labels: Sequence[int] | None = None
        """The class of each photo of a folder with a folder for each class, as an index into `categories`."""
        self.categories: tuple[str, ...] = ()
        if gives_stored(x) and isinstance(x, PhotoFolder) and x.preprocess is None:
            self.categories, self.labels = x.categories, x.labels if x.categories else None
            names, x, self._folder = tuple(x.names), [x.path / name for name in x.names], True
        elif isinstance(x, Tensor) and not is_photo(x):
            names = tuple(f"image {i}" for i in range(len(x)))
        elif is_photo(x) or (isinstance(x, (list, tuple)) and len(x) > 0 and all(map(is_photo, x))):
            x = [x] if is_photo(x) else list(x)
            names = tuple(str(p) if isinstance(p, (str, os.PathLike)) else f"image {i}" for i, p in enumerate(x))
        else:
            x, self._folder = ImageSource(x, preprocess_of(model)), True
            x.prepare(None)
            names = tuple(x.name(i) for i in range(len(x)))
            self.categories = x.categories or ()
        self.x = x
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, size: int, among: Sequence[int] | None = None) -> Iterator[tuple[list[int], Any]]:
        """The numbers of some images, and these as a method takes them; what cannot be read of a folder is skipped.

        Args:
            size: how many at a time.
            among: the numbers of those that are read; None: all.
        """
        chosen = range(len(self)) if among is None else among
        for first in range(0, len(chosen), size):
            numbers, photos, skipped = self.take(chosen[first : first + size])
            self.skipped |= skipped
            if numbers:
                yield numbers, photos

    def take(self, numbers: Sequence[int]) -> tuple[list[int], Any, dict[int, str]]:
        """Which of some images can be read, these as a method takes them, and why the others cannot."""
        if isinstance(self.x, Tensor):
            return list(numbers), self.x[list(numbers)], {}
        if isinstance(self.x, ImageSource):
            self.x.fetch(numbers)
        read, skipped = {}, {}
        for number in numbers:
            try:
                read[number] = self._one(number)
            except ImageError as error:
                if not self._folder:
                    raise
                skipped[number] = f"cannot be read: {error}"
        batch = self._stacked(read) if read and isinstance(self.x, ImageSource) else list(read.values())
        return list(read), batch, skipped

    def _stacked(self, read: Mapping[int, Tensor]) -> Tensor:
        """Items of a dataset as a batch. Raises InputError where they differ in size."""
        first = next(iter(read))
        for number, item in read.items():
            if item.shape != read[first].shape:
                raise InputError(
                    f"{self.names[first]} is {tuple(read[first].shape)} and {self.names[number]} {tuple(item.shape)}: "
                    "images of different sizes are measured with batch_size=1"
                )
        return torch.stack(list(read.values()))

    def _one(self, number: int) -> Any:
        return self.x.item(number)[0] if isinstance(self.x, ImageSource) else stored(self.x[number])
