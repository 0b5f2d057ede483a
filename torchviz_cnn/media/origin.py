"""Where a batch of inputs comes from, so that its maps can be drawn on the photos and its classes named."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import GeometryWarning, InputError
from torchviz_cnn.core.warn import warn
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.media.images import Geometry, Preprocess, read_image, read_stored, to_rgb
from torchviz_cnn.media.render import Box

Photo = str | os.PathLike[str] | Pixels
"""A path, a PIL image, or an array or tensor of numbers (H, W), (H, W, 3) or (3, H, W)."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The photos that a batch was made from, how they were prepared, and what the classes are called."""

    photos: tuple[Image.Image, ...] | None = field(default=None, repr=False)
    preprocess: Preprocess | None = None
    categories: tuple[str, ...] | None = field(default=None, repr=False)

    def photo(self, index: int) -> Image.Image:
        """The photo of one image of the batch. Raises InputError where it is not known."""
        if self.photos is None:
            raise InputError("the photo is not known, as the method was given a tensor: pass the photo here")
        return self.photos[checks.place("image", index, len(self.photos))]

    def box(
        self, photo: Image.Image, input_size: tuple[int, ...], geometry: Preprocess | Geometry | None = None
    ) -> Box:
        """What part of a photo the network's input (H, W) shows: (left, top, right, bottom) in the photo's pixels.

        As `geometry` says, else as the preprocessing does. The name of a geometry stands for it with the known (or
        torchvision's usual) resize. Where nothing is known it is the whole photo, with a GeometryWarning if its shape
        differs from the input's.
        """
        height, width = input_size
        if isinstance(geometry, str):
            usual = self.preprocess or Preprocess((height, width), resize=math.ceil(min(input_size) * 256 / 224))
            geometry = replace(usual, geometry=geometry)
        preprocess = geometry or self.preprocess
        if preprocess is not None:
            return preprocess.seen_box(photo.width, photo.height)
        across, down = photo.width * height, photo.height * width
        if abs(across - down) > max(across, down) * 0.02:
            warn(
                f"how this {photo.width} x {photo.height} photo became an input of {width} x {height} is not known: "
                "the map is stretched over all of it; a Network with a Preprocess knows it, and geometry='crop', "
                "'stretch' or 'pad', as overlay has it, says it",
                GeometryWarning,
            )
        return (0.0, 0.0, float(photo.width), float(photo.height))

    def seen(
        self, photo: Image.Image, input_size: tuple[int, ...], geometry: Preprocess | Geometry | None = None
    ) -> Image.Image:
        """The part of a photo that the network saw, at the size of its input."""
        left, top, right, bottom = (round(side) for side in self.box(photo, input_size, geometry))
        part = to_rgb(photo).crop((left, top, right, bottom))
        height, width = input_size
        return part.resize((width, height), Image.Resampling.BICUBIC)


def is_photo(value: Any) -> bool:
    """Whether a value is a photo, rather than a network's input: of tensors, one of whole numbers (3, H, W)."""
    if isinstance(value, Tensor):
        return value.ndim in (2, 3) and not (
            value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        )
    return isinstance(value, (str, os.PathLike, Image.Image, np.ndarray))


def names_of(value: Any, count: int) -> tuple[str, ...]:
    """What the images of a batch are called: files by their names, others by their places.

    >>> names_of(["photos/cat.jpg"], 1), names_of(torch.zeros(2, 3, 4, 4), 2)
    (('cat.jpg',), ('image 0', 'image 1'))
    """
    several = [value] if is_photo(value) else value if isinstance(value, (list, tuple)) else []
    if len(several) != count:
        several = [None] * count
    return tuple(
        os.path.basename(os.fspath(one)) if isinstance(one, (str, os.PathLike)) else f"image {place}"
        for place, one in enumerate(several)
    )


def stored(value: Photo) -> Pixels:
    """A photo in the depth and bands that it has: a path is read, all else is given back. Raises ImageError."""
    return read_stored(value) if isinstance(value, (str, os.PathLike)) else value


def as_photo(value: Photo) -> Image.Image:
    """A photo as a PIL image, upright and RGB. Raises ImageError for what cannot be read or is not a photo."""
    return read_image(value) if isinstance(value, (str, os.PathLike)) else to_rgb(value)


def input_of(photo: Pixels, preprocess: Callable[[Any], Tensor]) -> Tensor:
    """A photo prepared for a network: as it is stored by a Preprocess, in RGB by any other function."""
    return preprocess(photo if isinstance(preprocess, Preprocess) else to_rgb(photo))


def picture_of(photo: Pixels, preprocess: object) -> Image.Image:
    """A photo in RGB as it is drawn: in the bands and the range of a Preprocess, where it was prepared by one."""
    return preprocess.picture(photo) if isinstance(preprocess, Preprocess) else to_rgb(photo)


def inputs_and_pictures(
    value: Photo | Sequence[Photo], preprocess: Callable[[Any], Tensor]
) -> tuple[Tensor, tuple[Image.Image, ...]]:
    """A batch made of one photo or several, and these photos in RGB; each is read once. Raises ImageError."""
    several: list[Any] = [value] if is_photo(value) else list(value)  # type: ignore[arg-type]
    photos = [stored(photo) for photo in several]
    pictures = tuple(picture_of(photo, preprocess) for photo in photos)
    return torch.stack([input_of(photo, preprocess) for photo in photos]), pictures
