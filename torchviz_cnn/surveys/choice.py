"""Which photos are shown, with their heatmaps, and what the columns say together: confusions and calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchviz_cnn.core.errors import ImageError
from torchviz_cnn.hooks.network import module_of
from torchviz_cnn.media.render import Array
from torchviz_cnn.runs import files
from torchviz_cnn.surveys.passes import Look
from torchviz_cnn.surveys.result import REGIONS, Calibration, ClassSummary, Confusion, Reason, ShownPhoto
from torchviz_cnn.topk.reading import read_batches

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


def explained_again(
    look: Look,
    places: Array,
    names: Sequence[str],
    true: Array | None,
    reasons: Mapping[int, tuple[Reason, ...]],
    batch_size: int,
) -> tuple[ShownPhoto, ...]:
    """The photos that are shown, explained again a few at a time, in the order of their reasons.

    `places`, `names` and `true` are columns: where each photo is in the source, its name, and its true class. Raises
    ImageError for a photo that was read before and cannot be read again.
    """
    maps, frames, order = dict[int, Any](), dict[int, Any](), sorted(reasons)
    device = next((p.device for p in module_of(look.explainer.model).parameters()), torch.device("cpu"))
    parts = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    batches = [[int(places[place]) for place in some] for some in parts]
    for some, batch in zip(parts, read_batches(look.source, range(len(parts)), batches, 0, device, True), strict=True):
        if batch.skipped:
            reason = next(iter(batch.skipped.values()))
            raise ImageError(f"a photo that was read before cannot be read again: {reason}")
        explained = look.explainer(batch.on(device), None if true is None else torch.from_numpy(true[some]))
        maps |= dict(zip(some, explained.maps.numpy(), strict=True))
        frames |= {place: batch.frames[int(places[place])] for place in some}
    # cat/1.jpg makes cat_1
    flat = {place: Path(str(place), names[place].replace("/", "_")[-120:]) for place in reasons}
    stems = files.file_names(flat.values())
    several = []
    for place, why in reasons.items():
        values, (size, box) = maps[place], frames[place]
        stem = f"heatmaps/{stems[flat[place]]}"
        pictures = {"predicted": f"{stem}_predicted.png"} | ({} if true is None else {"true": f"{stem}_true.png"})
        photo = ShownPhoto(
            index=place,
            name=names[place],
            reasons=why,
            size=size,
            box=box,
            heatmap=values[0].copy(),
            true_heatmap=None if true is None else values[1].copy(),
            files=pictures,
        )
        several.append(photo)
    return tuple(several)


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
