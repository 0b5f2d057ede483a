"""Photos: reading any file into RGB, preparing it for a network, and where on it the network looked."""

from __future__ import annotations

import io
import math
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import ImageError, InputError, TorchvizError, counted, did_you_mean
from torchviz_cnn.media.bands import Array, Bands, Pixels, ValueRange, as_bands, as_rgb, check_bands, on_white
from torchviz_cnn.media.render import Box

Geometry = Literal["crop", "stretch", "pad"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}


def read_image(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    *,
    window: ValueRange | None = None,
    bands: Bands | None = None,
) -> Image.Image:
    """Read a photo as an RGB image, upright as its EXIF orientation says.

    CMYK and palette images are converted, transparency is laid on white, of an animation the first frame is taken.

    Args:
        path: a file that Pillow reads, or any TIFF, where tifffile is installed.
        max_pixels: how many pixels a picture may have (100 million).
        window: the values for black and white of what is not of 8 bits; by default 0 and the largest value of as many
            bits as the picture's values need, which is said once (ImageWarning).
        bands: those for red, green and blue, or one for grey, counted from 0; by default the first three.

    Returns:
        The photo in RGB.

    Raises:
        ImageError: with the file's name, for what is missing, not an image, truncated, or larger than `max_pixels`.
    """
    stored = read_stored(path, max_pixels)
    try:
        return to_rgb(stored, window, bands)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def read_stored(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image | Array:
    """Read a picture as it is stored, upright: in any mode of PIL, or as numbers (H, W, n). Raises as `read_image`."""
    path = checks.path("a photo", path)
    require_file(path)
    return _read(path, path, max_pixels)


def read_stored_bytes(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image | Array:
    """Read a picture from the bytes of its file, called `name`, as `read_stored` does."""
    if not content:
        raise ImageError(f"{name} is empty: it has 0 bytes")
    return _read(name, io.BytesIO(content), max_pixels)


def _read(path: Path | str, file: Path | BinaryIO, max_pixels: int) -> Image.Image | Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata
            return _stored(path, file, max_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image of a known format, or is broken") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large: {error}") from None
    except PermissionError:
        raise ImageError(f"{path} cannot be read: its permissions do not allow it") from None
    except Exception as error:  # a damaged file may fail in any way its decoder knows
        raise ImageError(f"{path} cannot be read, it may be truncated: {error}") from error


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of a picture, upright, from the head of its file where that tells it. Raises as `read_image`."""
    path = checks.path("a photo", path)
    return _size_in(path) or read_image(path).size


def size_of_bytes(head: bytes) -> tuple[int, int] | None:
    """Width and height of a picture, upright, from the first bytes of its file; None where they do not tell it."""
    return _size_in(io.BytesIO(head))


def _size_in(file: Path | BinaryIO) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                width, height = image.size
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None


ORIENTATION = 0x0112
"""The tag of EXIF that says how a picture is turned."""


def _stored(path: Path | str, file: Path | BinaryIO, max_pixels: int) -> Image.Image | Array:
    try:
        opened = Image.open(file)
    except UnidentifiedImageError:
        with file.open("rb") if isinstance(file, Path) else file as stream:
            stream.seek(0)
            if stream.read(4) not in _TIFF:
                raise
            stream.seek(0)
            return _read_tiff(path, stream, max_pixels)
    with opened as image:
        _require_size(path, image.width, image.height, 1, max_pixels)
        deep = image.mode == "RGB" and ";16" in str(image.tile)
        samples = int(getattr(image, "tag_v2", {}).get(277, 1))
        if image.format == "TIFF" and (deep or samples > len(image.getbands())) and find_spec("tifffile"):
            return _read_tiff(path, file, max_pixels)
        image.load()
        upright = ImageOps.exif_transpose(image)
    # Of 16 bits in three bands Pillow keeps the upper 8, in which a picture of 12 bits is nearly black.
    shifted = deep and np.asarray(upright).max() < 64
    return np.asarray(upright).astype(np.uint16) << 8 if shifted else upright


def _read_tiff(path: Path | str, stored: Path | BinaryIO, max_pixels: int) -> Image.Image | Array:
    """The first page of a TIFF of any type and number of bands, by tifffile."""
    try:
        import tifffile
    except ImportError:
        raise ImageError(
            f"{path} is a TIFF that Pillow does not read: tifffile does (pip install tifffile), or pass its array"
        ) from None
    with tifffile.TiffFile(stored) as file:
        page: Any = file.pages[0]
        _require_size(path, page.imagewidth, page.imagelength, page.samplesperpixel, max_pixels)
        values = np.asarray(page.asarray())
    values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
    if values.dtype == np.uint8 and values.ndim == 3 and values.shape[2] == 4:  # whose fourth is not transparency
        return Image.frombytes("RGBX", (values.shape[1], values.shape[0]), values.tobytes())
    return values


def _require_size(path: Path | str, width: int, height: int, bands: int, max_pixels: int) -> None:
    if width * height > max_pixels or width * height * bands > 16 * max_pixels:
        size = f"{width} x {height} pixels" + f" of {counted(bands, 'band')}" * (bands > 1)
        raise ImageError(
            f"{path} has {size}; at most {max_pixels:,} are read, and more by read_image(path, max_pixels=...)"
        )


def require_file(path: Path) -> None:
    """Raise ImageError, with what is there, unless a path is a file with something in it."""
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder, not an image")
    if os.path.islink(path) and not os.path.exists(path):
        raise ImageError(f"{path} is a link to nothing: there is no {os.readlink(path)}")
    if path.name.casefold().endswith((".tar", ".tgz", ".tar.gz")):
        raise ImageError(f"{path} means tar files of photos, which top, survey and trust take; here one photo is read")
    if not os.path.exists(path):
        raise ImageError(f"no image {path}{did_you_mean(path.name, _names_in(path.parent))}")
    if not os.path.isfile(path):
        raise ImageError(f"{path} is a device or a pipe, not an image")
    if not os.path.getsize(path):
        raise ImageError(f"{path} is empty: it has 0 bytes")


def to_rgb(photo: Pixels, window: ValueRange | None = None, bands: Bands | None = None) -> Image.Image:
    """Any picture as RGB: a PIL image, or numbers (H, W), (H, W, n) or (n, H, W); see `read_image` for the options.

    Raises ImageError for what is not a picture, or of a mode that PIL cannot convert.
    """
    try:
        if not isinstance(photo, Image.Image) or bands is not None or photo.mode in _DEEP:
            return as_rgb(as_bands(photo, None, window), bands, "uint8" in str(getattr(photo, "dtype", "")))
        return on_white(photo) if photo.has_transparency_data else photo.convert("RGB")
    except TorchvizError:
        raise
    except ValueError as error:
        mode = getattr(photo, "mode", "")
        raise ImageError(f"a photo of mode {mode!r} cannot be turned into RGB: {error}") from error


_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _by_channel(name: str, values: Any) -> tuple[float, ...]:
    """Numbers of any type as floats. Raises InputError for what are none, or not finite."""
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} is a finite number for each channel, as (0.5, 0.5, 0.5), not {values!r}")
    return numbers


@lru_cache(maxsize=32)
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers by channel as (C, 1, 1), which are sent to a device once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)[:, None, None]


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Preprocess:
    """From a photo to what a network expects, and back from the network's input to the photo.

    `geometry`: `crop` resizes the shorter side to `resize` pixels and takes the middle, as torchvision's presets do;
    `stretch` resizes both sides to the input's size, as the textbook does; `pad` fits all of the photo in, with the
    mean colour around it. `size` is (H, W). Values are scaled to 0..1 in 8 bits, then (v - mean) / std by channel.

    With one mean photos are made grey, with three RGB; with other numbers of means a photo has as many bands: an array
    (H, W, n), a TIFF, or a PIL image such as RGBA, the transparency of which is then a band like the others.
    """

    size: tuple[int, int] = (224, 224)
    geometry: Geometry = "crop"
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    window: ValueRange | None = None
    """The values for black and white of photos that are not of 8 bits; by default as `read_image` says."""
    bands: tuple[int, ...] | None = None
    """The bands of a photo for red, green and blue, counted from 0; by default the first three."""

    def __post_init__(self) -> None:
        checks.one_of("geometry", self.geometry, get_args(Geometry))
        checks.one_of("interpolation", self.interpolation, _RESAMPLING)
        if min(*self.size, self.resize) < 1:
            raise InputError(f"size {self.size} and resize {self.resize} are at least 1 pixel")
        for name, values in (("mean", self.mean), ("std", self.std)):
            object.__setattr__(self, name, _by_channel(name, values))
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} have one number per channel, std above 0")
        if max(self.mean) > 1:
            raise InputError(f"mean and std are for values of 0..1: of those of 0..255 give a 255th, not {self.mean}")
        if self.bands is not None:
            object.__setattr__(self, "bands", check_bands(self.bands))
        if self.window is not None and not -math.inf < self.window[0] < self.window[-1] < math.inf:
            raise InputError(f"window is two finite numbers, the lower first, not {self.window}")

    def __call__(self, photo: Pixels) -> Tensor:
        """The photo as the network's input: (C, H, W) float32, with C the number of means."""
        return self.scaled(self.pixels(photo))

    def pixels(self, photo: Pixels) -> Tensor:
        """The photo at the input's size in 8 bits, before its values are scaled: (C, H, W) uint8."""
        fitted = [self.prepare(photo)] if self._in_colour else self._fitted_bands(photo)
        array = np.stack([np.asarray(picture) for picture in fitted], 2) if len(fitted) > 1 else np.asarray(fitted[0])
        return torch.from_numpy(np.array(array.reshape(*self.size, -1).transpose(2, 0, 1), np.uint8, order="C"))

    def scaled(self, pixels: Tensor) -> Tensor:
        """Pixels (..., C, H, W) of 8 bits as the network's input in float32, on their device, the same on each."""
        # By tensors: CUDA multiplies by the reciprocal of a Python number, which rounds otherwise.
        full, mean, std = (_column(values, pixels.device) for values in ((255.0,), self.mean, self.std))
        return pixels.to(torch.float32, copy=True).div_(full).sub_(mean).div_(std)

    @property
    def _in_colour(self) -> bool:
        return len(self.mean) in (1, 3)

    def picture(self, photo: Pixels) -> Image.Image:
        """All of the photo in RGB, as it is drawn. Raises ImageError as `to_rgb`, and for another number of bands."""
        if self._in_colour:
            return to_rgb(photo, self.window, self.bands)
        return as_rgb(as_bands(photo, len(self.mean), self.window), self.bands, transparent=False)

    def prepare(self, photo: Pixels) -> Image.Image:
        """The picture that the network gets, before its values are scaled: RGB or grey, of the input's size."""
        image = self.picture(photo)
        if len(self.mean) == 1:
            image = image.convert("L")
        return self._fitted(image, tuple(round(m * 255) for m in self.mean[:3]))

    def _fitted_bands(self, photo: Pixels) -> list[Image.Image]:
        bands = np.moveaxis(as_bands(photo, len(self.mean), self.window), 2, 0)
        return [
            self._fitted(Image.fromarray(np.ascontiguousarray(band)), (round(mean * 255),))
            for band, mean in zip(bands, self.mean, strict=True)
        ]

    def _fitted(self, image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
        height, width = self.size
        resampling = _RESAMPLING[self.interpolation]
        if self.geometry == "stretch":
            return image.resize((width, height), resampling)
        scaled, (x, y) = self.placement(image.width, image.height)
        if self.geometry == "pad":
            canvas = Image.new(image.mode, (width, height), fill if image.mode == "RGB" else fill[0])
            canvas.paste(image.resize(scaled, resampling), (-x, -y))
            return canvas
        if scaled[0] * scaled[1] > MAX_PIXELS:  # a strip: resize only the part that is kept
            left, top, right, bottom = self.seen_box(image.width, image.height)
            inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
            return image.resize((width, height), resampling, box=inside)
        return image.resize(scaled, resampling).crop((x, y, x + width, y + height))

    def placement(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The (width, height) that a photo of this size is resized to, and where on it the input begins: (x, y)."""
        if self.geometry == "stretch":
            return (self.size[1], self.size[0]), (0, 0)
        scaled = self._scaled(width, height)
        return scaled, self._corner(scaled)

    def seen_box(self, width: int, height: int) -> Box:
        """What part of a photo of this size the network sees: (left, top, right, bottom) in the photo's pixels.

        With `pad` the box is larger than the photo.
        """
        if self.geometry == "stretch":
            return (0.0, 0.0, float(width), float(height))
        scaled, (left, top) = self.placement(width, height)
        h, w = self.size
        x, y = width / scaled[0], height / scaled[1]
        return (left * x, top * y, (left + w) * x, (top + h) * y)

    def to_image(self, x: Tensor) -> Image.Image:
        """The picture that an input (C, H, W) shows: the inverse of the scaling, clipped to 0..255."""
        if x.ndim != 3 or x.shape[0] != len(self.mean):
            raise InputError(f"an input of one photo is ({len(self.mean)}, H, W), not {tuple(x.shape)}")
        mean, std = (torch.tensor(stat).view(-1, 1, 1) for stat in (self.mean, self.std))
        values = ((x.detach().float().cpu() * std + mean) * 255).round().clamp(0, 255).byte()
        return as_rgb(values.permute(1, 2, 0).numpy(), None if self._in_colour else self.bands, transparent=False)

    def _corner(self, scaled: tuple[int, int]) -> tuple[int, int]:
        """Left and top of the input on the resized photo, rounded as torchvision does; negative where it is padded."""
        spare = scaled[0] - self.size[1], scaled[1] - self.size[0]
        left, top = (round(s / 2) if s > 0 else -(-s // 2) for s in spare)
        return left, top

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """The photo's size (W, H) after its resize."""
        if self.geometry == "pad":
            factor = min(self.size[0] / height, self.size[1] / width)
            return max(round(width * factor), 1), max(round(height * factor), 1)
        short, long = min(width, height), max(width, height)
        other = int(self.resize * long / short)  # rounded down, as torchvision does
        return (self.resize, other) if width <= height else (other, self.resize)


def preparation(how: Preprocess) -> str:
    """How photos are prepared for a network, in words."""
    ways = {"crop": f"the middle, with the shorter side at {how.resize}", "stretch": "stretched", "pad": "padded"}
    mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in (how.mean, how.std))
    window = "" if how.window is None else ", {:g} black and {:g} white".format(*how.window)
    bands = "" if how.bands is None else f", bands {' '.join(map(str, how.bands))}"
    return f"{how.size[0]} x {how.size[1]} ({ways[how.geometry]}), mean {mean}, std {std}{window}{bands}"
