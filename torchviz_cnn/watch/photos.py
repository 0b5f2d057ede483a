"""The photos that are watched: what the network gets of them, and how they are drawn."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.inputs import batch_of
from torchviz_cnn.hooks.network import Model, preprocess_of
from torchviz_cnn.media.bands import colour
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.origin import names_of
from torchviz_cnn.media.render import Array, Box, tinted

MOST = 32
"""At most as many photos are watched: all of them are in memory at once at every watched step."""
SIDE = 384
"""Photos are drawn with at most as many pixels a side."""
TINT = (214, 20, 30)
"""The colour of evidence: red, as in heatmaps with a sign."""
DENSEST = 0.85
"""How dense it is where evidence is strongest: the photo is still seen below it."""


@dataclass(frozen=True, eq=False)
class WatchedPhoto:
    """A photo, and which part of it the network sees."""

    name: str
    picture: Image.Image
    box: Box
    """(left, top, right, bottom) in pixels of the picture."""

    @cached_property
    def encoded(self) -> str:
        """The photo as a page has it: an address that holds its bytes."""
        return address(self.picture, 85)

    def tinted(self, heat: Array, side: int) -> Image.Image:
        """The photo in grey, at most `side` pixels a side, with a map in 0..1 in red over what the network sees."""
        scale = side / max(self.picture.size)
        size = [max(1, round(length * scale)) for length in self.picture.size]
        box = tuple(edge * scale for edge in self.box)
        return tinted(self.picture.resize(size), [heat], [TINT], box, alpha=DENSEST)  # type: ignore[arg-type]


def watched_photos(model: Model, photos: Any) -> tuple[Tensor, tuple[WatchedPhoto, ...]]:
    """The batch of the network's inputs (B, C, H, W), and the photos that it is of.

    Raises InputError for more photos than are watched, and for what is neither photos nor such a batch; ImageError for
    a photo that cannot be read.
    """
    if isinstance(photos, (str, os.PathLike)) and os.path.isdir(photos):
        folder = PhotoFolder(os.fspath(photos))
        photos = [folder.path / name for name in folder.names[: MOST + 1]]
    if isinstance(photos, Sequence) and len(photos) > MOST:
        raise InputError(f"a few photos are watched, at most {MOST}: these are more")
    x, origin = batch_of(model, photos)
    if x.ndim != 4 or not x.is_floating_point() or not 1 <= len(x) <= MOST:
        raise InputError(f"watched are photos, or a batch (B, C, H, W) of 1 to {MOST} of them, not {tuple(x.shape)}")
    pictures = [_picture(model, one) for one in x] if origin.photos is None else list(origin.photos)
    size: tuple[int, ...] = tuple(x.shape[2:])
    watched = []
    for name, picture in zip(names_of(photos, len(x)), pictures, strict=True):
        whole = (0.0, 0.0, float(picture.width), float(picture.height))
        box = whole if origin.photos is None else origin.box(picture, size)
        scale = min(1.0, SIDE / max(picture.size))
        small = picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.LANCZOS)
        watched.append(WatchedPhoto(name, small, tuple(edge * scale for edge in box)))  # type: ignore[arg-type]
    return x.detach().cpu().clone(), tuple(watched)


def _picture(model: Model, x: Tensor) -> Image.Image:
    """An input (C, H, W) as a picture: by the preprocessing where it is known, else from its lowest value to its
    highest."""
    preprocess = preprocess_of(model)
    if preprocess is not None and len(preprocess.mean) == len(x):
        return preprocess.to_image(x)
    values = colour(np.nan_to_num(x.detach().float().cpu().numpy()))
    low, high = values.min(), values.max()
    levels = np.rint((values - low) / (high - low or 1.0) * 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(np.broadcast_to(levels, (*levels.shape[:2], 3)).copy())


def mosaic(tiles: Tensor, side: int) -> Image.Image:
    """Pictures (n, H, W, 3) in rows and columns, on a square of this side: small ones enlarged pixel by pixel."""
    across = math.ceil(math.sqrt(len(tiles)))
    each = max((side + 2) // across - 2, 1)
    square = Image.new("RGB", (side, side), "white")
    for place, tile in enumerate(tiles.numpy()):
        picture = Image.fromarray(tile)
        way = Image.Resampling.NEAREST if max(picture.size) < each else Image.Resampling.LANCZOS
        square.paste(picture.resize((each, each), way), (place % across * (each + 2), place // across * (each + 2)))
    return square


def sheet(tiles: Tensor) -> str:
    """The same as a page has it: small tiles, as first filters are, enlarged in whole pixels; others at their size."""
    side = max(tiles.shape[1:3])
    across = math.ceil(math.sqrt(len(tiles)))
    return address(mosaic(tiles, across * (max(side, side * (180 // (side * across))) + 2) - 2), 80)


def address(image: Image.Image, quality: int) -> str:
    """A picture as an address that holds its bytes, in WebP."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
