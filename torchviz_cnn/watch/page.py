"""The page: a slider over the steps that are kept, and the photos, patterns and dead channels at each of them."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.core.errors import counted
from torchviz_cnn.runs.folder import versions
from torchviz_cnn.runs.pages import joined, offline_page, part, script_json
from torchviz_cnn.watch.checkpoint import Checkpoint, peaks, shown_loss
from torchviz_cnn.watch.photos import DENSEST, TINT
from torchviz_cnn.watch.subject import Subject

_ROOM = "torchviz_cnn.watch"
MAP_SIDE = 32
"""Heatmaps stand on the page with at most as many values a side; the files have all."""
_CHART = (220.0, 64.0)
"""Width and height of a chart, in its own units."""


def html(subject: Subject, kept: Sequence[Checkpoint], layer: str | None) -> str:
    """The page's HTML."""
    title = methods_of("cam")[subject.method].title
    explained = "the likeliest class at each step" if subject.target is None else "a fixed class of each photo"
    facts = [
        f"{counted(len(kept), 'step')} of the training, {kept[0].step:,} to {kept[-1].step:,}",
        f"{title} of {explained}" + (f" at {layer}" if layer else ""),
        "the network is in evaluation mode",
    ]
    photos = [_photo(subject, kept, place) for place in range(len(subject.photos))]
    steps = [{"step": one.step, "loss": shown_loss(one.loss), "trouble": one.trouble} for one in kept]
    patterns = _patterns(subject, kept)
    drawn = {"steps": steps, "photos": photos, "patterns": patterns, "tint": TINT, "densest": DENSEST}
    charts, alive = _dead_charts(kept)
    fields = {
        "network": subject.name,
        "facts": facts,
        "photos": photos,
        "patterns": patterns,
        "made": bool(subject.channels),
        "fixed": subject.target is not None,
        "steps": steps,
        "losses": _chart(kept, [one.loss for one in kept]),
        "dead": charts,
        "alive": alive,
        "counted": any(one.layers for one in kept),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "data": script_json(drawn),
        "places": script_json(_places(kept)),
    }
    style = joined(["base.css"], _ROOM, ["watch.css"])
    return offline_page(part(_ROOM, "watch.html"), style, part(_ROOM, "watch.js"), **fields)


def _photo(subject: Subject, kept: Sequence[Checkpoint], place: int) -> dict[str, Any]:
    """A photo, its heatmap at each step with its strongest value as a share of that of all, and what was predicted."""
    photo, strongest = subject.photos[place], float(peaks(kept)[place])
    width, height = photo.picture.size
    left, top, right, bottom = photo.box
    classes = [subject.words(int(one.target[place])) for one in kept]
    return {
        "name": photo.name,
        "picture": photo.encoded,
        "width": width,
        "height": height,
        "view": [left / width, top / height, right / width, bottom / height],
        "maps": [_map(one.heat[place], strongest) for one in kept],
        "classes": classes,
        "shares": [_figure(one.probability[place]) for one in kept],
        "predicted": [subject.words(int(one.predicted[place])) for one in kept],
        "confidence": [_figure(one.confidence[place]) for one in kept],
        "chart": _chart(kept, [_figure(one.probability[place]) for one in kept], 1.0),
    }


def _map(heat: Tensor, strongest: float) -> dict[str, Any]:
    """A map (h, w) as bytes from 0 to its own strongest value, and what share that is of the strongest of all steps."""
    small = heat
    if max(heat.shape) > MAP_SIDE:
        height, width = (max(1, round(side * MAP_SIDE / max(heat.shape))) for side in heat.shape)
        small = F.adaptive_avg_pool2d(heat[None], (height, width))[0]
    own = float(small.max())
    levels = (small / own * 255).round().byte() if own > 0 else small.byte()
    return {
        "height": len(small),
        "width": small.shape[1],
        "share": own / strongest if strongest > 0 else 0.0,
        "values": base64.b64encode(levels.contiguous().numpy().tobytes()).decode(),
    }


def _patterns(subject: Subject, kept: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """The pictures of each layer at each step; None where there is none."""
    layers = list(dict.fromkeys(layer for one in kept for layer in one.pictures))
    return [
        {
            "layer": layer,
            "channels": subject.channels.get(layer, []),
            "pictures": [one.sheets.get(layer) for one in kept],
        }
        for layer in layers
    ]


def _dead_charts(kept: Sequence[Checkpoint]) -> tuple[list[dict[str, Any]], list[str]]:
    """A chart for each layer that has had dead channels, in the order in which they run, and the other layers."""
    charts, alive = [], []
    for layer in dict.fromkeys(name for one in kept for name in one.layers):
        pairs = [_pair(one, layer) for one in kept]
        known = [pair for pair in pairs if pair is not None]
        if not any(dead for dead, _ in known):
            alive.append(layer)
            continue
        shares = [None if pair is None else pair[0] / pair[1] for pair in pairs]
        texts = ["–" if pair is None else f"{pair[0]:,} of {pair[1]:,}" for pair in pairs]
        charts.append({"layer": layer, "line": _chart(kept, shares, 1.0), "texts": texts, "last": texts[-1]})
    return charts, alive


def _pair(one: Checkpoint, layer: str) -> tuple[int, int] | None:
    if layer not in one.layers:
        return None
    place = one.layers.index(layer)
    return int(one.dead[place]), int(one.channels[place])


def _chart(
    kept: Sequence[Checkpoint], values: Sequence[float | None], top: float | None = None
) -> dict[str, Any] | None:
    """A line over the steps as the path of an SVG, broken where there is no number; None where there is none at all."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    _, height = _CHART
    high = top if top is not None else max(max(finite), 0.0)
    low = 0.0 if top is not None else min(min(finite), 0.0)
    path, pen = "", "M"
    for x, value in zip(_places(kept), values, strict=True):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        path += f"{pen}{x:.1f},{height - (value - low) / (high - low or 1.0) * height:.1f}"
        pen = "L"
    first = path.partition("L")[0].removeprefix("M").partition(",")
    dot = {"x": first[0], "y": first[2]} if "L" not in path else None
    return {"path": path, "high": f"{high:.3g}", "low": f"{low:.3g}", "dot": dot}


def _places(kept: Sequence[Checkpoint]) -> list[float]:
    """Where each step stands in a chart, from left to right."""
    first, last = kept[0].step, kept[-1].step
    return [round((one.step - first) / (last - first or 1) * _CHART[0], 1) for one in kept]


def _figure(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 4) if math.isfinite(number) else None
