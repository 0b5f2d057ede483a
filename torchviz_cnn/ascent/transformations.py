"""Small random movements of the image between steps, so that a pattern does not depend on single pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError

_PLAIN: Any = {"dtype": torch.float32, "device": "cpu"}


@dataclass(frozen=True, repr=False)
class Transformation:
    """A random movement of the image plane. Several compose to one: the image is sampled once, however many there are."""

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        """Draw matrices (steps, 3, 3) from places in the result, (x, y, 1) in pixels from the middle, to the image's."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}({', '.join(f'{value:g}' for value in astuple(self))})"


@dataclass(frozen=True, repr=False)
class Jitter(Transformation):
    """A shift by whole pixels, see `jitter`."""

    pixels: int

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        matrices, size = torch.eye(3, **_PLAIN).repeat(steps, 1, 1), (steps, 2)
        matrices[:, :2, 2] = torch.randint(
            -self.pixels, self.pixels + 1, size, generator=generator, device="cpu"
        ).float()
        return matrices


@dataclass(frozen=True, repr=False)
class Scale(Transformation):
    """An enlargement, see `scale`."""

    low: float
    high: float

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        matrices = torch.eye(3, **_PLAIN).repeat(steps, 1, 1)
        factor = self.low + (self.high - self.low) * torch.rand(steps, generator=generator, **_PLAIN)
        matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factor
        return matrices


@dataclass(frozen=True, repr=False)
class Rotate(Transformation):
    """A turn about the middle, see `rotate`."""

    degrees: float

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        matrices = torch.eye(3, **_PLAIN).repeat(steps, 1, 1)
        angle = math.radians(self.degrees) * (2 * torch.rand(steps, generator=generator, **_PLAIN) - 1)
        matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
        matrices[:, 0, 1], matrices[:, 1, 0] = angle.sin(), -angle.sin()
        return matrices


def jitter(pixels: int) -> Transformation:
    """Shift by whole pixels, up to so many each way."""
    return Jitter(checks.whole_number("jitter", pixels, 0))


def scale(low: float, high: float) -> Transformation:
    """Enlarge by a factor between two."""
    if not 0 < checks.number("scale", low) <= checks.number("scale", high):
        raise InputError(f"scale goes from a factor above 0 to one not below it, not from {low} to {high}")
    return Scale(low, high)


def rotate(degrees: float) -> Transformation:
    """Turn about the middle, up to so many degrees each way."""
    return Rotate(checks.number("rotate", degrees))


def drawn(
    transformations: Sequence[Transformation], generator: torch.Generator, steps: int, size: tuple[int, int]
) -> Tensor:
    """All movements of one image (H, W), step by step, each step's composed to one matrix (steps, 2, 3) for `moved`."""
    height, width = size
    product = torch.eye(3, **_PLAIN).repeat(steps, 1, 1)
    for transformation in transformations:  # what comes first acts on the image first
        product = product @ transformation.draw(generator, steps)
    if not bool(product.isfinite().all()):
        raise InputError(f"the movements {', '.join(map(repr, transformations))} are not all finite")
    pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0], **_PLAIN))  # of places as -1..1
    matrices: Tensor = torch.linalg.inv(pixels) @ product @ pixels
    return matrices[:, :2]


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (B, C, H, W) moved, each by its own matrix (B, 2, 3); beyond the border they are mirrored."""
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    sampled: Tensor = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return sampled
