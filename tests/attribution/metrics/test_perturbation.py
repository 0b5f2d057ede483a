"""Insertion, deletion and average drop on networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc


class Corner(nn.Module):
    """Two classes: the logit of the first is the sum of the upper left corner (4 x 4) of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.identity.weight)

    def forward(self, x: Tensor) -> Tensor:
        corner = self.identity(x)[:, 0, :4, :4].sum((1, 2))
        return torch.stack([corner, torch.zeros_like(corner)], 1)


def perfect() -> Tensor:
    """A map of the corner alone, decreasing, so that no two of its pixels are equal."""
    maps = torch.zeros(1, 16, 16)
    maps[0, :4, :4] = torch.arange(16, 0, -1.0).view(4, 4)
    return maps


def test_deletion_of_a_perfect_map_is_the_area_under_the_known_curve() -> None:
    x = torch.ones(1, 1, 16, 16)
    measured = tvc.metrics.deletion(Corner(), x, perfect(), target=0, steps=256)
    logits = torch.cat([torch.arange(16, -1, -1.0), torch.zeros(240)])
    expected = torch.trapezoid(logits.sigmoid(), dx=1 / 256)
    assert measured.values[0] == pytest.approx(float(expected), abs=1e-6)
    assert measured.curves is not None
    torch.testing.assert_close(measured.curves.y[0], logits.sigmoid())


def test_a_perfect_map_beats_a_random_one_and_that_an_inverted_one() -> None:
    x = torch.ones(1, 1, 16, 16)
    random = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    for metric, sign in ((tvc.metrics.insertion, -1), (tvc.metrics.deletion, 1)):
        values = [
            sign * metric(Corner(), x, maps, target=0, baseline=0.0).mean
            for maps in (perfect(), random, perfect().max() - perfect())
        ]
        assert values == sorted(values)
        assert values[0] < values[1] < values[2]


def test_an_empty_map_is_not_measured_and_says_why() -> None:
    measured = tvc.metrics.insertion(Corner(), torch.ones(2, 1, 16, 16), torch.cat([perfect(), torch.zeros(1, 16, 16)]))
    assert measured.values.isfinite().tolist() == [True, False]
    assert measured.reasons == {1: "the map is all zeros"}
    assert measured.count == 1
