"""Photos on which a method did best and worst, with its map over them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.metrics.parts import REFUSALS
from torchviz_cnn.attribution.metrics.result import Measurement
from torchviz_cnn.attribution.result import ClassMap
from torchviz_cnn.attribution.saliency import Saliency
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.evaluation.measuring import Run
from torchviz_cnn.evaluation.result import Example
from torchviz_cnn.evaluation.rows import Row, quiet
from torchviz_cnn.evaluation.written.page import JUDGES
from torchviz_cnn.hooks.inputs import batch_of
from torchviz_cnn.hooks.network import Network, category_name
from torchviz_cnn.media import render
from torchviz_cnn.media.origin import Origin, as_photo

Measured = Mapping[tuple[str, str], Measurement]
_SIDE = 320


def examples_of(run: Run, measured: Measured, classes: Tensor) -> tuple[Example, ...]:
    """The best and the worst photo of each method, compared with all methods on the same photo."""
    judge = next((name for name in JUDGES if any(measured[row.key, name].count for row in run.rows)), None)
    rows = [row for row in run.rows if not row.reference and row.refused is None]
    if judge is None:
        return ()
    mean = torch.stack([measured[row.key, judge].values for row in rows]).nanmean(0)
    examples = []
    with progress_bar(run.progress, total=len(rows), desc="examples", unit=" methods") as bar:
        for row in rows:
            above = measured[row.key, judge].values - mean
            places = above.isfinite().nonzero()[:, 0].tolist()
            if len(places) > 1:
                ordered = sorted(places, key=lambda number, above=above: float(above[number]))  # type: ignore[misc]
                for number, best in ((ordered[-1], True), (ordered[0], False)):
                    example = _example(run, row, number, int(classes[number]), best, measured)
                    examples += [example] if example is not None else []
            bar.update()
    return tuple(examples)


def _example(run: Run, row: Row, number: int, index: int, best: bool, measured: Measured) -> Example | None:
    """One photo with its map; None where the map cannot be made again."""
    read, photos, _ = run.images.take([number])
    if not read:
        return None
    x, origin = batch_of(run.model, photos)
    try:
        with quiet():
            maps = row.explain(run.model, x, target=torch.tensor([index]))
    except REFUSALS:
        return None
    figures = {
        column.name: float(measured[row.key, column.name].values[number])
        for column in run.columns
        if column.stage != "mosaics" and not math.isnan(float(measured[row.key, column.name].values[number]))
    }
    categories = run.model.categories if isinstance(run.model, Network) else None
    return Example(
        row, run.images.names[number], best, _drawn(maps, x, origin), category_name(categories, index), figures
    )


def _drawn(maps: Any, x: Tensor, origin: Origin) -> Image.Image:
    """The map over its photo; over the input as a picture, where there is no photo."""
    photo = origin.photo(0) if origin.photos is not None else _picture(x[0], origin)
    box = (0.0, 0.0, float(photo.width), float(photo.height))
    if origin.photos is not None:
        box = origin.box(photo, tuple(x.shape[2:]))
    if isinstance(maps, Saliency):
        maps = maps.clipped()
    values = maps.values if isinstance(maps, ClassMap) else maps
    shown = render.unit_range(values[0].detach().float().relu().cpu().numpy())
    colours = maps.photo_palette if isinstance(maps, ClassMap) else "jet"
    picture = render.overlay(photo, shown, box, colormap_name=colours, alpha=0.45)
    left, top, right, bottom = (round(side) for side in box)
    picture = picture.crop((max(left, 0), max(top, 0), min(right, photo.width), min(bottom, photo.height)))
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _picture(x: Tensor, origin: Origin) -> Image.Image:
    """An input as a picture: by the preprocessing's own scale, else from its smallest to its largest value."""
    if origin.preprocess is not None and len(origin.preprocess.mean) == len(x):
        return origin.preprocess.to_image(x)
    values = x.detach().float().cpu()[:3] if len(x) >= 3 else x.detach().float().cpu()[:1].expand(3, -1, -1)
    low, high = values.min(), values.max()
    return as_photo(((values - low) / (high - low).clamp(min=1e-12) * 255).round().byte().permute(1, 2, 0).numpy())
