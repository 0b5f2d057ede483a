"""From numbers to pictures: normalisation, colour, tiles, and maps laid over the part of a photo they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, did_you_mean
from torchviz_cnn.core.opencv import opencv
from torchviz_cnn.media.bands import Bands, colour

Array = NDArray[Any]
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]
"""Red, green and blue, 0..255 each."""
Blend = Literal["add", "mix"]
Interpolation = Literal["nearest", "bilinear", "quadratic"]
Order = Literal["rows", "columns"]
Preset = Literal["dlwp-2017", "dlwp-2025"]
_BAND = 256
_ONE_THREAD = 200_000
"""Up to how many multiplications OpenBLAS, which NumPy uses, computes a product in one thread."""
_ROUNDING = 1e-6
_VEIL, _VEILED = "#14161a", 0.42
"""The colour that lies over what a network did not see, and how much of it: that of the page."""


def standardised_tiles(maps: Array) -> Array:
    """Each map (n, h, w) minus its mean, divided by its deviation, x 64 + 128, clipped: uint8. Constant maps are 0."""
    maps = np.nan_to_num(maps.astype(np.float32))
    # Scaled by a power of two, which is exact, so that squares neither overflow nor vanish.
    maps = np.ldexp(maps, -np.frexp(np.abs(maps).max((1, 2), keepdims=True))[1])
    mean, deviation = maps.mean((1, 2), keepdims=True), maps.std((1, 2), keepdims=True)
    flat = (maps.max((1, 2), keepdims=True) == maps.min((1, 2), keepdims=True)) | (deviation == 0)
    scaled = (maps - mean) / np.where(flat, 1, deviation) * 64 + 128
    return np.where(flat, 0, np.clip(scaled, 0, 255)).astype(np.uint8)


def tile_grid(tiles: Array, columns: int, margin: int = 1, order: Order = "rows", fill: int = 0) -> Array:
    """Tiles (n, h, w) or (n, h, w, 3) side by side with a margin in pixels; the last row may stay partly empty.

    `order="columns"` fills column by column: with r rows, tile i + r j stands in row i, column j.
    """
    if columns < 1 or margin < 0 or not len(tiles):
        raise InputError(f"a grid has at least 1 tile and 1 column, not {len(tiles)} and {columns}, margin {margin}")
    count, height, width = tiles.shape[:3]
    rows = math.ceil(count / columns)
    shape = (rows * (height + margin) - margin, columns * (width + margin) - margin, *tiles.shape[3:])
    grid = np.full(shape, fill, tiles.dtype)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns) if order == "rows" else divmod(i, rows)[::-1]
        top, left = row * (height + margin), column * (width + margin)
        grid[top : top + height, left : left + width] = tile
    return grid


def unit_range(values: Array) -> Array:
    """Positive values divided by their maximum: 0..1. A map without any positive value is zeros."""
    positive = np.nan_to_num(np.maximum(values.astype(np.float64), 0))
    peak = positive.max(initial=0)
    return positive / peak if peak > 0 else positive


def signed_range(values: Array, peak: float | None = None) -> Array:
    """Values with their sign as 0..1: 0.5 is nothing, 0 and 1 a peak, by default the largest absolute value."""
    values = np.nan_to_num(values.astype(np.float64))
    peak = float(np.abs(values).max(initial=0)) if peak is None else peak
    return np.asarray(0.5 + 0.5 * np.clip(values / max(peak, np.finfo(np.float64).tiny), -1, 1))


def signed_colours(
    values: Array, percentile: float = 99.5, peak: float | None = None, bands: Bands | None = None
) -> Array:
    """Values (C, h, w) with their sign as colours (h, w, 3) uint8: 0 is mid-grey, peak 255.

    `bands`: the channels for red, green and blue, or one; by default of other than 1 or 3 channels the mean in grey.
    `peak`: by default this percentile of the absolute values that are not zero; what is beyond it is clipped.
    """
    values = colour(np.nan_to_num(values.astype(np.float64)), bands)
    if peak is None:
        strength = np.abs(values[values != 0])
        peak = float(np.percentile(strength, percentile)) if strength.size else 1.0
    scaled = np.rint(127.5 + 127.5 * np.clip(values / peak, -1, 1)).astype(np.uint8)
    return np.broadcast_to(scaled.transpose(1, 2, 0), (*values.shape[1:], 3)).copy()


def colormap(values: Array, name: str) -> Array:
    """Colours (..., 3) uint8 for values in 0..1, or for uint8 in 0..255.

    Names as in matplotlib: `jet`, `viridis`, ...
    """
    index: Any = values if values.dtype == np.uint8 else _levels(values)
    palette = _palette(name)
    return np.asarray(palette[index])


def _levels(values: Array) -> Array:
    """0..1 as 0..255, truncated as the textbook does; values within 1e-6 below a level are rounded up to it."""
    return np.asarray(np.clip(values, 0, 1) * 255 + _ROUNDING).astype(np.uint8)


@lru_cache(maxsize=16)
def _palette(name: str) -> Array:
    from matplotlib import colormaps

    if name not in colormaps:
        raise InputError(f"no colormap {name!r}{did_you_mean(name, colormaps) or '; matplotlib lists them'}")
    colours: Array = colormaps[name](np.arange(256), bytes=True)[:, :3]
    return colours


def resample(values: Array, box: Box, width: int, height: int, interpolation: Interpolation = "bilinear") -> Array:
    """A map (h, w) that covers `box` (left, top, right, bottom) sampled on a picture's pixels: (height, width).

    Beyond the box, the nearest value continues. `quadratic` is the spline of order 2.
    """
    return _sample(values, box, slice(0, height), slice(0, width), interpolation)


def enlarged(values: Array, size: Sequence[int], interpolation: Interpolation = "bilinear") -> Array:
    """A map of any number of dimensions sampled at the places of a larger one that covers the same: (*size)."""
    for axis, count in enumerate(size):
        weights = _weights(values.shape[axis], (np.arange(count) + 0.5) / count, interpolation)
        values = np.moveaxis(np.tensordot(weights, values.astype(np.float64), (1, axis)), 0, axis)
    return values


def _sample(values: Array, box: Box, rows: slice, columns: slice, interpolation: Interpolation) -> Array:
    left, top, right, bottom = box
    y, x = (np.arange(part.start, part.stop) + 0.5 for part in (rows, columns))
    down = _weights(values.shape[0], (y - top) / (bottom - top), interpolation)
    across = _weights(values.shape[1], (x - left) / (right - left), interpolation)
    sampled: Array = down @ values.astype(np.float64) @ across.T
    return sampled


def _weights(count: int, places: Array, interpolation: Interpolation) -> Array:
    """The share of each of `count` samples, each in the middle of its cell of 0..1, in the value at each place."""
    if interpolation == "nearest":
        cells = np.clip(np.floor(places * count), 0, count - 1)
        return np.asarray(cells[:, None] == np.arange(count), dtype=np.float64)
    at = np.clip(places * count - 0.5, 0, count - 1)
    if interpolation == "bilinear":
        return np.asarray(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(count))))
    checks.one_of("interpolation", interpolation, get_args(Interpolation))
    samples: Array = _spline(np.arange(count), count)
    return np.asarray(np.linalg.solve(samples.T, _spline(at, count).T).T)


def _spline(at: Array, count: int) -> Array:
    """Quadratic B-splines centred on each sample, those beyond the ends mirrored back: (places, count)."""
    basis = np.zeros((len(at), count))
    for shift, mirrored in enumerate(np.pad(np.arange(count), 2, mode="reflect"), start=-2):
        distance = np.abs(at - shift)
        value = np.where(distance < 0.5, 0.75 - distance**2, np.maximum(0, 1.5 - distance) ** 2 / 2)
        basis[:, mirrored] += value
    return basis


def overlay(
    photo: Image.Image,
    values: Array,
    box: Box,
    *,
    alpha: float = 0.4,
    blend: Blend = "add",
    colormap_name: str = "jet",
    interpolation: Interpolation = "bilinear",
) -> Image.Image:
    """A map in 0..1 in colour over the part of a photo that it belongs to; the rest of the photo stays as it is.

    `add`: photo + alpha x colour, clipped, as in the textbook. `mix`: (1 - alpha) x photo + alpha x colour.
    """
    picture = np.array(photo.convert("RGB"))
    draw_on(picture, values, box, alpha=alpha, blend=blend, colormap_name=colormap_name, interpolation=interpolation)
    return Image.fromarray(picture)


def draw_on(
    picture: Array,
    values: Array,
    box: Box,
    *,
    alpha: float = 0.4,
    blend: Blend = "add",
    colormap_name: str = "jet",
    interpolation: Interpolation = "bilinear",
) -> None:
    """The same, on the pixels (H, W, 3) of a picture in place."""
    _require_share(alpha)
    checks.one_of("blend", blend, get_args(Blend))
    cv2, palette = opencv(), _palette(colormap_name)
    # Colours that are added are cut off to whole numbers, as when the sum is cast to pixels: what the original does.
    colours = (alpha * palette.astype(np.float32)).astype(np.uint8) if blend == "add" else palette
    for rows, columns, heat in _sampled(values, box, picture.shape[1], picture.shape[0], interpolation):
        part, heat = picture[rows, columns], cv2.applyColorMap(_levels(heat), colours[:, None])
        both = cv2.add(part, heat) if blend == "add" else cv2.addWeighted(part, 1 - alpha, heat, alpha, 0)
        picture[rows, columns] = both


def tinted(
    photo: Image.Image,
    maps: Sequence[Array],
    colours: Sequence[Colour],
    box: Box,
    *,
    alpha: float = 0.4,
    blend: Blend = "mix",
    interpolation: Interpolation = "bilinear",
) -> Image.Image:
    """Maps in 0..1 of one shape over the part of a photo that they belong to, each in its colour; the photo in grey.

    The stronger the strongest map is at a place, the denser the colour; where it is 0 there is the photo alone. Where
    several are strong, their colours mix in proportion. `blend`, `alpha`: as for `overlay`.
    """
    _require_share(alpha)
    checks.one_of("blend", blend, get_args(Blend))
    picture = np.array(photo.convert("L").convert("RGB"))
    sampled = (_sampled(values, box, picture.shape[1], picture.shape[0], interpolation) for values in maps)
    for bands in zip(*sampled, strict=True):
        rows, columns, _ = bands[0]
        heat = np.clip(np.stack([values for *_, values in bands]), 0, 1)
        mixed = np.tensordot(heat, np.array(colours, np.float64), (0, 0)) / np.maximum(heat.sum(0), 1e-9)[..., None]
        strength = alpha * heat.max(0)[..., None]
        under = picture[rows, columns] * (1.0 if blend == "add" else 1 - strength)
        picture[rows, columns] = np.clip(np.rint(under + strength * mixed), 0, 255)
    return Image.fromarray(picture)


def listing(preset: Preset, photo: Image.Image, values: Array, alpha: float = 0.4) -> Image.Image:
    """A map in 0..1 over all of a photo, to the byte as the textbook's listing of that edition draws it.

    2017: OpenCV enlarges the map, colours it by its own jet, and rounds and clips the sum where it writes the picture.
    2025: the small map is coloured by matplotlib's jet and then enlarged by Pillow; Keras stretches the colours, and
    again the sum, from its smallest to its largest value over 0..255.
    """
    _require_share(alpha)
    if checks.one_of("preset", preset, get_args(Preset)) == "dlwp-2017":
        cv2 = opencv()
        levels = np.uint8(255 * cv2.resize(values.astype(np.float32), photo.size))
        colours = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1]
        return Image.fromarray(np.rint(np.clip(colours * alpha + np.asarray(photo), 0, 255)).astype(np.uint8))
    from matplotlib import colormaps

    jet: Array = colormaps["jet"](np.arange(256))[:, :3]
    colours = jet[np.uint8(255 * values.astype(np.float32))]
    large = np.asarray(_stretched(colours).resize(photo.size), np.float32)
    return _stretched(large * alpha + np.asarray(photo, np.float32))


def _require_share(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is a share between 0 and 1, not {alpha}")


def _stretched(values: Array) -> Image.Image:
    """Values (h, w, 3) from their smallest to their largest as 0..255, cut off: Keras' `array_to_img`."""
    values = values.astype(np.float32) - np.float32(values.min())
    return Image.fromarray((values / (values.max() or 1) * 255).astype(np.uint8))


def heat_image(
    values: Array,
    box: Box,
    width: int,
    height: int,
    *,
    colormap_name: str = "jet",
    interpolation: Interpolation = "bilinear",
    photo: Image.Image | None = None,
) -> Image.Image:
    """A map in 0..1 in colour on a canvas of `width` x `height`. Where it does not reach there is the photo under a
    veil, or black."""
    canvas = Image.new("RGB", (width, height))
    if photo is not None:
        canvas = Image.blend(photo.convert("RGB"), Image.new("RGB", photo.size, _VEIL), _VEILED)
    options: Any = {"blend": "mix", "colormap_name": colormap_name, "interpolation": interpolation}
    return overlay(canvas, values, box, alpha=1, **options)


def strongest(values: Array, box: Box, width: int, height: int) -> tuple[int, int]:
    """The pixel (x, y) of a picture of `width` x `height` where a map that covers `box` is strongest."""
    best, place = -math.inf, (0, 0)
    for rows, columns, sampled in _sampled(values, box, width, height):
        y, x = np.unravel_index(int(sampled.argmax()), sampled.shape)
        if sampled[y, x] > best:
            best, place = float(sampled[y, x]), (columns.start + int(x), rows.start + int(y))
    return place


def mask(values: Array, box: Box, width: int, height: int, threshold: float) -> Array:
    """Where a map that covers `box` is at least this share of its strongest value on a picture: (height, width)."""
    inside = np.zeros((height, width), bool)
    peak = max((float(sampled.max()) for *_, sampled in _sampled(values, box, width, height)), default=0.0)
    if peak > 0:
        for rows, columns, sampled in _sampled(values, box, width, height):
            inside[rows, columns] = sampled >= threshold * peak * (1 - _ROUNDING)
    return inside


def regions(
    values: Array, box: Box, width: int, height: int, threshold: float
) -> list[tuple[int, int, int, int, float]]:
    """The connected parts of `mask`: (left, top, right, bottom, strength), the strongest first, then by their place.

    The strength is the strongest value in the part, as a share of the strongest on the picture.
    """
    inside = mask(values, box, width, height, threshold)
    _, labels, places, _ = opencv().connectedComponentsWithStats(inside.view(np.uint8))
    peaks = np.zeros(len(places))
    for rows, columns, sampled in _sampled(values, box, width, height):
        np.maximum.at(peaks, labels[rows, columns], sampled)
    parts = []
    for (left, top, across, down, _), peak in zip(places[1:].tolist(), peaks[1:], strict=True):
        parts.append((left, top, left + across, top + down, round(float(peak / peaks[1:].max()), 6)))
    return sorted(parts, key=lambda part: (-part[4], part[1], part[0]))


def _sampled(
    values: Array, box: Box, width: int, height: int, interpolation: Interpolation = "bilinear"
) -> Iterator[tuple[slice, slice, Array]]:
    """A map on the pixels of a picture that lie in its box, in bands, as a large photo is large in floating point."""
    rows, columns = _inside(box, width, height)
    if columns.stop <= columns.start:
        return
    # Products that are small enough for one thread: of several, each waits longer for the others than it computes.
    step = min(max(_ONE_THREAD // (values.shape[1] * (columns.stop - columns.start)), 16), _BAND)
    for top in range(rows.start, rows.stop, step):
        band = slice(top, min(top + step, rows.stop))
        yield band, columns, _sample(values, box, band, columns, interpolation)


def _inside(box: Box, width: int, height: int) -> tuple[slice, slice]:
    """The rows and columns of a picture's pixels whose middle lies in a box."""
    left, top, right, bottom = box
    rows = slice(max(math.ceil(top - 0.5), 0), min(math.floor(bottom - 0.5) + 1, height))
    return rows, slice(max(math.ceil(left - 0.5), 0), min(math.floor(right - 0.5) + 1, width))
