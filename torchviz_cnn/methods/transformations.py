"""Small random movements of the image between steps, so that a pattern does not hang on single pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.errors import InputError

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
    if pixels < 0:
        raise InputError(f"jitter is at least 0 pixels, not {pixels}")

    def draw(generator: torch.Generator, steps: int, size: tuple[int, int]) -> Tensor:
        matrices = torch.eye(3).repeat(steps, 1, 1)
        matrices[:, :2, 2] = torch.randint(-pixels, pixels + 1, (steps, 2), generator=generator).float()
        return matrices

    return Transformation(f"jitter({pixels})", draw)


def scale(low: float, high: float) -> Transformation:
    """Enlarge by a factor between two."""
    if not 0 < low <= high:
        raise InputError(f"scale goes from a factor above 0 to one not below it, not from {low} to {high}")

    def draw(generator: torch.Generator, steps: int, size: tuple[int, int]) -> Tensor:
        matrices = torch.eye(3).repeat(steps, 1, 1)
        factor = low + (high - low) * torch.rand(steps, generator=generator)
        matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factor
        return matrices

    return Transformation(f"scale({low:g}, {high:g})", draw)


def rotate(degrees: float) -> Transformation:
    """Turn about the middle, up to so many degrees each way."""

    def draw(generator: torch.Generator, steps: int, size: tuple[int, int]) -> Tensor:
        matrices = torch.eye(3).repeat(steps, 1, 1)
        angle = math.radians(degrees) * (2 * torch.rand(steps, generator=generator) - 1)
        matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
        matrices[:, 0, 1], matrices[:, 1, 0] = angle.sin(), -angle.sin()
        return matrices

    return Transformation(f"rotate({degrees:g})", draw)


def drawn(
    transformations: Sequence[Transformation], generator: torch.Generator, steps: int, size: tuple[int, int]
) -> Tensor:
    """All movements of one image, step by step, each step's composed to one matrix (steps, 2, 3) for `moved`."""
    height, width = size
    product = torch.eye(3).repeat(steps, 1, 1)
    for transformation in transformations:  # what comes first acts on the image first
        product = product @ transformation.draw(generator, steps, size)
    pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0]))  # of places as -1..1
    matrices: Tensor = torch.linalg.inv(pixels) @ product @ pixels
    return matrices[:, :2]


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (B, C, H, W) moved, each by its own matrix (B, 2, 3); beyond the border they are mirrored."""
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    sampled: Tensor = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return sampled
