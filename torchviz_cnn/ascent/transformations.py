"""Small random movements of the image between steps, so that a pattern does not depend on single pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.ascent.parameters import FLOAT32_ON_CPU
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError


@dataclass(frozen=True, repr=False)
class Transformation:
    """A random movement of the image plane; several compose to one, by which the image is sampled once."""

    kind: str
    bounds: tuple[float, ...]

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        """Draw matrices (steps, 3, 3) from places in the result, (x, y, 1) from the middle, to the image's."""
        matrices, low, high = torch.eye(3, **FLOAT32_ON_CPU).repeat(steps, 1, 1), self.bounds[0], self.bounds[-1]
        if self.kind == "jitter":
            pixels, shape = int(high), (steps, 2)
            matrices[:, :2, 2] = torch.randint(-pixels, pixels + 1, shape, generator=generator, device="cpu").float()
        elif self.kind == "scale":
            factor = low + (high - low) * torch.rand(steps, generator=generator, **FLOAT32_ON_CPU)
            matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factor
        else:
            angle = math.radians(high) * (2 * torch.rand(steps, generator=generator, **FLOAT32_ON_CPU) - 1)
            matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
            matrices[:, 0, 1], matrices[:, 1, 0] = angle.sin(), -angle.sin()
        return matrices

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{bound:g}' for bound in self.bounds)})"


def jitter(pixels: int) -> Transformation:
    """Shift by whole pixels, up to this many each way, at most a million."""
    if checks.whole_number("jitter", pixels, 0) > 1_000_000:
        raise InputError(f"jitter is at most 1,000,000 pixels, not {pixels}")
    return Transformation("jitter", (pixels,))


def scale(low: float, high: float) -> Transformation:
    """Enlarge by a factor between two."""
    if not 0 < checks.number("scale", low) <= checks.number("scale", high):
        raise InputError(f"scale goes from a factor above 0 to one not below it, not from {low} to {high}")
    return Transformation("scale", (low, high))


def rotate(degrees: float) -> Transformation:
    """Turn about the middle, up to this many degrees each way."""
    return Transformation("rotate", (checks.number("rotate", degrees),))


def sampled_matrices(
    transformations: Sequence[Transformation], generator: torch.Generator, steps: int, size: tuple[int, int]
) -> Tensor:
    """All movements of one image (H, W), step by step, each step's composed to one matrix (steps, 2, 3) for `moved`."""
    height, width = size
    product = torch.eye(3, **FLOAT32_ON_CPU).repeat(steps, 1, 1)
    for transformation in transformations:  # what comes first acts on the image first
        product = product @ transformation.draw(generator, steps)
    if not bool(product.isfinite().all()):
        raise InputError(f"the movements {', '.join(map(repr, transformations))} are not all finite")
    pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0], **FLOAT32_ON_CPU))  # of places as -1..1
    matrices: Tensor = torch.linalg.inv(pixels) @ product @ pixels
    return matrices[:, :2]


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (B, C, H, W) moved, each by its own matrix (B, 2, 3); beyond the border they are mirrored."""
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    sampled: Tensor = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return sampled
