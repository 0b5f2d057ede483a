"""Top activations over a dataset of the channels that a report shows: patches, projections and statistics."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from torchviz_cnn.core.errors import InputError, LayerError
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media import render
from torchviz_cnn.page.encode import figure
from torchviz_cnn.runs.folder import ResultFolder, model_checksum
from torchviz_cnn.topk.patches import Window, field_on_input, on_photo, projection_image, tile
from torchviz_cnn.topk.result import KIND, TopActivations

SHOWN = 9
SIDE = 64
SPARSITY = "sparsity"
"""The name of the statistic that the page shows in percent."""
Wanted = Mapping[str, Sequence[int]]


@dataclass(eq=False)
class Strongest:
    """The top activations of one channel over a dataset."""

    values: list[float | None]
    statistics: dict[str, str | float | None]
    """Words, or numbers that the page formats; None for what is not finite."""
    patches: Image.Image | None = None
    """All in one row, square; None where the dataset is not available."""
    projections: Image.Image | None = None
    """The deconvnet's projection of the channel for each patch; None where there was no time for it."""


def top_of(top: TopActivations | str | os.PathLike[str], net: Network, checksum: str) -> TopActivations:
    """Top activations as they are given, or read from a folder.

    Raises:
        OutputError: for a folder without any.
        InputError: for those of another network, and for what is neither.
    """
    if isinstance(top, TopActivations):
        if top.model is not None and model_checksum(unwrap(top.model)) != checksum:
            raise InputError(f"the top activations are of a network with other weights than {net.name} has here")
        return top
    if not isinstance(top, (str, os.PathLike)):
        raise InputError(f"top is what top_activations gives, or a folder of it, not a {type(top).__name__}")
    whose = ResultFolder.read(os.fspath(top), KIND).manifest["identity"].get("weights")
    if whose not in (None, checksum):
        raise InputError(f"{os.fspath(top)} is of a network with other weights than {net.name} has here")
    return TopActivations.load(os.fspath(top), model=net.model, preprocess=net.preprocess)


def shared_layers(top: TopActivations, wanted: Wanted) -> dict[str, list[int]]:
    """The channels wanted, of the layers that have top activations. Raises LayerError where there is no such layer."""
    shared = {layer: list(channels) for layer, channels in wanted.items() if layer in top.layers}
    if wanted and not shared:
        raise LayerError(
            f"the top activations are of {', '.join(top.layers[:3])}, ...: none of them is shown; name some of them"
        )
    return shared


def patches_of(top: TopActivations, wanted: Wanted, done: Callable[[int], Any]) -> dict[str, dict[int, Strongest]]:
    """Values, statistics and patches of channels by layer; every photo is read once."""
    strongest = {
        layer: {
            c: Strongest([figure(v) for v in top.values[layer][c][:SHOWN]], _statistics(top, layer, c))
            for c in channels
        }
        for layer, channels in wanted.items()
    }
    if top.source is None:
        return strongest
    asked: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for layer, channels in wanted.items():
        for channel in channels:
            for place, image in enumerate(top.images[layer][channel].tolist()[:SHOWN]):
                if image >= 0:
                    asked[image].append((layer, channel, place))
    tiles: dict[tuple[str, int], dict[int, Image.Image]] = defaultdict(dict)
    for image, units in sorted(asked.items()):
        view = top.source.view(image)
        for layer, channel, place in units:
            window = on_photo(_window(top, layer, channel, place, view.input_size), view)
            tiles[layer, channel][place] = tile(view.photo, window, SIDE)
        done(1)
    for (layer, channel), row in tiles.items():
        strongest[layer][channel].patches = _row([row[place] for place in sorted(row)])
    return strongest


def add_projections(
    top: TopActivations,
    net: Network,
    strongest: dict[str, dict[int, Strongest]],
    wanted: Wanted,
    until: float | None,
    done: Callable[[int], Any],
) -> None:
    """Add projections, the strongest channel of each layer first, while there is time."""
    took = dict.fromkeys(wanted, 0.0)
    for place in range(max(map(len, wanted.values()), default=0)):
        for layer, channels in reversed(list(wanted.items())):
            before = time.monotonic()
            late = until is not None and before + took[layer] > until
            if place >= len(channels) or late or strongest[layer][channels[place]].patches is None:
                continue
            channel = channels[place]
            values = top.project(layer, [channel], model=net.model, other_activations="plain")[channel][:SHOWN]
            cut = [
                tile(projection_image(one), _window(top, layer, channel, i, (one.shape[1], one.shape[2])), SIDE)
                for i, one in enumerate(values)
            ]
            strongest[layer][channel].projections = _row(cut)
            took[layer] = time.monotonic() - before
            done(1)


def _window(top: TopActivations, layer: str, channel: int, place: int, size: tuple[int, int]) -> Window:
    return field_on_input(top.fields.get(layer), top.positions[layer][channel][place].tolist(), size)


def _row(tiles: Sequence[Image.Image]) -> Image.Image:
    squares = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in tiles]
    return Image.fromarray(render.tile_grid(np.stack(squares), len(squares), margin=0))


def _statistics(top: TopActivations, layer: str, channel: int) -> dict[str, str | float | None]:
    """Statistics of a channel over the whole dataset. Unlike the photos' mean, this mean includes negative values."""
    of = top.statistics[layer]
    said: dict[str, str | float | None] = {
        "images": f"{top.count:,}",
        "mean, negative values included": figure(of.mean[channel]),
        "maximum": figure(of.maximum[channel]),
        SPARSITY: figure(of.sparsity[channel]),
    }
    if bool(of.dead[channel]):
        said["dead"] = "never above zero"
    if of.selectivity is not None and math.isfinite(float(of.selectivity[channel])):
        said["class selectivity"] = figure(of.selectivity[channel])
        names = None if top.source is None else top.source.categories
        if of.favourite is not None and names is not None and 0 <= int(of.favourite[channel]) < len(names):
            said["favourite class"] = str(names[int(of.favourite[channel])])
    return said
