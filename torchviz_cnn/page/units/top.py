"""Top activations over a dataset of the channels that a report shows: patches, projections and statistics."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from torchviz_cnn.core.errors import InputError, LayerError, kind_of
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media import render
from torchviz_cnn.media.datasets.kept import kept
from torchviz_cnn.page.units.patterns import Wanted, in_turn
from torchviz_cnn.runs.encode import Blocks, figure
from torchviz_cnn.runs.folder import ResultFolder, model_checksum
from torchviz_cnn.topk.patches import Crop, field_on_input, on_photo, projection_image, tile
from torchviz_cnn.topk.result import KIND, TopActivations
from torchviz_cnn.topk.written.drawing import keeping, units_by_image
from torchviz_cnn.topk.written.storing import reachable

SHOWN = 9
SIDE = 64
SPARSITY = "sparsity"
"""The name of the statistic that the page shows in percent."""


def top_of(top: TopActivations | str | os.PathLike[str], net: Network, checksum: str) -> TopActivations:
    """Top activations as they are given, or read from a folder; without photos where their server is gone.

    Raises:
        OutputError: for a folder without any.
        InputError: for those of another network, and for what is neither.
    """
    if isinstance(top, TopActivations):
        if top.model is not None and model_checksum(unwrap(top.model)) != checksum:
            raise InputError(f"the top activations are of a network with other weights than {net.name} has here")
        return reachable(top)
    if not isinstance(top, (str, os.PathLike)):
        raise InputError(f"top is what top_activations gives, or a folder of it, not {kind_of(top)}")
    weights = ResultFolder.read(os.fspath(top), KIND).manifest["identity"].get("weights")
    if weights not in (None, checksum):
        raise InputError(f"{os.fspath(top)} is of a network with other weights than {net.name} has here")
    return reachable(TopActivations.load(os.fspath(top), model=net.model, preprocess=net.preprocess))


def top_contents(
    top: TopActivations, net: Network, wanted: Wanted, until: float, blocks: Blocks, stage: Callable[[str, int], Any]
) -> dict[str, dict[int, dict[str, Any]]]:
    """What a dataset says of channels, by layer: values, statistics, the strongest patches and their projections, and
    the patches that they are used for, where the top activations are by relevance.

    Patches, and projections, of a channel are one picture; None where the dataset is not available, or there was no
    time: projections take at most half of what is left. Raises LayerError where there is none of the layers.
    """
    shared = {layer: channels for layer, channels in wanted.items() if layer in top.layers}
    if wanted and not shared:
        raise LayerError(
            f"the top activations are of {', '.join(top.layers[:3])}, ...: none of them is shown; name some of them"
        )
    contents: dict[str, dict[int, dict[str, Any]]] = {layer: {} for layer in shared}
    top = keeping(top)
    by_relevance, top = top if top.by == "relevance" else None, top.activation or top
    patches = _patches(top, shared, stage, with_inputs=time.monotonic() < until)
    used = {} if by_relevance is None else _used_for(by_relevance, shared, blocks, stage)
    for layer, channels in shared.items():
        for c in channels:
            values, statistics = [figure(v) for v in top.values[layer][c][:SHOWN]], _statistics(top, layer, c)
            contents[layer][c] = {"values": values, "statistics": statistics, "patches": None, "projections": None}
            contents[layer][c]["used"] = used.get((layer, c))
    for (layer, c), row in patches.items():
        contents[layer][c]["patches"] = blocks.picture(_row(row), quality=72)
    drawn = {layer: [c for c in channels if (layer, c) in patches] for layer, channels in shared.items()}
    with stage("projections", sum(map(len, drawn.values()))) as bar:
        for layer, (c,) in in_turn(drawn, 1, (time.monotonic() + until) / 2):
            units = top.project(layer, [c], model=net.model, other_activations="plain")[c][:SHOWN]
            crops = [_crop(top, layer, c, i, (one.shape[1], one.shape[2])) for i, one in enumerate(units)]
            row = [tile(projection_image(one), crop, SIDE) for one, crop in zip(units, crops, strict=True)]
            contents[layer][c]["projections"] = blocks.picture(_row(row), quality=68)
            bar.update(1)
    return contents


def _used_for(
    top: TopActivations, wanted: Wanted, blocks: Blocks, stage: Callable[[str, int], Any]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Of each channel the relevance, whose score it is of, and the patches in one picture; none without the dataset."""
    return {
        (layer, c): {
            "values": [figure(v) for v in top.values[layer][c][: len(row)]],
            "target": top.target,
            "patches": blocks.picture(_row(row), quality=72),
        }
        for (layer, c), row in _patches(top, wanted, stage).items()
    }


def _patches(
    top: TopActivations, wanted: Wanted, stage: Callable[[str, int], Any], with_inputs: bool = False
) -> dict[tuple[str, int], list[Image.Image]]:
    """The strongest patches by layer and channel, none without the dataset; every photo is read once.

    `with_inputs`: inputs are kept too, as projections ask for them next.
    """
    source = kept(top.source)
    if source is None:
        return {}
    asked = units_by_image(top, wanted, SHOWN)
    tiles: dict[tuple[str, int], dict[int, Image.Image]] = defaultdict(dict)
    with stage("patches", len(asked)) as bar:
        for image in source.fetched(list(asked), inputs=with_inputs, views=True):
            if with_inputs:
                source.item(image)
            view = source.view(image)
            for layer, channel, place in asked[image]:
                crop = on_photo(_crop(top, layer, channel, place, view.input_size), view)
                tiles[layer, channel][place] = tile(view.photo, crop, SIDE)
            bar.update(1)
    return {unit: [row[place] for place in sorted(row)] for unit, row in tiles.items()}


def _crop(top: TopActivations, layer: str, channel: int, place: int, size: tuple[int, int]) -> Crop:
    return field_on_input(top.fields.get(layer), top.positions[layer][channel][place].tolist(), size)


def _row(tiles: Sequence[Image.Image]) -> Image.Image:
    squares = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in tiles]
    return Image.fromarray(render.tile_grid(np.stack(squares), len(squares), margin=0))


def _statistics(top: TopActivations, layer: str, channel: int) -> dict[str, str | float | None]:
    """Statistics of a channel over the whole dataset. Unlike the photos' mean, this mean includes negative values."""
    statistics = top.statistics[layer]
    shown: dict[str, str | float | None] = {
        "images": f"{top.count:,}",
        "mean, negative values included": figure(statistics.mean[channel]),
        "maximum": figure(statistics.maximum[channel]),
        SPARSITY: figure(statistics.sparsity[channel]),
    }
    if bool(statistics.dead[channel]):
        shown["dead"] = "never above zero"
    if statistics.selectivity is not None and math.isfinite(float(statistics.selectivity[channel])):
        shown["class selectivity"] = figure(statistics.selectivity[channel])
        names = None if top.source is None else top.source.categories
        favourite = None if statistics.favourite is None else int(statistics.favourite[channel])
        if favourite is not None and names is not None and 0 <= favourite < len(names):
            shown["favourite class"] = str(names[favourite])
    return shown
