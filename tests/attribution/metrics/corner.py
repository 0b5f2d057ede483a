"""A network that looks at one corner alone, and maps of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 16


class Corner(nn.Module):
    """Two classes: the logit of the first is the sum of the upper left corner (4 x 4) of all channels."""

    def __init__(self, scale: float = 1.0, channels: int = 1) -> None:
        super().__init__()
        self.identity = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.constant_(self.identity.weight, scale)

    def forward(self, x: Tensor) -> Tensor:
        corner = self.identity(x)[:, 0, :4, :4].sum((1, 2))
        return torch.stack([corner, torch.zeros_like(corner)], 1)


class CornerOfOneOutput(Corner):
    """The same as a binary network of one output: the logit of its second class."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :1]


def perfect(side: int = SIDE) -> Tensor:
    """A map of the corner alone, decreasing, so that no two of its pixels are equal."""
    maps = torch.zeros(1, side, side)
    maps[0, :4, :4] = torch.arange(16, 0, -1.0).view(4, 4)
    return maps


def random(count: int = 1, side: int = SIDE, seed: int = 0) -> Tensor:
    """Seeded maps (count, side, side) that know nothing."""
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed))


def inverted(side: int = SIDE) -> Tensor:
    """The perfect map upside down: the corner is what matters least."""
    return perfect(side).max() - perfect(side)
