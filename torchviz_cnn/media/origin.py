"""Where a batch of inputs comes from, so that its maps can be drawn on the photos and its classes named."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from torchviz_cnn.core.errors import GeometryWarning, ImageError, InputError
from torchviz_cnn.core.warn import warn
from torchviz_cnn.media.images import Geometry, Preprocess, read_image, to_rgb
from torchviz_cnn.media.render import Box

Photo = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any]
"""A path, a PIL image, or an array of bytes (H, W) or (H, W, 3)."""


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
        if not -len(self.photos) <= index < len(self.photos):
            raise InputError(f"image {index} is out of range: there are {len(self.photos)}")
        return self.photos[index]

    def box(
        self, photo: Image.Image, input_size: tuple[int, int], geometry: Preprocess | Geometry | None = None
    ) -> Box:
        """What part of a photo the network's input (H, W) shows: (left, top, right, bottom) in the photo's pixels.

        As `geometry` says, else as the preprocessing does. The name of a geometry stands for it with the known (or
        torchvision's usual) resize. Where nothing is known it is the whole photo, with a GeometryWarning if its shape
        differs from the input's.
        """
        if isinstance(geometry, str):
            usual = self.preprocess or Preprocess(input_size, resize=math.ceil(min(input_size) * 256 / 224))
            geometry = replace(usual, geometry=geometry)
        how = geometry or self.preprocess
        if how is not None:
            return how.seen_box(photo.width, photo.height)
        height, width = input_size
        across, down = photo.width * height, photo.height * width
        if abs(across - down) > max(across, down) * 0.02:
            warn(
                f"how this {photo.width} x {photo.height} photo became an input of {width} x {height} is not known: "
                "the map is stretched over all of it; pass geometry='crop', 'stretch', 'pad' or a Preprocess, "
                "or give the method a Network",
                GeometryWarning,
            )
        return (0.0, 0.0, float(photo.width), float(photo.height))

    def seen(
        self, photo: Image.Image, input_size: tuple[int, int], geometry: Preprocess | Geometry | None = None
    ) -> Image.Image:
        """The part of a photo that the network saw, at the size of its input."""
        left, top, right, bottom = (round(side) for side in self.box(photo, input_size, geometry))
        part = to_rgb(photo).crop((left, top, right, bottom))
        return part.resize(input_size[::-1], Image.Resampling.BICUBIC)


def is_photo(value: Any) -> bool:
    """Whether a value is a photo, rather than a network's input."""
    return isinstance(value, (str, os.PathLike, Image.Image, np.ndarray))


def as_photo(value: Photo) -> Image.Image:
    """A photo as a PIL image, upright and RGB. Raises ImageError for what cannot be read or is no photo."""
    if isinstance(value, (str, os.PathLike)):
        return read_image(value)
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3) and value.size:
        grey = value.ndim == 3 and value.shape[2] == 1
        if value.ndim == 2 or value.shape[2] in (1, 3, 4):
            return to_rgb(Image.fromarray(value[..., 0] if grey else value))
    what = f"an array {value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise ImageError(f"a photo is a path, a PIL image or an array (H, W, 3) of uint8, not {what}")


def as_photos(value: Photo | Sequence[Photo]) -> tuple[Image.Image, ...]:
    """One photo or several as PIL images. Raises ImageError for what is none, or for no photo at all."""
    photos: list[Any] = [value] if is_photo(value) else list(value)  # type: ignore[arg-type]
    if not photos:
        raise ImageError("no photo was given")
    return tuple(as_photo(photo) for photo in photos)
