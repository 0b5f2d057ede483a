"""Where on a photo the evidence of a heatmap lies: its share in the border and the corners, and in cells of a grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from torchviz_cnn.media.render import Array, Box, resample
from torchviz_cnn.surveys.result import GRID, REGIONS

_EDGE, _CORNER = GRID // 10, GRID // 5
"""Cells of an edge, a tenth of a side, and of a corner, a fifth of both sides."""
_WINDOWS: tuple[tuple[slice, slice], ...] = (
    (slice(None, _CORNER), slice(None, _CORNER)),
    (slice(None, _CORNER), slice(-_CORNER, None)),
    (slice(-_CORNER, None), slice(None, _CORNER)),
    (slice(-_CORNER, None), slice(-_CORNER, None)),
    (slice(None, _EDGE), slice(None)),
    (slice(-_EDGE, None), slice(None)),
    (slice(None), slice(None, _EDGE)),
    (slice(None), slice(-_EDGE, None)),
)
"""The cells of each of `REGIONS`."""


class Where(NamedTuple):
    """Where the evidence of one map lies. All are NaN, and cells zero, for a map without a positive value."""

    regions: Array
    """Its share in each of `REGIONS` of what the network sees: (8,)."""
    border: float
    """Its share in the outer tenth along all sides."""
    corners: float
    """Its share in the four corners."""
    cells: Array
    """Its share in each cell of the whole photo, stretched to a square: (40, 40), of sum 1."""


def where(values: Array, size: tuple[int, int], box: Box) -> Where:
    """Where the positive values of a map (h, w) lie, that covers `box` of a photo of a size (width, height).

    Regions are those of what the network sees of the photo: of a photo that is cropped, the parts of the crop.
    """
    values = np.maximum(values, 0)
    seen = seen_part(size, box)
    on_seen = resample(values, _in_cells(box, seen), GRID, GRID)
    total = float(on_seen.sum())
    if not total > 0:
        return Where(np.full(len(REGIONS), np.nan), float("nan"), float("nan"), np.zeros((GRID, GRID)))
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    cells = on_seen if seen == whole else resample(values, _in_cells(box, whole), GRID, GRID) * coverage(size, box)
    regions = np.array([on_seen[window].sum() for window in _WINDOWS]) / total
    border = 1 - float(on_seen[_EDGE:-_EDGE, _EDGE:-_EDGE].sum()) / total
    return Where(regions, border, float(regions[:4].sum()), cells / max(float(cells.sum()), np.finfo(float).tiny))


def coverage(size: tuple[int, int], box: Box) -> Array:
    """Which cells of a photo's grid the network sees, by their centres: (40, 40) of 0 and 1."""
    left, top, right, bottom = _in_cells(seen_part(size, box), (0.0, 0.0, float(size[0]), float(size[1])))
    centres = np.arange(GRID) + 0.5
    down, across = (top <= centres) & (centres <= bottom), (left <= centres) & (centres <= right)
    return np.asarray(down[:, None] & across, dtype=float)


def inside(mask: Array | None, values: Array, size: tuple[int, int], box: Box) -> float:
    """The share of the positive values of a map (h, w) on an object: what `energy_in_mask` measures.

    `mask` marks the object on the whole photo, at any resolution: (height, width) bool. NaN without one, for one of
    another shape than the photo, and for a map without a positive value.
    """
    if mask is None:
        return float("nan")
    height, width = mask.shape
    x, y = width / size[0], height / size[1]
    if max(abs(width - size[0] * y), abs(height - size[1] * x)) > 1:
        return float("nan")
    on_mask = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    left, top, right, bottom = (max(round(side), 0) for side in on_mask)
    window = (slice(top, min(bottom, height)), slice(left, min(right, width)))
    heat = resample(np.maximum(values, 0), on_mask, width, height)[window]
    total = float(heat.sum())
    return float(heat[mask[window]].sum()) / total if total > 0 else float("nan")


def seen_part(size: tuple[int, int], box: Box) -> Box:
    """What the network sees of a photo: the box without its padding."""
    return (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1])))


def _in_cells(box: Box, frame: Box) -> Box:
    """A box in cells of a grid that lies over a frame."""
    left, top, right, bottom = frame
    x, y = GRID / (right - left), GRID / (bottom - top)
    return ((box[0] - left) * x, (box[1] - top) * y, (box[2] - left) * x, (box[3] - top) * y)
