"""Filter patterns of the channels that a report shows: from an atlas, or made while there is time."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from torchviz_cnn.ascent.atlas import Atlas
from torchviz_cnn.ascent.maximize import filter_patterns
from torchviz_cnn.core.errors import DeadFilterWarning, InputError, OutputError, TorchvizError
from torchviz_cnn.hooks.network import Model, module_of

AT_ONCE = 2
"""Channels of a layer before the next layer has its turn; on a graphics card eight times as many."""

PatternPictures = dict[str, dict[int, Image.Image | None]]
"""By layer and channel; None for what there can be no pattern of. Those that there was no time for are not in it."""


def from_atlas(folder: str | os.PathLike[str], wanted: Mapping[str, Sequence[int]], checksum: str) -> PatternPictures:
    """Patterns by layer and channel, of those wanted that an atlas holds. Raises OutputError where it holds none of the layers,
    InputError for an atlas of other weights, or no folder's name."""
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"atlas is a folder of filter patterns, not a {type(folder).__name__}")
    folder = os.fspath(folder)
    atlas = Atlas.read(folder)
    if atlas.folder.manifest["identity"].get("checksum") not in (None, checksum):
        raise InputError(f"{folder} is of a network with other weights than this one")
    shared = [layer for layer in wanted if layer in atlas.layers]
    if wanted and not shared:
        some = ", ".join(list(atlas.layers)[:3])
        raise OutputError(f"the atlas {folder} has none of the layers shown: it has {some}, ...")
    found: PatternPictures = {}
    for layer in shared:
        patterns = atlas.patterns(layer)
        place = {int(channel): i for i, channel in enumerate([] if patterns.channels is None else patterns.channels)}
        found[layer] = {
            channel: patterns.image(place[channel])
            for channel in wanted[layer]
            if channel in place and channel not in patterns.dead
        }
    return found


def make_patterns(
    model: Model, wanted: Mapping[str, Sequence[int]], *, until: float | None, seed: int, done: Callable[[int], Any]
) -> PatternPictures:
    """Patterns by layer and channel, a few channels of each layer in turn, the deepest layer first, until the clock says so.

    `until`: a time of `time.monotonic`, None for all. What is begun takes as long as the same layer took before at most.
    """
    found: PatternPictures = {layer: {} for layer in wanted}
    took: dict[str, float] = {}
    at_once = AT_ONCE if next((p.device.type for p in module_of(model).parameters()), "cpu") == "cpu" else 8 * AT_ONCE
    for start in range(0, max(map(len, wanted.values()), default=0), at_once):
        for layer, channels in reversed(list(wanted.items())):
            part = list(channels[start : start + at_once])
            before = time.monotonic()
            if not part or (layer in took and took[layer] < 0):
                continue
            if until is not None and before + took.get(layer, 0.0) > until:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeadFilterWarning)  # the page goes without their pictures
                    patterns = filter_patterns(model, layer, part, quality="clean", seed=seed)
            except TorchvizError:  # a layer that patterns cannot be made of; the page does without
                took[layer] = -1.0
                found[layer].update(dict.fromkeys(channels))
                continue
            found[layer].update({c: None if c in patterns.dead else patterns.image(i) for i, c in enumerate(part)})
            took[layer] = time.monotonic() - before
            done(len(part))
    return found
