"""What stands in a report: numbers as JSON, pictures and maps as blocks of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.hooks.network import Network
from torchviz_cnn.layers.describe import Description, LayerInfo
from torchviz_cnn.media import render
from torchviz_cnn.media.images import to_rgb
from torchviz_cnn.page.collect import LayerMaps, Measured
from torchviz_cnn.page.encode import Blocks, figure, figures, levels, within
from torchviz_cnn.page.top import Strongest
from torchviz_cnn.scores.targets import probabilities

PHOTO_SIDE = 640
PIXEL_SIDE = 224
PATTERN_SIDE = 112
COLORMAPS = ("viridis", "inferno", "jet", "gray")
METHODS = {"standard": "Saliency", "guided": "Guided backpropagation", "deconvnet": "Deconvnet of the score"}


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo of the report and what it is called."""

    name: str
    image: Image.Image
    file: str | None
    """Where it was read from."""


def strongest_channels(layer: LayerMaps, count: int) -> list[int]:
    """The channels with the strongest activations on any photo, the strongest first, those that are dead last."""
    peak = layer.peak.nan_to_num(-torch.inf).amax(0)
    return [int(c) for c in peak.argsort(descending=True, stable=True)[:count]]


def photo_contents(net: Network, shown: Sequence[Photo], measured: Measured, blocks: Blocks) -> list[dict[str, Any]]:
    """Each photo: its picture, the part of it that the network saw, the classes and what the pixels mean to them."""
    chances = probabilities(measured.logits)
    found = []
    for index, photo in enumerate(shown):
        width, height = photo.image.size
        left, top, right, bottom = net.preprocess.seen_box(width, height)
        values, order = chances[index].topk(min(5, chances.shape[1]))
        picture = within(to_rgb(photo.image), PHOTO_SIDE)
        found.append(
            {
                "name": photo.name,
                "width": picture.width,
                "height": picture.height,
                "seen": [left / width, top / height, right / width, bottom / height],
                "picture": blocks.picture(picture, quality=85),
                "answers": [[int(c), figure(p)] for c, p in zip(order, values, strict=True)],
                "classes": measured.classes[index].tolist(),
                "chances": figures(chances[index][measured.classes[index]]),
                "pixels": _pixels(measured, index, blocks),
            }
        )
    return found


def _pixels(measured: Measured, index: int, blocks: Blocks) -> dict[str, Any]:
    """Gradients with respect to the input by rule: grey maps of all classes, and a coloured picture for each."""
    found: dict[str, Any] = {}
    for rule, gradients in measured.pixels.items():
        of = gradients[index]  # (K, C, H, W)
        strength = of.abs().nan_to_num(0, 0, 0).amax(1)
        high = torch.quantile(strength.flatten(1)[:, :: max(1, strength[0].numel() // 500_000)], 0.995, 1)
        height, width = strength.shape[1:]
        scale = min(1.0, PIXEL_SIDE / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = torch.nn.functional.adaptive_max_pool2d(strength, size)
        found[rule] = {
            "size": size,
            "maps": blocks.maps(levels(small, torch.zeros_like(high), high)),
            "pictures": [blocks.picture(_coloured(one), quality=80) for one in of],
            "empty": [not bool(one.any()) for one in strength],
        }
    return found


def _coloured(gradient: Tensor) -> Image.Image:
    values = gradient if len(gradient) in (1, 3) else gradient.mean(0, keepdim=True)
    return within(Image.fromarray(render.signed_colours(values.numpy())), 2 * PIXEL_SIDE)


def layer_content(
    name: str, info: LayerInfo | None, kind: str, of: LayerMaps, channels: Sequence[int], count: int, blocks: Blocks
) -> dict[str, Any]:
    """One layer for `count` photos: figures over depth, the maps of some channels, heatmaps of the classes explained."""
    order = sorted(channels)
    maps = of.maps[:count, order]
    high = _over(maps.amax((2, 3)), "amax")
    low = _over(maps.amin((2, 3)), "amin").clamp(max=0)
    scaled = levels(maps, low.expand(count, -1), high.expand(count, -1)) if count else np.zeros((0, len(order), 1, 1))
    found: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "shape": list(of.shape),
        "field": _seen(info),
        "channels": order,
        "size": list(of.maps.shape[2:]),
        "maps": [blocks.maps(one) for one in scaled],
        "zero": figures(-255 * low / (high - low).where(high > low, 1.0)),
        "peak": figures(of.peak[:count]),
        "mean": figures(of.mean[:count]),
        "active": figures(of.active[:count]),
        "average": figures(of.mean[:count].mean(1)),
        "sparsity": figures(1 - of.active[:count].mean(1)),
        "dead": (of.active[:count] == 0).sum(1).tolist(),
        "heat": None,
        "patterns": {},
        "late": [],
        "top": {},
    }
    if of.cams is not None and count:
        high = of.cams.nan_to_num(0, 0, 0).amax((2, 3))
        scaled = levels(of.cams, torch.zeros_like(high), high)
        found["heat"] = {
            "size": list(of.cams.shape[2:]),
            "maps": [blocks.maps(one) for one in scaled[:count]],
            "empty": (high == 0)[:count].tolist(),
        }
    return found


def top_content(of: Strongest, blocks: Blocks) -> dict[str, Any]:
    """What a dataset says of one channel: its strongest patches and their projections, each in one picture."""
    return {
        "values": of.values,
        "statistics": of.statistics,
        "patches": None if of.patches is None else blocks.picture(of.patches, quality=72),
        "projections": None if of.projections is None else blocks.picture(of.projections, quality=68),
    }


def _over(values: Tensor, how: str) -> Tensor:
    """The highest or lowest of each channel over all photos; zeros where there are none."""
    values = values.nan_to_num(0, 0, 0)
    return getattr(values, how)(0) if len(values) else values.new_zeros(values.shape[1])


def _seen(info: LayerInfo | None) -> dict[str, str] | None:
    field = None if info is None else info.receptive_field
    if field is None:
        return None
    return {"size": "all" if field.whole else _sides(field.size), "stride": _sides(field.stride)}


def _sides(sides: Sequence[float]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else " × ".join(map(str, sides))


def table(description: Description | None) -> list[dict[str, str]]:
    """The rows of `describe` as text."""
    rows = []
    for info in () if description is None else description.layers:
        seen = _seen(info) or {"size": "", "stride": ""}
        shape = " × ".join(map(str, info.output_shape))
        rows.append(
            {"name": info.name, "type": info.type, "shape": shape, "parameters": f"{info.parameters:,}", **seen}
        )
    return rows


def class_names(net: Network, found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The names of the classes that the photos mention, by index."""
    mentioned = {int(c) for photo in found for c in (*photo["classes"], *(answer[0] for answer in photo["answers"]))}
    return {str(c): net.category(c) for c in sorted(mentioned)}


def palettes() -> dict[str, str]:
    """256 colours of each colormap, as hexadecimal text."""
    ramp = np.arange(256, dtype=np.uint8)
    return {name: render.colormap(ramp, name).tobytes().hex() for name in COLORMAPS}
