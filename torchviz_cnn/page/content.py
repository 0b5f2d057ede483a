"""What stands in a report: numbers as JSON, pictures and maps as blocks of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.methods import METHODS, MISSES, SUITS, methods_of
from torchviz_cnn.attribution.metrics.randomization import SHOWS_EDGES
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.layers.describe import Description, in_words
from torchviz_cnn.media import render
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.media.origin import picture_of
from torchviz_cnn.page.choice import Shown
from torchviz_cnn.page.collect import Collected, LayerMaps
from torchviz_cnn.page.trust import Measured
from torchviz_cnn.page.units.patterns import Pattern
from torchviz_cnn.page.units.top import SPARSITY
from torchviz_cnn.runs.encode import Blocks, figure, figures, fitted, levels, within
from torchviz_cnn.scores.outputs import probabilities

PHOTO_SIDE = 640
PIXEL_SIDE = 224
COLORMAPS = ("viridis", "inferno", "jet", "gray")
PREDICTIONS = 5


@dataclass(frozen=True, eq=False)
class NamedPhoto:
    """A photo of the report and what it is called."""

    name: str
    pixels: Pixels
    """The photo as it is stored."""
    file: str | None
    """Where it was read from."""


def method_contents(units: Sequence[Mapping[str, Any]], collected: Collected) -> list[dict[str, str | None]]:
    """The methods of the layers and pixels on the page, as the table describes them, those to begin with first.

    `heat` names the heatmaps and `pixels` the gradients at the input that a method shows: one of them or, for guided
    Grad-CAM, the product of both.
    """
    heated = {name for unit in units for name in unit["heat"]}
    known = {**METHODS, **methods_of("cam")}
    first = sorted(filter(heated.__contains__, known), key=lambda name: name not in SUITS)
    shown: list[tuple[str, str | None, str | None]] = [(name, name, None) for name in first]
    if "grad_cam" in heated and "guided" in collected.pixels:
        shown.append(("guided_grad_cam", "grad_cam", "guided"))
    shown += [(name, None, name) for name in collected.pixels]
    return [
        {
            "name": name,
            "title": row.title,
            "shows": row.shows,
            "misses": MISSES.get(name),
            "suits": SUITS.get(name),
            "heat": heat,
            "pixels": pixels,
        }
        for name, heat, pixels in shown
        for row in [known[name]]
    ]


def photo_contents(
    net: Network, photos: Sequence[NamedPhoto], collected: Collected, measured: Measured, blocks: Blocks
) -> list[dict[str, Any]]:
    """Each photo: its picture, the part of it that is the network's input, predictions, and gradients of its pixels."""
    shares = probabilities(collected.logits, collected.activation)
    contents = []
    for index, photo in enumerate(photos):
        whole = picture_of(photo.pixels, net.preprocess)
        width, height = whole.size
        left, top, right, bottom = net.preprocess.seen_box(width, height)
        values, order = shares[index].topk(min(PREDICTIONS, shares.shape[1]))
        # Of a function its numbers stay in their order, as they are not compared.
        predictions = zip(order, values, strict=True) if collected.label is None else enumerate(shares[index])
        picture = within(whole, PHOTO_SIDE)
        contents.append(
            {
                "name": photo.name,
                "width": picture.width,
                "height": picture.height,
                "view": [left / width, top / height, right / width, bottom / height],
                "picture": blocks.picture(picture, quality=85),
                "predictions": [[int(c), figure(p)] for c, p in predictions],
                "classes": collected.classes[index].tolist(),
                "probabilities": figures(shares[index][collected.classes[index]]),
                "figures": measured.of_photo(index, collected.classes.shape[1]),
                "pixels": {name: _pixels(gradients[index], blocks) for name, gradients in collected.pixels.items()},
            }
        )
    return contents


def _pixels(gradients: Tensor, blocks: Blocks) -> dict[str, Any]:
    """Gradients (K, C, H, W) at the input: grey maps of all classes, and a coloured picture for each."""
    strength = gradients.abs().nan_to_num(0, 0, 0).amax(1)
    high = torch.quantile(strength.flatten(1)[:, :: max(1, strength[0].numel() // 500_000)], 0.995, 1)
    size = fitted(strength.shape[1:], PIXEL_SIDE)
    ends = torch.stack([_end(one) for one in gradients])
    small = torch.nn.functional.adaptive_max_pool2d(strength, size)
    return {
        "size": size,
        "maps": blocks.maps(levels(small, torch.zeros_like(high), high)),
        "peaks": figures(high),
        "pictures": [_signed(one, float(end), blocks) for one, end in zip(gradients, ends, strict=True)],
        "ends": figures(ends),
        "empty": [not bool(one.any()) for one in strength],
    }


def _end(gradients: Tensor) -> Tensor:
    """The value that is drawn as white: the 99.5th percentile of the absolute values that are not zero."""
    some = gradients.abs().nan_to_num(0, 0, 0).flatten()
    some = some[some != 0]
    return torch.quantile(some[:: max(1, some.numel() // 500_000)], 0.995) if some.numel() else torch.tensor(1.0)


def _signed(gradients: Tensor, end: float, blocks: Blocks) -> int:
    """Gradients (C, H, W) as a picture of their size: 0 is mid-grey, their end white, its negative black."""
    picture = Image.fromarray(render.signed_colours(gradients.numpy(), peak=end))
    return blocks.picture(within(picture, 2 * PIXEL_SIDE), lossless=True)


def layer_content(
    shown: Shown, layer: LayerMaps, channels: Sequence[int], photos: int, blocks: Blocks
) -> dict[str, Any]:
    """One layer for this many photos: figures over depth, the maps of some channels, heatmaps of the classes."""
    order = sorted(channels)
    finite = layer.maps[:, order].nan_to_num(0, 0, 0)
    low, high = finite.amin((0, 2, 3)).clamp(max=0), finite.amax((0, 2, 3))
    return {
        "name": shown.name,
        "kind": type(shown.layer).__name__,
        "call": shown.call,
        "after": shown.after,
        "shape": list(layer.shape),
        "channels": order,
        "size": list(layer.maps.shape[2:]),
        "maps": [blocks.maps(one) for one in levels(layer.maps[:photos, order], low, high)],
        "zero": figures(-255 * low / (high - low).where(high > low, 1.0)),
        "range": figures(torch.stack([low, high], 1)),
        "peak": figures(layer.peak[:photos]),
        "mean": figures(layer.mean[:photos]),
        "sparsity": figures(layer.sparsity[:photos]),
        "layerMean": figures(layer.mean[:photos].mean(1)),
        "layerSparsity": figures(layer.sparsity[:photos].mean(1)),
        "dead": (layer.sparsity[:photos] == 1).sum(1).tolist(),
        "heat": {
            method: _heat(values[:photos], blocks)
            for method, values in layer.heat.items()
            if photos and layer.shape[1:] != (1, 1)
        },
    }


def _heat(values: Tensor, blocks: Blocks) -> dict[str, Any]:
    """Heatmaps (B, K, h, w) of one method."""
    high = values.nan_to_num(0, 0, 0).amax((2, 3))
    return {
        "size": list(values.shape[2:]),
        "maps": [blocks.maps(one) for one in levels(values, torch.zeros_like(high), high)],
        "peak": figures(high),
        "empty": (high == 0).tolist(),
    }


def pattern_contents(
    made: Mapping[int, Pattern | None], wanted: Sequence[int], is_atlas: bool, blocks: Blocks
) -> dict[str, Any]:
    """The filter patterns of a layer by channel, pixel by pixel, and the channels `wanted` that have none, with why."""
    missing = "The atlas has no pattern of this channel." if is_atlas else "There was no time to make this pattern. {}"
    reasons = {c: missing.format("A larger budget makes it.") for c in wanted if c not in made}
    reasons |= {
        c: "No gradient comes back from this channel: it has no pattern." for c, one in made.items() if one is None
    }
    return {
        "patterns": {c: blocks.picture(one.picture, lossless=True) for c, one in made.items() if one is not None},
        "recipe": next((one.recipe for one in made.values() if one is not None), None),
        "without": reasons,
    }


def data(
    net: Network,
    photos: Sequence[Mapping[str, Any]],
    units: Sequence[Mapping[str, Any]],
    collected: Collected,
    measured: Measured,
    shown: Mapping[str, Shown],
) -> dict[str, Any]:
    """All that the page's script is given: the photos, the layers, and what their numbers mean."""
    mentioned = {int(c) for photo in photos for c in (*photo["classes"], *(c for c, _ in photo["predictions"]))}
    ramp = np.arange(256, dtype=np.uint8)
    return {
        "photos": photos,
        "layers": units,
        "explained": next((name for name, one in shown.items() if one.call == collected.explained), None),
        "sparsity": SPARSITY,
        "classes": {str(c): _name(net, collected, c) for c in sorted(mentioned)},
        "scores": collected.label is not None,
        "pooled": collected.pooled,
        "random": net.weights == "random",
        "palettes": {name: render.colormap(ramp, name).tobytes().hex() for name in COLORMAPS},
        "methods": method_contents(units, collected),
        "kept": {method: figure(share) for method, share in measured.kept.items()},
        "edges": SHOWS_EDGES,
    }


def _name(net: Network, collected: Collected, index: int) -> str:
    """The name of a class, or what a number of a function explains."""
    if collected.label is None:
        return net.category(index)
    return collected.label if collected.logits.shape[1] == 1 else f"{collected.label}[{index}]"


def table(description: Description | None) -> list[dict[str, str]]:
    """The rows of `describe` as text; without size and stride where a receptive field is not known."""
    rows = []
    for info in () if description is None else description.layers:
        row = {"name": info.name, "type": info.type, "shape": " × ".join(map(str, info.output_shape))}
        row |= {"parameters": f"{info.parameters:,}", "size": "", "stride": ""}
        if (field := info.receptive_field) is not None:
            row |= {
                "size": "all" if field.whole else in_words(field.size, " × "),
                "stride": in_words(field.stride, " × "),
            }
        rows.append(row)
    return rows
