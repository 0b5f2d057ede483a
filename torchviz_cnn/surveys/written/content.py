"""What stands on the page of a survey: numbers as JSON, pictures and maps as blocks of text, rows of tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchviz_cnn.attribution.methods import all_methods
from torchviz_cnn.media import render
from torchviz_cnn.runs.encode import Blocks, figure, levels, within
from torchviz_cnn.surveys.result import GRID, REGIONS, ClassSummary, ShownPhoto

if TYPE_CHECKING:
    from PIL import Image

    from torchviz_cnn.surveys.result import Survey

COLORMAPS = ("jet", "viridis", "inferno", "seismic")
SIDES = ((120, 480), (300, 320), (10**9, 224))
"""How large photos are, by how many there are: at most that many have at most so many pixels a side."""
LISTED = 20_000
"""How many photos the page knows at most: those that are shown, then those of the highest loss or the lowest margin."""
SMALL, SMALL_SIDE = 400, 192
"""How many photos without heatmaps have a small picture at most, wrong predictions of the highest loss or those of the
lowest margin, and of how many pixels a side."""
_OPEN, _EXAMPLES = 3, 4
"""How many cautions have their pictures, and photos each; the others have their sentences alone."""


def shown_text(text: str) -> str:
    r"""A text that can be written in UTF-8: bytes of file names that are none are shown as such.

    >>> shown_text("caf\udce9.jpg")
    'caf\\udce9.jpg'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def listed(survey: Survey) -> list[int]:
    """The places of the photos that the page knows, those that are shown first."""
    first = [photo.index for photo in survey.shown]
    order = np.argsort(survey.margin if survey.loss is None else -survey.loss, kind="stable").tolist()
    rest = set(first)
    return [*first, *(place for place in order if place not in rest)][: max(LISTED, len(first))]


def data(survey: Survey, blocks: Blocks) -> dict[str, Any]:
    """All that the page's script is given."""
    places = listed(survey)
    photos = survey.photos([shown.name for shown in survey.shown])
    at = np.array(places, dtype=int)
    mentioned = {
        int(c)
        for column in (survey.predicted, survey.true, survey.top)
        if column is not None
        for c in np.unique(column[at])
    }
    with_maps = [one for one in survey.classes if one.heatmap.any()]
    ramp = np.arange(256, dtype=np.uint8)
    method = all_methods().get(survey.settings.method)
    return {
        "labelled": survey.labelled,
        "masks": survey.inside is not None,
        "left": len(survey) - len(places),
        "classes": {
            str(c): shown_text(survey.categories[c]) for c in sorted(mentioned | {one.index for one in survey.classes})
        },
        "columns": _columns(survey, at),
        "photos": [_photo(survey, shown, photo, blocks) for shown, photo in zip(survey.shown, photos, strict=True)],
        "small": _small(survey, places, blocks),
        "reasons": list(dict.fromkeys(reason for photo in survey.shown for reason in photo.reasons)),
        "means": {"block": _means(with_maps, blocks), "classes": [one.index for one in with_maps], "side": GRID},
        "whole": bool((survey.coverage > 0.99).all()),
        "method": {
            "title": survey.settings.method_title,
            "shows": method.shows if method else "",
            "layer": survey.settings.layer,
        },
        "palettes": {name: render.colormap(ramp, name).tobytes().hex() for name in COLORMAPS},
    }


def _columns(survey: Survey, at: render.Array) -> dict[str, Any]:
    """The figures of the photos that the page knows; what the survey does not have is None."""

    def numbers(column: render.Array | None) -> list[float | None] | None:
        return None if column is None else [figure(value) for value in column[at].tolist()]

    return {
        "name": [shown_text(survey.names[place]) for place in at],
        "predicted": survey.predicted[at].tolist(),
        "true": None if survey.true is None else survey.true[at].tolist(),
        "confidence": numbers(survey.confidence),
        "chance": numbers(survey.true_probability),
        "loss": numbers(survey.loss),
        "margin": numbers(survey.margin),
        "border": numbers(survey.border),
        "corner": numbers(survey.corner),
        "predictedBorder": numbers(survey.predicted_border),
        "predictedCorner": numbers(survey.predicted_corner),
        "inside": numbers(survey.inside),
        "top": survey.top[at].tolist(),
        "chances": [[figure(value) for value in row] for row in survey.top_probabilities[at].tolist()],
    }


def _small(survey: Survey, places: list[int], blocks: Blocks) -> dict[int, int]:
    """Small pictures of photos without heatmaps, by their places on the page."""
    rest = range(len(survey.shown), len(places))
    wanted = [row for row in rest if survey.correct is None or not survey.correct[places[row]]]
    photos = survey.photos([survey.names[places[row]] for row in wanted[:SMALL]])
    small = [within(photo, SMALL_SIDE) for photo in photos]
    return {row: blocks.picture(photo, quality=75) for row, photo in zip(wanted, small, strict=False)}


def _side(count: int) -> int:
    return next(side for most, side in SIDES if count <= most)


def _photo(survey: Survey, shown: ShownPhoto, photo: Image.Image, blocks: Blocks) -> dict[str, Any]:
    """A photo with its heatmaps: that of the predicted class, and of the true class where it is another."""
    picture = within(photo, _side(len(survey.shown)))
    width, height = shown.size
    left, top, right, bottom = shown.box
    maps = [shown.heatmap]
    if shown.true_heatmap is not None and survey.true is not None:
        maps += [shown.true_heatmap] if survey.true[shown.index] != survey.predicted[shown.index] else []
    values = torch.from_numpy(np.nan_to_num(np.stack(maps).astype(np.float32)))
    low, high = values.amin((1, 2)).clamp(max=0), values.amax((1, 2)).clamp(min=0)
    return {
        "width": picture.width,
        "height": picture.height,
        "picture": blocks.picture(picture, quality=80),
        "view": [left / width, top / height, right / width, bottom / height],
        "reasons": list(shown.reasons),
        "maps": blocks.maps(levels(values, low, high)),
        "size": list(values.shape[1:]),
        "low": [figure(value) for value in low.tolist()],
        "high": [figure(value) for value in high.tolist()],
    }


def _means(classes: list[ClassSummary], blocks: Blocks) -> int | None:
    """The mean heatmaps of classes, each on its own scale."""
    if not classes:
        return None
    values = torch.from_numpy(np.stack([one.heatmap for one in classes]).astype(np.float32))
    return blocks.maps(levels(values, torch.zeros(len(values)), values.amax((1, 2))))


def cautions(survey: Survey) -> list[dict[str, Any]]:
    """The classes with a caution, those with most evidence in their region first; the first have their pictures."""
    marked = [one for one in survey.classes if one.caution is not None and one.region is not None]
    marked.sort(key=lambda one: -one.regions[one.region or ""])
    explained = survey.predicted if survey.true is None else survey.true
    several = []
    for number, one in enumerate(marked):
        place = REGIONS.index(one.region or "")
        own = [photo.index for photo in survey.shown if explained[photo.index] == one.index]
        own.sort(key=lambda index, place=place: -np.nan_to_num(survey.regions[index, place]))  # type: ignore[misc]
        several.append(
            {
                "index": one.index,
                "name": shown_text(one.name),
                "region": one.region,
                "sentence": shown_text((one.caution or "").removeprefix(f"{one.name}: ")),
                "photos": [shown_text(survey.names[index]) for index in own[:_EXAMPLES]] if number < _OPEN else [],
                "open": number < _OPEN,
            }
        )
    return several


def pairs(survey: Survey) -> list[dict[str, Any]]:
    """Which classes are taken for which, with the share of the photos of the true class."""
    counts = {one.index: one.count for one in survey.classes}
    return [
        {
            "true": one.true,
            "predicted": one.predicted,
            "names": [shown_text(survey.categories[index]) for index in (one.true, one.predicted)],
            "count": one.count,
            "of": counts[one.true],
            "share": one.count / counts[one.true],
        }
        for one in survey.confusions
    ]


def class_rows(survey: Survey) -> list[dict[str, Any]]:
    """A row for each class that a photo is of, or is predicted as."""
    return [
        {
            "index": one.index,
            "name": shown_text(one.name),
            "count": one.count,
            "predicted": one.predicted,
            "accuracy": one.accuracy,
            "border": _known(one.border),
            "corners": _known(one.corners),
            "inside": _known(one.inside),
            "drawn": bool(one.heatmap.any()),
            "region": one.region,
        }
        for one in survey.classes
    ]


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
