"""Ranks of methods, how far two rankings agree, and whether a difference is more than chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from torchviz_cnn.attribution.metrics.result import Better, bootstrap_interval


def ranks(values: Sequence[float], better: Better) -> list[float]:
    """The rank of each value, the best 1; equal values share the mean of their ranks, and NaN has none.

    >>> ranks([0.5, 0.9, math.nan, 0.5], "higher")
    [2.5, 1.0, nan, 2.5]
    """
    sign = -1 if better == "higher" else 1
    known = [sign * value for value in values if not math.isnan(value)]
    placed = []
    for value in values:
        before, same = sum(one < sign * value for one in known), sum(one == sign * value for one in known)
        placed.append(math.nan if math.isnan(value) else before + (same + 1) / 2)
    return placed


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings of the same things: 1 the same, -1 reversed; NaN where one is all ties.

    What has no rank in one of them is left out.

    >>> kendall([1, 2, 3, 4], [1, 2, 4, 3])
    0.6666666666666666
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if not (math.isnan(x) or math.isnan(y))]
    signs = [(_sign(one[0] - other[0]), _sign(one[1] - other[1])) for one, other in itertools.combinations(pairs, 2)]
    untied = sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)
    return sum(x * y for x, y in signs) / math.sqrt(untied) if untied else math.nan


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def agreement(rankings: Mapping[str, Sequence[float]]) -> dict[tuple[str, str], float]:
    """Kendall's tau-b of every two rankings, by their names."""
    return {(a, b): kendall(rankings[a], rankings[b]) for a, b in itertools.combinations(rankings, 2)}


FEWEST = 10
"""Below how many images two methods are not called different: the interval of so few is too short. Of 4 images it
leaves out zero in 17 of 100 cases where there is no difference, of 10 in 10."""


def difference(a: Tensor, b: Tensor, better: Better) -> int:
    """1 where the first method is better than the second on the same images, -1 where it is worse, 0 where neither.

    The 95 % interval of the mean difference has to leave out zero, over at least ten images. Images that one of them
    lacks are left out.

    >>> import torch
    >>> difference(torch.linspace(0.8, 0.9, 10), torch.linspace(0.2, 0.1, 10), "higher")
    1
    """
    if int((a - b).isfinite().sum()) < FEWEST:
        return 0
    low, high = bootstrap_interval(a - b)
    sign = -1 if better == "lower" else 1
    return sign if low > 0 else -sign if high < 0 else 0


__all__ = ["FEWEST", "agreement", "difference", "kendall", "ranks"]
