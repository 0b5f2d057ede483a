"""Which photos stand side by side in mosaics: those that the network recognises, of different classes."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import AllImages, Images
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import ImageError, InputError, TargetError, are, counted
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.hooks.inputs import Output, batch_of
from torchviz_cnn.hooks.network import Model, Network, category_name, class_index, module_of
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.scores.targets import predict

Truth = Sequence[int | str | None] | Tensor | Callable[[Path], int | str | None] | Literal["predicted"] | None
"""The true classes of photos, as a sequence or a function of the photo's path; see `grid_pointing_game`."""
Size = Literal["grow", "fit"]
"""Whether a mosaic is n times as high and wide as the network's input, or made as small as that."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Mosaics:
    """Which photos stand side by side in n x n mosaics; each is read again when it is needed, so that none is kept.

    `Mosaics.of` makes them; `own_cell` and `disconnected` measure any number of methods on the same ones.
    """

    images: AllImages
    """All photos, of which the mosaics are made."""
    cells: Tensor
    """The number of the photo in each cell, row by row: (N, n * n)."""
    classes: Tensor
    """The classes of these: (N, n * n)."""
    n: int
    size: Size
    threshold: float
    recognised: int
    """How many photos the network recognises, of how many classes, and how many had a class."""
    recognised_classes: int
    looked_at: int
    labelled: bool
    """Whether the classes were given; otherwise each photo is of the class that the network takes it for."""
    categories: tuple[str, ...] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        x: Images,
        *,
        truth: Truth = None,
        n: int = 2,
        count: int = 40,
        threshold: float = 0.99,
        size: Size = "grow",
        output: Output = None,
        batch_size: int = 8,
        seed: int = 0,
        among: Sequence[int] | None = None,
        progress: bool = False,
    ) -> Mosaics:
        """Choose the photos of mosaics: see `grid_pointing_game`, which takes the same options.

        Args:
            among: the numbers of the photos that are looked at; by default all.
        """
        checks.one_of("size", size, get_args(Size))
        least, count = checks.number("threshold", threshold, 0), checks.whole_number("count", count)
        cells = checks.whole_number("n", n, least=2) ** 2
        images = AllImages(x, model)
        class_of = _class_of(truth, images, model)
        photos: dict[int, list[int]] = {}
        looked_at = known = 0
        looking = len(images) if among is None else len(among)
        with progress_bar(progress, total=looking, desc="photos recognised", unit=" photos") as bar:
            for numbers, several in images.read(checks.whole_number("batch_size", batch_size), among):
                shares = predict(model, batch_of(model, several)[0], output=output)
                known = shares.shape[1]
                for number, share, top in zip(numbers, *map(Tensor.tolist, shares.max(1)), strict=True):
                    own = top if class_of is None else class_of(number)
                    looked_at += own is not None
                    if own == top and share >= least:
                        photos.setdefault(top, []).append(number)
                bar.update(len(numbers))
        recognised = sum(map(len, photos.values()))
        if len(photos) < cells:
            if known < cells:
                raise InputError(f"a mosaic of {n} x {n} is of {cells} classes, and the network has {known}")
            raise InputError(
                f"a mosaic of {n} x {n} is of {cells} classes, and of {counted(looked_at, 'photo')} with a class the "
                f"network recognises {recognised}, of {counted(len(photos), 'class')}, with a probability of at least "
                f"{least:g}: give more photos, or a smaller n or threshold"
            )
        chosen, classes = _drawn(photos, cells, count, seed)
        mosaics = cls(
            images=images,
            cells=torch.tensor(chosen),
            classes=torch.tensor(classes),
            n=n,
            size=size,
            threshold=least,
            recognised=recognised,
            recognised_classes=len(photos),
            looked_at=looked_at,
            labelled=class_of is not None,
            categories=model.categories if isinstance(model, Network) else None,
        )
        if size == "grow":
            _require_growing(model, mosaics, output)
        return mosaics

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def chance(self) -> float:
        """The share of a cell in the mosaic, which a map that knows nothing gets."""
        return 1 / self.n**2

    def input(self, model: Model, index: int, *, size: Size | None = None) -> Tensor:
        """One mosaic as the network's input: (1, C, n * H, n * W), or (1, C, H, W) where it is made to `fit`."""
        tiles = []
        for number in self.cells[index].tolist():
            _, photos, skipped = self.images.take([number])
            if skipped:
                raise ImageError(f"{self.images.names[number]} {skipped[number]}")
            tiles.append(batch_of(model, photos)[0][0])
        rows = [torch.cat(tiles[row * self.n : (row + 1) * self.n], 2) for row in range(self.n)]
        mosaic = torch.cat(rows, 1)[None]
        if (size or self.size) == "grow":
            return mosaic
        sides = tuple(tiles[0].shape[1:])
        return F.interpolate(mosaic.float(), sides, mode="bilinear", align_corners=False, antialias=True).to(mosaic)

    def name(self, index: int) -> str:
        """What a mosaic is called: its classes, row by row."""
        return ", ".join(category_name(self.categories, number) for number in self.classes[index].tolist())

    def __repr__(self) -> str:
        own = "" if self.labelled else "; their classes are those that the network takes them for, as none were given"
        photos = f"{self.recognised} of {counted(self.looked_at, 'photo')}"
        return (
            f"{counted(len(self), 'mosaic')} of {self.n} x {self.n} photos, of {photos} "
            f"that the network recognises with a probability of at least {self.threshold:g}, "
            f"of {counted(self.recognised_classes, 'class')}{own}"
        )


def _drawn(photos: dict[int, list[int]], cells: int, count: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """The photos, and the classes, of so many different mosaics."""
    ways = [1] + [0] * cells  # to choose so many photos of different classes
    for several in photos.values():
        for k in range(cells, 0, -1):
            ways[k] += ways[k - 1] * len(several)
    if ways[cells] * math.factorial(cells) < count:
        raise InputError(
            f"count={count} is asked for, and of {counted(sum(map(len, photos.values())), 'recognised photo')} of "
            f"{counted(len(photos), 'class')} the number of mosaics is {ways[cells] * math.factorial(cells)}"
        )
    of_classes, of_photos = random.Random(seed), random.Random(seed + 1)
    drawn: dict[tuple[int, ...], list[int]] = {}
    while len(drawn) < count:
        classes = of_classes.sample(sorted(photos), cells)
        chosen = tuple(of_photos.choice(photos[number]) for number in classes)
        drawn.setdefault(chosen, classes)
    return [list(chosen) for chosen in drawn], list(drawn.values())


_OF_SIZE = re.compile(r"shape|size|dimension|height|width|match|divisible", re.IGNORECASE)
_OF_MEMORY = re.compile(r"memory|alloc", re.IGNORECASE)


def _require_growing(model: Model, mosaics: Mosaics, output: Output) -> None:
    """Raise InputError for a network that does not run on the first mosaic because of its size."""
    x = mosaics.input(model, 0)
    try:
        predict(model, x, output=output)
    except (RuntimeError, ValueError, AssertionError) as error:
        text = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError) or _OF_MEMORY.search(text) or not _OF_SIZE.search(text):
            raise
        sides = " x ".join(map(str, x.shape[2:]))
        raise InputError(
            f"{type(unwrap(module_of(model))).__name__} does not take mosaics of {sides}, {mosaics.n} times its own "
            f'size ({text}); size="fit", as grid_pointing_game has it, makes them as small as its input'
        ) from error


def _class_of(truth: Truth, images: AllImages, model: Model) -> Callable[[int], int | None] | None:
    """The class of an image by its number; None for images that are of the class that the network takes them for."""
    categories = model.categories if isinstance(model, Network) else None
    if isinstance(truth, str):
        checks.one_of("truth", truth, ["predicted"])
        return None
    if truth is None:
        return _own_classes(images, categories)

    def index(value: Any) -> int | None:
        if value is None:
            return None
        return class_index(categories, value) if isinstance(value, str) else checks.whole_number("a class", value, 0)

    if callable(truth):
        return lambda number: index(truth(Path(images.names[number])))
    several = truth.tolist() if hasattr(truth, "tolist") else list(truth)
    if len(several) != len(images):
        raise InputError(f"there {are(len(images), 'photo')}, and truth has {counted(len(several), 'class')}")
    return [index(value) for value in several].__getitem__


def _own_classes(images: AllImages, categories: tuple[str, ...] | None) -> Callable[[int], int | None] | None:
    """The classes of a folder with a folder for each, or of a dataset; None where there are none."""
    labels = images.labels
    if labels is None and not (isinstance(images.x, ImageSource) and images.x.label(0) is not None):
        return None
    try:
        own = [class_index(categories, name) for name in images.categories] if categories else None
    except TargetError as error:
        raise InputError(
            f"the photos are in folders or classes called {', '.join(images.categories[:4])}, and {error}; name them "
            'as the network does, or give truth= as a class for each photo, a function of its path, or "predicted"'
        ) from None

    def class_of(number: int) -> int | None:
        label = labels[number] if labels is not None else images.x.label(number)
        return label if own is None or label is None or not own else own[label]

    return class_of
