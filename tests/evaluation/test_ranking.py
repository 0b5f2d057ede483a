"""Ranks, Kendall's tau and differences beyond chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchviz_cnn.evaluation.ranking import agreement, difference, kendall, ranks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 1000])
def test_kendall_is_that_of_scipy(seed: int, levels: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(seed).integers(0, levels, (2, 12)).tolist()
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(seed).integers(0, 6, 12).astype(float)
    assert ranks(values.tolist(), "lower") == pytest.approx(stats.rankdata(values).tolist())
    assert ranks(values.tolist(), "higher") == pytest.approx(stats.rankdata(-values).tolist())


def test_what_is_not_measured_has_no_rank_and_takes_none() -> None:
    placed = ranks([0.5, math.nan, 0.9], "higher")
    assert math.isnan(placed[1])
    assert placed[::2] == [2, 1]
    assert kendall(placed, [1, 2, 3]) == kendall([2, 1], [1, 3])


def test_rankings_without_an_order_have_no_agreement() -> None:
    table = agreement({"a": [1, 2, 3], "ties": [2, 2, 2], "b": [3, 2, 1]})
    assert table["a", "b"] == -1
    assert math.isnan(table["a", "ties"])


def test_a_difference_counts_where_its_interval_leaves_out_zero() -> None:
    photos = torch.rand(40, generator=torch.Generator().manual_seed(0))
    noise = 0.3 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    assert difference(photos + 0.01, photos, "higher") == 1  # small, and the same for every photo
    assert difference(photos + 0.01, photos, "lower") == -1
    assert difference(photos + noise - noise.mean() + 0.01, photos, "higher") == 0  # small beside its own spread
    assert difference(photos[:9] + 1, photos[:9], "higher") == 0  # so few say nothing
    assert difference(photos[:1] + 1, photos[:1], "higher") == 0  # one photo says nothing
    assert difference(photos, photos, "higher") == 0
