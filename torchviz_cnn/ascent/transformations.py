"""Small random movements of the image between steps, so that a pattern does not hang on single pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.core.errors import InputError

_PLAIN: Any = {"dtype": torch.float32, "device": "cpu"}
Draw = Callable[[torch.Generator, int, tuple[int, int]], Tensor]


@dataclass(frozen=True, eq=False)
class Transformation:
    """A random movement of the image plane. Several compose to one: the image is sampled once, however many there are."""

    text: str
    draw: Draw
    """For a generator, a number of steps n and a size (H, W): matrices (n, 3, 3) from places in the result, (x, y, 1) in
    pixels from the middle, to places in the image."""

    def __repr__(self) -> str:
        return self.text


def jitter(pixels: int) -> Transformation:
    """Shift by whole pixels, up to so many each way."""
    if not isinstance(pixels, int) or pixels < 0:
        raise InputError(f"jitter is at least 0 whole pixels, not {pixels!r}")

    def draw(generator: torch.Generator, steps: int, size: tuple[int, int]) -> Tensor:
        matrices = _identity().repeat(steps, 1, 1)
        matrices[:, :2, 2] = torch.randint(-pixels, pixels + 1, (steps, 2), generator=generator, device="cpu").float()
        return matrices

    return Transformation(f"jitter({pixels})", draw)


def scale(low: float, high: float) -> Transformation:
    """Enlarge by a factor between two."""
    if not 0 < _finite(low) <= _finite(high):
        raise InputError(f"scale goes from a factor above 0 to one not below it, not from {low} to {high}")

    def draw(generator: torch.Generator, steps: int, size: tuple[int, int]) -> Tensor:
        matrices = _identity().repeat(steps, 1, 1)
        factor = low + (high - low) * torch.rand(steps, generator=generator, **_PLAIN)
        matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factor
        return matrices

    return Transformation(f"scale({low:g}, {high:g})", draw)


def rotate(degrees: float) -> Transformation:
    """Turn about the middle, up to so many degrees each way."""
    degrees = _finite(degrees)

    def draw(generator: torch.Generator, steps: int, size: tuple[int, int]) -> Tensor:
        matrices = _identity().repeat(steps, 1, 1)
        angle = math.radians(degrees) * (2 * torch.rand(steps, generator=generator, **_PLAIN) - 1)
        matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
        matrices[:, 0, 1], matrices[:, 1, 0] = angle.sin(), -angle.sin()
        return matrices

    return Transformation(f"rotate({degrees:g})", draw)


def drawn(
    transformations: Sequence[Transformation], generator: torch.Generator, steps: int, size: tuple[int, int]
) -> Tensor:
    """All movements of one image, step by step, each step's composed to one matrix (steps, 2, 3) for `moved`."""
    height, width = size
    product = _identity().repeat(steps, 1, 1)
    for transformation in transformations:  # what comes first acts on the image first
        product = product @ transformation.draw(generator, steps, size)
    if not bool(product.isfinite().all()):
        raise InputError(f"the movements {', '.join(map(repr, transformations))} are not all finite")
    pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0], **_PLAIN))  # of places as -1..1
    matrices: Tensor = torch.linalg.inv(pixels) @ product @ pixels
    return matrices[:, :2]


def _identity() -> Tensor:
    return torch.eye(3, **_PLAIN)


def _finite(number: float) -> float:
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        raise InputError(f"a movement is by a finite number, not by {number!r}")
    return number


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (B, C, H, W) moved, each by its own matrix (B, 2, 3); beyond the border they are mirrored."""
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    sampled: Tensor = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return sampled
