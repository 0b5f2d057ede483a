"""What is known of each class, and a caution where its evidence lies in one corner or along one edge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from torchviz_cnn.core.errors import counted
from torchviz_cnn.media.render import Array
from torchviz_cnn.surveys.result import AREAS, GRID, REGIONS, ClassSummary

FEWEST = 8
"""A class of fewer photos has no caution: their mean says too little."""
TIMES = 2.0
"""A caution needs that many times the share of the other classes, and of an even map."""
LEAST = 0.15
"""And at least that share of the evidence in the region."""
CHANCE = 0.001
"""And a difference from the other classes that chance alone gives in one folder of a thousand."""
ALONE = 5.0
"""Where there is no other class to compare with, a caution needs that many times the share of an even map."""


def summaries(
    columns: Mapping[str, Array], cells: Mapping[int, Array], names: Sequence[str], classes: Array
) -> tuple[ClassSummary, ...]:
    """What is known of each class, those with most photos first.

    Args:
        columns: as the pass has them.
        cells: by class, the sum of the shares in each cell.
        names: of the network's classes.
        classes: the class that each photo counts for.
    """
    predicted, regions = columns["predicted"], columns["regions"]
    labelled = "true" in columns
    counts = np.bincount(classes, minlength=len(names))
    taken = np.bincount(predicted, minlength=len(names))
    order = sorted(np.flatnonzero(counts + taken).tolist(), key=lambda number: (-counts[number], number))
    tests = sum(int(counts[number] >= FEWEST) for number in order) * len(REGIONS)
    several = []
    for number in order:
        own = classes == number
        means, others = _means(regions[own]), _means(regions[~own])
        place = _region(regions[own], regions[~own], tests) if counts[number] >= FEWEST else None
        region = None if place is None else REGIONS[place]
        several.append(
            ClassSummary(
                index=number,
                name=names[number],
                count=int(counts[number]),
                predicted=int(taken[number]),
                correct=int((own & (predicted == number)).sum()) if labelled else None,
                heatmap=_normalised(cells.get(number)),
                border=_mean(columns["border"][own]),
                corners=_mean(columns["corner"][own]),
                regions=dict(zip(REGIONS, means.tolist(), strict=True)),
                others=dict(zip(REGIONS, others.tolist(), strict=True)),
                inside=_mean(columns["inside"][own]) if "inside" in columns else None,
                region=region,
                caution=None if place is None else _caution(names[number], place, means, others, int(counts[number])),
            )
        )
    return tuple(several)


def _region(own: Array, others: Array, tests: int) -> int | None:
    """The region in which a class has much more evidence than it should; None where there is none.

    Args:
        own: shares of its photos in each region (n, 8).
        others: those of the photos of other classes (m, 8).
        tests: how many regions of how many classes are looked at.
    """
    own, others = own[~np.isnan(own).any(1)], others[~np.isnan(others).any(1)]
    if len(own) < FEWEST:
        return None
    means, areas = own.mean(0), np.array(AREAS)
    if len(others) < FEWEST:
        suspect = means >= np.maximum(ALONE * areas, LEAST)
    else:
        usual = np.maximum(others.mean(0), areas)
        spread = np.sqrt(own.var(0, ddof=1) / len(own) + others.var(0, ddof=1) / len(others))
        beyond = (means - others.mean(0)) / np.maximum(spread, 1e-12)
        chance = np.array([math.erfc(max(one, 0) / math.sqrt(2)) / 2 for one in beyond]) * tests
        suspect = (means >= np.maximum(TIMES * usual, LEAST)) & (chance < CHANCE)
    return int(np.argmax(np.where(suspect, means / areas, -1))) if suspect.any() else None


def _caution(name: str, place: int, means: Array, others: Array, count: int) -> str:
    share, area, region = means[place], AREAS[place], REGIONS[place]
    rest = "" if math.isnan(others[place]) else f" and the other classes have {others[place]:.0%}"
    return (
        f"{name}: {share:.0%} of the evidence in {counted(count, 'photo')} lies in the {region}, where an even map has "
        f"{area:.0%}{rest}; look there for a mark, a letter or a background that only this class has"
    )


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _means(rows: Array) -> Array:
    known = rows[~np.isnan(rows).any(1)]
    return np.asarray(known.mean(0)) if len(known) else np.full(rows.shape[1], np.nan)


def _normalised(cells: Array | None) -> Array:
    total = 0.0 if cells is None else float(cells.sum())
    return (
        np.zeros((GRID, GRID), np.float32)
        if cells is None or total <= 0
        else np.asarray(cells / total, dtype=np.float32)
    )
