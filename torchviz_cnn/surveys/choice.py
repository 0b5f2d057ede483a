"""Which photos are shown, and what the columns say together: confusions and calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from torchviz_cnn.media.render import Array
from torchviz_cnn.surveys.result import REGIONS, Calibration, ClassSummary, Confusion, Reason

BINS = 10


def chosen(
    columns: Mapping[str, Array], classes: Sequence[ClassSummary], explained: Array, k: int, seed: int
) -> dict[int, tuple[Reason, ...]]:
    """The places in the columns of the photos that are shown, and why, the first reason's photos first.

    Of equal values the earlier photo comes first.
    """
    predicted, confidence, generator = columns["predicted"], columns["confidence"], np.random.default_rng(seed)
    several = dict[Reason, list[int]]()
    suspect = [one for one in classes if one.region is not None][:k]
    for one in suspect:
        share = np.where(explained == one.index, columns["regions"][:, REGIONS.index(str(one.region))], np.nan)
        several.setdefault("border evidence", []).extend(_first(-share, max(k // len(suspect), 1)))
    if "true" in columns:
        right = predicted == columns["true"]
        several["highest loss"] = _first(-columns["loss"], k)
        several["confident and wrong"] = _first(np.where(right, np.nan, -confidence), k)
        several["least certain"] = _first(columns["margin"], k)
        several["random right"] = _some(np.flatnonzero(right), k, generator)
    else:
        several["least certain"] = _first(columns["margin"], k)
        several["random"] = _some(np.arange(len(predicted)), k, generator)
    reasons = dict[int, tuple[Reason, ...]]()
    for reason, places in several.items():
        for place in places:
            reasons[place] = (*reasons.get(place, ()), reason)
    return reasons


def _first(values: Array, k: int) -> list[int]:
    """The places of the smallest values, without those that are NaN."""
    order = np.argsort(values, kind="stable")
    return [int(place) for place in order[:k] if not np.isnan(values[place])]


def _some(places: Array, k: int, generator: np.random.Generator) -> list[int]:
    return sorted(int(place) for place in generator.permutation(places)[:k])


def confusions(columns: Mapping[str, Array]) -> tuple[Confusion, ...]:
    """Which classes are taken for which, the most frequent first."""
    if "true" not in columns:
        return ()
    pairs = Counter(zip(columns["true"].tolist(), columns["predicted"].tolist(), strict=True))
    wrong = [Confusion(true, predicted, count) for (true, predicted), count in pairs.items() if true != predicted]
    return tuple(sorted(wrong, key=lambda one: (-one.count, one.true, one.predicted)))


def calibration(columns: Mapping[str, Array]) -> Calibration | None:
    """How often predictions of a confidence are right, in ten bins (Guo et al., arXiv 1706.04599)."""
    if "true" not in columns:
        return None
    confidence = columns["confidence"].astype(float)
    right = (columns["predicted"] == columns["true"]).astype(float)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means, accuracy = (np.bincount(place, one, BINS) / count for one in (confidence, right))
    error = float(np.nansum(np.abs(means - accuracy) * count) / count.sum())
    edges = np.linspace(0, 1, BINS + 1)
    return Calibration(edges=edges, confidence=means, accuracy=accuracy, count=count, error=error)
