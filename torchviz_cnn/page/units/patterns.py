"""Filter patterns of the channels that a report shows: read from an atlas, or made while there is time."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

from PIL import Image

from torchviz_cnn.ascent.atlas import Atlas
from torchviz_cnn.ascent.maximize import filter_patterns
from torchviz_cnn.core.errors import DeadFilterWarning, InputError, LayerError, ModelError, OutputError, kind_of
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.page.collect import Done

AT_ONCE = 2
"""Channels of a layer before the next layer has its turn; on a graphics card eight times as many."""

Wanted = Mapping[str, Sequence[int]]
"""Channels by layer, the most important first."""
PatternPictures = dict[str, dict[int, Image.Image | None]]
"""By layer and channel; None for a channel that has no pattern. Channels that there was no time for are missing."""

_log = logging.getLogger("torchviz_cnn")


def from_atlas(folder: str | os.PathLike[str], wanted: Wanted, checksum: str) -> PatternPictures:
    """Read the patterns that an atlas has of the channels wanted, by layer and channel.

    Raises:
        OutputError: where it has none of the layers.
        InputError: for an atlas of other weights, and for what is not a folder's name.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"atlas is a folder of filter patterns, not {kind_of(folder)}")
    folder = os.fspath(folder)
    atlas = Atlas.read(folder)
    if atlas.folder.manifest["identity"].get("checksum") not in (None, checksum):
        raise InputError(f"{folder} is of a network with other weights than this one")
    shared = [layer for layer in wanted if layer in atlas.layers]
    if wanted and not shared:
        present = ", ".join(list(atlas.layers)[:3])
        raise OutputError(f"the atlas {folder} has none of the layers shown: it has {present}, ...")
    pictures: PatternPictures = {}
    for layer in shared:
        patterns = atlas.patterns(layer)
        place = {int(channel): i for i, channel in enumerate([] if patterns.channels is None else patterns.channels)}
        pictures[layer] = {
            channel: patterns.image(place[channel])
            for channel in wanted[layer]
            if channel in place and channel not in patterns.dead
        }
    return pictures


def in_turn(
    wanted: Wanted, at_once: int, until: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[str, list[int]]]:
    """Give `at_once` channels of each layer in turn, the deepest layer first, until a time of `clock`.

    What is done with them is timed: no layer is begun that took longer before than there is time left.
    """
    took = dict.fromkeys(wanted, 0.0)
    for start in range(0, max(map(len, wanted.values()), default=0), at_once):
        for layer, channels in reversed(list(wanted.items())):
            part, before = list(channels[start : start + at_once]), clock()
            if part and before + took[layer] <= until:
                yield layer, part
                took[layer] = clock() - before


def make_patterns(
    net: Network, wanted: Wanted, *, until: float, seed: int, done: Done, clock: Callable[[], float] = time.monotonic
) -> PatternPictures:
    """Make patterns of a few channels of each layer in turn, while there is time: see `in_turn`."""
    pictures: PatternPictures = {layer: {} for layer in wanted}
    failed: set[str] = set()
    at_once = AT_ONCE if next((p.device.type for p in net.model.parameters()), "cpu") == "cpu" else 8 * AT_ONCE
    for layer, part in in_turn(wanted, at_once, until, clock):
        if layer in failed:
            continue
        try:
            pictures[layer].update(_pictures(net, layer, part, seed))
        except (LayerError, ModelError) as error:
            _log.info("the report has no patterns of layer %r: %s", layer, error)
            failed.add(layer)
            pictures[layer].update(dict.fromkeys(wanted[layer]))
        else:
            done(len(part))
    return pictures


def _pictures(net: Network, layer: str, channels: list[int], seed: int) -> dict[int, Image.Image | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadFilterWarning)  # the page goes without their pictures
        patterns = filter_patterns(net, layer, channels, quality="clean", seed=seed)
    return {c: None if c in patterns.dead else patterns.image(i) for i, c in enumerate(channels)}
