"""Pictures of any depth and any number of bands: as bytes with their bands last, and as colours that can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from torchviz_cnn.core.errors import ImageError, ImageWarning, InputError, counted, kind_of
from torchviz_cnn.core.warn import say_once

Array = NDArray[Any]
ValueRange = tuple[float, float]
Bands = Sequence[int]
Pixels = Image.Image | Array | Tensor
"""A picture that is read: of PIL in any mode, or numbers (H, W), (H, W, n) or (n, H, W)."""
_COUNTS = ((1, 3), (2, 4), range(5, 17))
"""Numbers of bands, the usual ones first: by them an array tells where its bands are."""
_RANGES = (255, 1023, 4095, 16383, 65535)
"""The largest values of 8, 10, 12, 14 and 16 bits."""


def eight_bits(values: Array, window: ValueRange | None = None) -> Array:
    """Values of any numeric type as bytes; bytes stay, others are scaled by the range of `window`, else the stored one.

    That is 0..1 or 0..255 of floats, and the smallest of 8, 10, 12, 14 and 16 bits that holds all whole numbers.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "biuf":
        raise ImageError(f"a picture is made of numbers, not of {values.dtype}")
    whole, values = values.dtype.kind in "iu", values.astype(np.float64)
    low, high = window or _stored_range(values, whole)
    with np.errstate(all="ignore"):
        share = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) / (high - low)) - low / (high - low)
        return np.asarray(np.nan_to_num(np.clip(np.rint(share * 255), 0, 255)), dtype=np.uint8)


def _stored_range(values: Array, whole: bool) -> ValueRange:
    finite = values[np.isfinite(values)]
    bottom, top = float(finite.min(initial=0)), float(finite.max(initial=0))
    words = "a picture that is not of 8 bits is scaled {}; window=(low, high), as Preprocess has it, sets another range"
    if bottom < 0:
        say_once(words.format("from its lowest to its highest value"), ImageWarning)
        return bottom, top
    if top == 0 or (top < 2 and not whole):
        return 0.0, 1.0
    high = next((float(most) for most in _RANGES if top <= most), top)
    # Values that make a nearly black picture may be of another range.
    if high != (65535 if whole else 255) or (not whole and top < 64):
        scale = f"from 0 to {int(high)}, the range of its values" if high <= 65535 else "to its maximum"
        say_once(words.format(scale), ImageWarning)
    return 0.0, high


def as_bands(photo: Pixels, count: int | None = None, window: ValueRange | None = None) -> Array:
    """The bands of a picture as bytes (H, W, n); of a palette those of its colours, transparency as a band of its own.

    Raises ImageError for numbers that are not a picture, or not of `count` bands, or may be read in two ways.
    """
    if not isinstance(photo, (Image.Image, np.ndarray, Tensor)):
        raise ImageError(
            f"a photo is a path, a PIL image or an array (H, W, 3), not {kind_of(photo)}; read_image(path) gives one"
        )
    if isinstance(photo, Image.Image):
        if photo.mode in ("P", "PA"):
            photo = photo.convert("RGBA" if photo.has_transparency_data else "RGB")
        photo, first = np.asarray(photo)[..., None] if len(photo.getbands()) == 1 else np.asarray(photo), False
        wrong = count is not None and photo.shape[2] != count
    else:
        first = isinstance(photo, Tensor)
        photo = _numbers(photo)
        wrong = photo.ndim not in (2, 3) or not photo.size or (photo.ndim == 2 and count not in (None, 1))
    if wrong:
        wanted = (
            f"{counted(count, 'band')}, one for each mean," if count is not None else "(H, W), (H, W, n) or (n, H, W)"
        )
        raise ImageError(f"a picture of {wanted} is needed, not one of {photo.shape}")
    return eight_bits(_bands_last(photo, count, first), window)


def _numbers(photo: Array | Tensor) -> Array:
    if not isinstance(photo, Tensor):
        return photo
    try:
        photo = photo.detach().cpu()
        return (photo.float() if photo.is_floating_point() else photo).numpy()
    except (TypeError, RuntimeError) as error:  # as of sparse and quantised tensors
        raise ImageError(f"a tensor of {photo.dtype} is not a picture: {error}") from error


def _bands_last(values: Array, count: int | None, first: bool) -> Array:
    """(H, W) or (n, H, W) as (H, W, n); `first`: what may be either is (n, H, W), as tensors are."""
    if values.ndim == 2:
        return values[..., None]
    for counts in [(count,)] if count is not None else _COUNTS:
        at_start, at_end = values.shape[0] in counts, values.shape[2] in counts
        if at_start and at_end and not first:
            raise ImageError(f"an array of {values.shape} may be (H, W, n) or (n, H, W): make it a PIL image or tensor")
        if at_start or at_end:
            return values.transpose(1, 2, 0) if at_start else values
    wanted = f"{counted(count, 'band')}, one for each mean," if count is not None else "1 to 16 bands"
    raise ImageError(
        f"a picture of {wanted} is needed; in {values.shape} neither the first nor the last is their number"
    )


def colour(values: Array, bands: Bands | None = None) -> Array:
    """Channels (n, ...) as 1 or 3 that can be drawn: those of `bands`, or as they are, or their mean in grey."""
    if bands is None:
        return values if len(values) in (1, 3) else values.mean(0, keepdims=True)
    return values[list(check_bands(bands, len(values)))]


def check_bands(bands: Bands, count: int | None = None) -> tuple[int, ...]:
    """Bands for red, green and blue, or one for grey, counted from 0. Raises InputError for others."""
    given = tuple(bands) if isinstance(bands, (tuple, list)) else ()
    if len(given) not in (1, 3) or not all(isinstance(b, int) and 0 <= b < (count or b + 1) for b in given):
        there = "" if count is None else f" of {count}"
        raise InputError(f"bands are one or three numbers of bands{there}, counted from 0, not {bands!r}")
    return given


def as_rgb(values: Array, bands: Bands | None = None, transparent: bool = True) -> Image.Image:
    """Bands (H, W, n) of bytes as an RGB picture: those of `bands`, else a guess that is said once.

    `transparent`: whether a fourth band is transparency, which is laid on white, as of PNG files.
    """
    count = values.shape[2]
    if bands is None and count == 4 and transparent:
        return on_white(Image.fromarray(np.ascontiguousarray(values)))
    if bands is None and count not in (1, 3):
        shown = "the mean of both in grey is" if count == 2 else "the first three are"
        say_once(
            f"of a picture of {counted(count, 'band')} {shown} drawn; bands=(red, green, blue), as Preprocess has it, "
            "chooses others",
            ImageWarning,
        )
        bands = (0, 1, 2) if count > 3 else None
    chosen = np.rint(colour(np.moveaxis(values, 2, 0), bands)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(chosen, (3, *chosen.shape[1:])).transpose(1, 2, 0)))


def on_white(image: Image.Image) -> Image.Image:
    """A picture with transparency as RGB, laid on white."""
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def values_of_mask(picture: Image.Image, by_value: bool) -> Array:
    """The values (height, width) of a picture that marks something: 0 is the background.

    Grey values are taken as they are. In colour it is the largest of each pixel, or how opaque it is, where that
    varies. With `by_value`, where values have a meaning, a palette's indices are taken; raises ImageError for colours.
    """
    if picture.mode in _GREY or (picture.mode == "P" and by_value):
        return np.asarray(picture)
    bands = np.asarray(picture.convert("RGBA"))
    colours, opacity = bands[..., :3], bands[..., 3]
    if opacity.min() != opacity.max() and not by_value:
        return opacity
    if by_value and not (colours == colours[..., :1]).all():
        raise ImageError("values are asked for by number, and it is in colour")
    return np.asarray(colours.max(2))


_GREY = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
