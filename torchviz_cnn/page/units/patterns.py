"""Filter patterns of the channels that a report shows: read from an atlas, or made while there is time."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from torchviz_cnn.ascent.atlas import Atlas
from torchviz_cnn.ascent.loop import Ascent
from torchviz_cnn.ascent.maximize import filter_patterns
from torchviz_cnn.ascent.recipes import Recipe
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.core.errors import DeadFilterWarning, InputError, LayerError, ModelError, counted, kind_of
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.page.collect import Done

AT_ONCE = 2
"""Channels of a layer before the next layer has its turn; on a graphics card eight times as many."""

Wanted = Mapping[str, Sequence[int]]
"""Channels by layer, the most important first."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """A filter pattern, as it is shown."""

    picture: Image.Image
    recipe: str
    """The name of the recipe that it was made by."""


PatternPictures = dict[str, dict[int, Pattern | None]]
"""By layer and channel; None for a channel that has no pattern. Those that there was no time for, or that an atlas does
not have, are missing."""

_log = logging.getLogger("torchviz_cnn")


def atlas_of(folder: str | os.PathLike[str], checksum: str) -> Atlas:
    """The atlas in a folder.

    Raises:
        OutputError: where there is none.
        InputError: for an atlas of other weights, and for what is not a folder's name.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"atlas is a folder of filter patterns, not {kind_of(folder)}")
    atlas = Atlas.read(os.fspath(folder))
    if atlas.folder.manifest["identity"].get("checksum") not in (None, checksum):
        raise InputError(f"{os.fspath(folder)} is of a network with other weights than this one")
    return atlas


def channels_of(atlas: Atlas, layer: str) -> list[int]:
    """The channels of a layer that an atlas has patterns of."""
    channels = atlas.patterns(layer).channels
    return [] if channels is None else channels.tolist()


def from_atlas(atlas: Atlas, wanted: Wanted) -> PatternPictures:
    """Read the patterns that an atlas has of the channels wanted, by layer and channel; None for those of the dead."""
    pictures: PatternPictures = {}
    for layer in filter(atlas.layers.__contains__, wanted):
        patterns = atlas.patterns(layer)
        place = {int(channel): i for i, channel in enumerate([] if patterns.channels is None else patterns.channels)}
        pictures[layer] = {c: _pattern(patterns, place[c], c) for c in wanted[layer] if c in place}
    return pictures


def about_patterns(wanted: Wanted, pictures: PatternPictures, budget: float | None, atlas: str | None) -> str:
    """How many patterns there are, and why there are not more, in a sentence."""
    count = sum(map(len, wanted.values()))
    made = [one for channels in pictures.values() for one in channels.values()]
    shown, without = sum(one is not None for one in made), sum(one is None for one in made)
    if not count:
        return ""
    words = [f"{shown} of {counted(count, 'channel')} {'has' if shown == 1 else 'have'} a filter pattern"]
    missing = count - len(made)
    if missing and atlas is not None:
        words.append(f"the atlas {atlas} has none of {missing}")
    elif missing:
        limit = "the budget was 0" if not budget else f"the {budget:g} seconds of the budget were over"
        words.append(f"{missing} were not made, as {limit}; a larger budget makes more")
    if without:
        words.append(f"{without} can have none, as no gradient comes back from the channel")
    return f"{'; '.join(words)}."


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
    net: Network,
    wanted: Wanted,
    *,
    until: float,
    seed: int,
    done: Done,
    sources: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PatternPictures:
    """Make patterns of a few channels of each layer in turn, while there is time: see `in_turn`.

    `sources`: of a layer, the one whose channels are raised in its place. Those of a layer that is linear in the image
    are made by the textbook's recipe, as what is clean for deeper ones is but a smear there.
    """
    pictures: PatternPictures = {layer: {} for layer in wanted}
    recipes: dict[str, Recipe] = {}
    failed: set[str] = set()
    at_once = AT_ONCE if next((p.device.type for p in net.model.parameters()), "cpu") == "cpu" else 8 * AT_ONCE
    for layer, part in in_turn(wanted, at_once, until, clock):
        if layer in failed:
            continue
        source = layer if sources is None else sources[layer]
        try:
            recipe = recipes.get(layer) or recipes.setdefault(layer, _recipe(net, source, seed))
            pictures[layer].update(_made(net, source, part, seed, recipe))
        except (LayerError, ModelError) as error:
            _log.info("the report has no patterns of layer %r: %s", layer, error)
            failed.add(layer)
            pictures[layer].update(dict.fromkeys(wanted[layer]))
        else:
            done(len(part))
    return pictures


def _recipe(net: Network, layer: str, seed: int) -> Recipe:
    clean = Recipe.named("clean")
    with untouched(net) as module:
        is_first = Ascent(module, net, clean, seed=seed).is_linear(layer)
    return Recipe.named("dlwp-2025", rectify=True) if is_first else clean


def _made(net: Network, layer: str, channels: list[int], seed: int, recipe: Recipe) -> dict[int, Pattern | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadFilterWarning)  # the page goes without their pictures
        patterns = filter_patterns(net, layer, channels, preset=recipe, seed=seed)
    return {c: _pattern(patterns, i, c) for i, c in enumerate(channels)}


def _pattern(patterns: Patterns, place: int, channel: int) -> Pattern | None:
    return None if channel in patterns.dead else Pattern(patterns.image(place), patterns.recipe.name)
