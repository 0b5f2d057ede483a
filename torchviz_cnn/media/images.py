"""Photos: reading any file into RGB, preparing it for a network, and where on it the network looked."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from torchviz_cnn.core.errors import ImageError, InputError, did_you_mean
from torchviz_cnn.media.render import Box

Geometry = Literal["crop", "stretch", "pad"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a photo as an RGB image, upright as its EXIF orientation says.

    Grey, 16-bit, CMYK and palette images are converted, transparency is laid on white, of an animation the first
    frame is taken. Raises ImageError, with the file's name, for what is missing, no image, truncated, or larger than
    `max_pixels`.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder, not an image")
    if not os.path.exists(path):
        raise ImageError(f"no image {path}{did_you_mean(path.name, _names_in(path.parent))}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata
            with Image.open(path) as image:
                if image.width * image.height > max_pixels:
                    size = f"{image.width} x {image.height} pixels"
                    raise ImageError(f"{path} has {size}; at most {max_pixels:,} are read (max_pixels)")
                image.load()
                return _converted(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image of a known format, or is broken") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large: {error}") from None
    except Exception as error:  # a damaged file may fail in any way its decoder knows
        raise ImageError(f"{path} cannot be read, it may be truncated: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB: 16-bit scaled to 8, floats of 0..1 to 0..255, transparency laid on white.

    Raises ImageError for what is no PIL image, or of a mode that PIL cannot convert.
    """
    if not isinstance(image, Image.Image):
        raise ImageError(f"a photo is a PIL image, not a {type(image).__name__}; read_image(path) gives one")
    try:
        return _converted(image)
    except ValueError as error:
        raise ImageError(f"a photo of mode {image.mode!r} cannot be turned into RGB: {error}") from error


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []


def _converted(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.nan_to_num(np.array(image, dtype=np.float64))
        floats = image.mode == "F"
        values *= (255 if values.max(initial=0) <= 1 else 1) if floats else 1 / 257
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """From a photo to what a network expects, and back from the network's input to the photo.

    `geometry`: `crop` resizes the shorter side to `resize` pixels and takes the middle, as torchvision's presets do;
    `stretch` resizes both sides to the input's size, as the textbook does; `pad` fits all of the photo in, with the
    mean colour around it. `size` is (H, W). Values are scaled to 0..1, then (v - mean) / std by channel.
    """

    size: tuple[int, int] = (224, 224)
    geometry: Geometry = "crop"
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.geometry not in get_args(Geometry):
            raise InputError(f"geometry is 'crop', 'stretch' or 'pad', not {self.geometry!r}")
        if self.interpolation not in _RESAMPLING:
            raise InputError(f"interpolation is one of {', '.join(_RESAMPLING)}, not {self.interpolation!r}")
        if min(*self.size, self.resize) < 1:
            raise InputError(f"size {self.size} and resize {self.resize} are at least 1 pixel")
        if len(self.mean) != len(self.std) or not all(self.std):
            raise InputError(f"mean {self.mean} and std {self.std} have one number per channel, std none of 0")

    def __call__(self, photo: Image.Image) -> Tensor:
        """The photo as the network's input: (C, H, W) float32, C = 1 (grey) or 3 after the number of means."""
        array = np.asarray(self.prepare(photo), dtype=np.float32) / np.float32(255)
        values = torch.from_numpy(array.reshape(*self.size, -1)).permute(2, 0, 1)
        mean, std = (torch.tensor(stat).view(-1, 1, 1) for stat in (self.mean, self.std))
        return ((values - mean) / std).contiguous()

    def prepare(self, photo: Image.Image) -> Image.Image:
        """The picture that the network gets, before its values are scaled: RGB or grey, of the input's size."""
        image = to_rgb(photo)
        if len(self.mean) == 1:
            image = image.convert("L")
        height, width = self.size
        how = _RESAMPLING[self.interpolation]
        if self.geometry == "stretch":
            return image.resize((width, height), how)
        if self.geometry == "pad":
            scaled = self._scaled(photo.width, photo.height)
            colour = tuple(round(m * 255) for m in self.mean)
            canvas = Image.new(image.mode, (width, height), colour if len(colour) == 3 else colour[0])
            corner = self._corner(scaled)
            canvas.paste(image.resize(scaled, how), (-corner[0], -corner[1]))
            return canvas
        scaled = self._scaled(photo.width, photo.height)
        if scaled[0] * scaled[1] > MAX_PIXELS:  # a strip: resize only the part that is kept
            left, top, right, bottom = self.seen_box(photo.width, photo.height)
            inside = (max(left, 0), max(top, 0), min(right, photo.width), min(bottom, photo.height))
            return image.resize((width, height), how, box=inside)
        x, y = self._corner(scaled)
        return image.resize(scaled, how).crop((x, y, x + width, y + height))

    def seen_box(self, width: int, height: int) -> Box:
        """What part of a photo of this size the network sees: (left, top, right, bottom) in the photo's pixels.

        With `pad` the box is larger than the photo.
        """
        if self.geometry == "stretch":
            return (0.0, 0.0, float(width), float(height))
        scaled = self._scaled(width, height)
        h, w = self.size
        left, top = self._corner(scaled)
        x, y = width / scaled[0], height / scaled[1]
        return (left * x, top * y, (left + w) * x, (top + h) * y)

    def to_image(self, x: Tensor) -> Image.Image:
        """The picture that an input (C, H, W) shows: the inverse of the scaling, clipped to 0..255."""
        if x.ndim != 3 or x.shape[0] != len(self.mean):
            raise InputError(f"an input of one photo is ({len(self.mean)}, H, W), not {tuple(x.shape)}")
        mean, std = (torch.tensor(stat).view(-1, 1, 1) for stat in (self.mean, self.std))
        values = ((x.detach().float().cpu() * std + mean) * 255).round().clamp(0, 255).byte()
        return Image.fromarray(values.permute(1, 2, 0).squeeze(2).numpy()).convert("RGB")

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
