"""What all of the library's own datasets of photos are: names, labels and photos that are read when asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from torchviz_cnn.core.errors import ImageError, InputError, counted
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.media.images import to_rgb
from torchviz_cnn.media.origin import input_of


class Photos(Dataset[tuple[Any, int]], ABC):
    """Photos somewhere, as a map-style dataset of `(input, label)`; without `preprocess`, items are photos.

    What `ImageSource` asks of a dataset of photos stands here, so that a new place for photos is one class.
    """

    names: Sequence[str]
    """What each photo is called: its path, with `/`, below where all of them are."""
    labels: Sequence[int]
    """The class of each photo, as an index into `categories`; -1 for one without."""
    categories: tuple[str, ...]
    """Names of the classes; empty where they are not known."""
    preprocess: Callable[[Any], Any] | None
    """What turns photos into inputs, where the dataset does it."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if isinstance(index, slice):
            raise InputError(
                f"{type(self).__name__} gives one photo at a time: a part of it, as its first 100 photos, is "
                "torch.utils.data.Subset(dataset, range(100))"
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__} has {counted(len(self), 'photo')}, and none at place {index}")
        item = self.photo(index) if self.preprocess is None else input_of(self.stored(index), self.preprocess)
        return item, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        self.fetch(indices)
        return [self[index] for index in indices]

    def photo(self, index: int) -> Image.Image:
        """The photo, upright and RGB. Raises ImageError, with its name, where it cannot be read."""
        stored = self.stored(index)
        try:
            return to_rgb(stored)
        except ImageError as error:
            raise ImageError(f"{self.names[index]}: {error}") from error

    def prepare(self, folder: Path | None = None, *, progress: bool = False) -> Path | None:
        """Get what takes long before photos can be read, and keep it in a folder that other processes are then given.

        It may be called several times. Nothing is needed where this returns None.
        """
        return None

    def fetch(self, indices: Sequence[int]) -> None:
        """Get all that these photos are read from, where that is quicker for several: they are asked for next."""

    def ahead(self, indices: Sequence[int]) -> None:
        """Begin to get what these photos are read from: they are fetched next."""

    @property
    def root(self) -> str | None:
        """The folder that holds all the photos; None where they are in none."""
        return None

    @abstractmethod
    def stored(self, index: int) -> Pixels:
        """The photo with the depth and the bands that it has. Raises ImageError, with its name, for a broken one."""

    def encoded(self, index: int) -> bytes:
        """The bytes of the photo's file. Raises InputError for a dataset that has no files."""
        raise InputError(f"{type(self).__name__} does not give the bytes of files; decode='cpu' does without")

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of the photo, upright, and read no more than its head where that can be."""

    @abstractmethod
    def listing(self) -> dict[str, Any]:
        """What identifies the photos: `images`, how many, `checksum`, and `of`: what it is a checksum of."""
