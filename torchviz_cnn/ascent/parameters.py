"""What gradient ascent changes: the pixels of an image, or its Fourier spectrum in decorrelated colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media.images import Preprocess

# Written by scripts/colour_statistics.py: the square root of the covariance of the colours of 700 photos of ImageNet's
# classes, 0..1, divided by its largest column norm. A column is a colour that varies on its own: light and dark, blue
# and yellow, green and magenta.
COLOURS = ((0.562, 0.205, 0.056), (0.581, -0.001, -0.115), (0.589, -0.195, 0.060))

Size = int | tuple[int, int]
_LARGEST = 100_000_000
FLOAT32_ON_CPU: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever the caller's defaults are, noise is the same


@dataclass(frozen=True)
class InputScale:
    """How values of photos, 0..1, become a model's input: (v - mean) / std by channel; one number stands for all."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @staticmethod
    def of(preprocess: Preprocess | None, channels: int) -> InputScale:
        """That of a model's preprocessing; the input as it is where that is not known, or is for other channels."""
        if preprocess is None or len(preprocess.mean) != channels:
            return InputScale()
        return InputScale(tuple(preprocess.mean), tuple(preprocess.std))

    def to_input(self, photos: Tensor) -> Tensor:
        """(..., C, H, W) of 0..1 on the model's scale."""
        return (photos - self._like(self.mean, photos)) / self._like(self.std, photos)

    def to_photo(self, x: Tensor) -> Tensor:
        """(..., C, H, W) on the model's scale back on 0..1."""
        return x * self._like(self.std, x) + self._like(self.mean, x)

    @staticmethod
    def _like(values: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class ImageParameters:
    """A way to write images down: how one starts, and the images (B, C, H, W) that parameters (B, ...) stand for."""

    # The parameters of one image from its own generator; the number is the attempt, as dead noise is drawn anew.
    start: Callable[[torch.Generator, int], Tensor]
    images: Callable[[Tensor], Tensor]  # on the scale of the model's input


def pixels(
    shape: tuple[int, int, int], scale: InputScale = InputScale(), low: float = 0.4, high: float = 0.6
) -> ImageParameters:
    """Change the values of an image (C, H, W) themselves, on the input's scale; they start as uniform noise.

    `low` and `high` are on a photo's scale, 0..1; a second attempt draws from all of it, a third in 16-pixel patches.
    """

    def start(generator: torch.Generator, attempt: int = 0) -> Tensor:
        if attempt > 1:
            patches = [-(-side // 16) for side in shape[1:]]
            coarse = torch.rand(1, shape[0], *patches, generator=generator, **FLOAT32_ON_CPU)
            return scale.to_input(F.interpolate(coarse, shape[1:], mode="bilinear")[0])
        a, b = (low, high) if attempt == 0 else (0.0, 1.0)
        return scale.to_input(a + (b - a) * torch.rand(*shape, generator=generator, **FLOAT32_ON_CPU))

    return ImageParameters(start, lambda parameters: parameters)


def fourier(
    shape: tuple[int, int, int], scale: InputScale = InputScale(), decay: float = 1.0, deviation: float = 0.01
) -> ImageParameters:
    """Change the spectrum of an image (C, H, W) over frequency ** decay, in colours that photos vary in independently.

    Steps of one size then change all frequencies and colours of an image as much as photos vary in them. The values
    end between 0 and 1 (a sigmoid), then on the model's scale. Networks of other than 3 channels keep their channels.

    Olah, Mordvintsev, Schubert: Feature Visualization, Distill 2017.
    """
    channels, height, width = shape
    rows, columns = torch.fft.fftfreq(height, **FLOAT32_ON_CPU)[:, None], torch.fft.rfftfreq(width, **FLOAT32_ON_CPU)
    frequency = (rows**2 + columns**2).sqrt().clamp_min(1 / max(height, width))
    spread = math.sqrt(height * width) / frequency**decay
    colours = torch.tensor(COLOURS, **FLOAT32_ON_CPU) if channels == 3 else torch.eye(channels, **FLOAT32_ON_CPU)

    def start(generator: torch.Generator, attempt: int = 0) -> Tensor:
        strength = deviation * 10.0**attempt
        return strength * torch.randn(channels, *frequency.shape, 2, generator=generator, **FLOAT32_ON_CPU)

    @cache
    def constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The spread, the colours and the scale, copied once, as each copy waits for the device."""
        with torch.inference_mode(False):
            numbers = (
                torch.tensor(values, dtype=torch.float64, device="cpu")[:, None, None]
                for values in (scale.mean, scale.std)
            )
            return tuple(part.to(device, dtype) for part in (spread, colours, *numbers))

    def images(parameters: Tensor) -> Tensor:
        spread, colours, mean, std = constants(parameters.device, parameters.dtype)
        spectrum = torch.view_as_complex(parameters.contiguous()) * spread
        values: Tensor = torch.fft.irfft2(spectrum, s=(height, width), norm="backward") / 4
        return (torch.einsum("ij,bjhw->bihw", colours, values).sigmoid() - mean) / std

    return ImageParameters(start, images)


def image_size(size: Size) -> tuple[int, int]:
    """Height and width of images. Raises InputError for sides that are not possible."""
    height, width = checks.sides("size", size)
    if height * width > _LARGEST:
        raise InputError(f"size is at most {_LARGEST:,} pixels in all, not {size!r}")
    return height, width


def start_images(start: Tensor, channels: int, size: Size | None) -> Tensor:
    """Images (n, C, H, W) to start from, one or several. Raises InputError for others than the model takes."""
    if start.ndim not in (3, 4) or start.shape[-3] != channels:
        wanted = f"({channels}, H, W), or one for each pattern (n, {channels}, H, W)"
        raise InputError(f"start is an image {wanted}, not {tuple(start.shape)}")
    if not start.numel() or not start.is_floating_point():
        raise InputError(f"start is an image of floating point values, as preprocess gives, not {start.dtype}")
    if not bool(start.isfinite().all()):
        raise InputError("start has values that are NaN or infinite")
    if size is not None and tuple(start.shape[-2:]) != image_size(size):
        raise InputError(f"start is {tuple(start.shape[-2:])}, which is not the size asked for, {size}")
    return (start if start.ndim == 4 else start[None]).detach()
