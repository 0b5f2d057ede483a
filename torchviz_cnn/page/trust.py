"""How far the heatmaps of a report can be believed: figures of each photo's heatmaps, measured while there is time."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from torchviz_cnn.attribution.methods import METHODS
from torchviz_cnn.attribution.metrics.parts import Method, Part, Subject, at_size, made_maps
from torchviz_cnn.attribution.metrics.perturbation import curve
from torchviz_cnn.attribution.metrics.randomization import cascaded
from torchviz_cnn.core.errors import InputError, ModelError, kind_of
from torchviz_cnn.evaluation.result import Trust
from torchviz_cnn.evaluation.rows import CENTRE, centre
from torchviz_cnn.evaluation.written.figures import figures_of, record_of
from torchviz_cnn.hooks.inputs import Output, prepared
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.layers.random_weights import RandomLayers
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.page.collect import Collected, Done, Explained, target_of
from torchviz_cnn.runs.encode import figure
from torchviz_cnn.scores.targets import Target, asked

STEPS = 16
_log = logging.getLogger("torchviz_cnn")
_NAMES = {"insertion": "insertion", "deletion": "deletion", "energy_in_mask": "share"}
"""Columns of a comparison, and what they are called on the page."""
_FIRST = ("grad_cam", "competitive_cam", "saliency", "guided", "guided_grad_cam")


Figures = dict[str, float]
"""`insertion` and `deletion` of a map, and with a mask the `share` of its evidence on the object."""


@dataclass(eq=False)
class Measured:
    """What was measured of a report's maps: those at the layer that is explained first, and at the input."""

    figures: dict[tuple[str, int, int], Figures | None] = field(default_factory=dict)
    """By method, photo and place of the class; None for a map that is all zeros. Those that there was no time for are
    missing."""
    kept: dict[str, float] = field(default_factory=dict)
    """How much of the structure of a method's maps stays while all weights become random."""

    def of_photo(self, photo: int, classes: int) -> dict[str, list[dict[str, float | None] | None]]:
        """The figures of one photo by method, in the order of its classes; None where there are none."""
        methods = dict.fromkeys(method for method, number, _ in self.figures if number == photo)
        every = {method: [self.figures.get((method, photo, rank)) for rank in range(classes)] for method in methods}
        return {
            method: [None if one is None else {name: figure(n) for name, n in one.items()} for one in several]
            for method, several in every.items()
        }


def measure_maps(
    net: Network,
    photos: Sequence[Pixels],
    collected: Collected,
    measured: Measured,
    *,
    targets: Explained = None,
    output: Output = None,
    until: float,
    done: Done,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure insertion and deletion of the maps on the page while there is time, those first that are seen first.

    Args:
        net, photos, collected, targets, output: as for `collect`, and what it gave.
        measured: what there is already, to which the figures are added.
        until: the time after which no further map is begun, by the `clock`.
        done: called with the number of maps that are done.
    """
    maps = maps_of(collected)
    for photo, rank, method in in_order(collected, maps, len(photos)):
        if clock() >= until:
            return
        if (method, photo, rank) not in measured.figures:
            target = target_of(net, targets, photo, 1, collected.classes)
            one = None if method == CENTRE else maps[method][photo, rank]
            measured.figures[method, photo, rank] = _figures(net, photos[photo], one, rank, target, output)
        done(1)


def measure_weights(
    net: Network,
    photo: Pixels,
    collected: Collected,
    measured: Measured,
    *,
    output: Output = None,
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure on one photo how much of the first methods' maps stays while all weights become random, if there is time.

    Args:
        net, collected, output: as for `measure_maps`.
        photo: the first photo, of which the likeliest class is explained.
        measured: to which is added what is not in it already; nothing where there is not time for all steps.
        until: the time at which it stops, by the `clock`.
    """
    methods = {name: _explaining(name, collected.explained) for name in _FIRST if name in maps_of(collected)}
    methods = {name: method for name, method in methods.items() if name not in measured.kept}
    if not methods or clock() >= until:
        return
    with prepared(net, [photo], dims=(2,), output=output) as given:
        targets = asked(given, collected.classes[:1, 0], "probability")
        try:
            layers = RandomLayers(net, given.x)
        except ModelError as error:
            _log.info("how much maps change with the weights was not measured: %s", error)
            return
        subject = Subject([0], net, given, targets, targets.classes[:, 0])
        parts = {
            name: (Part.of(subject, *made_maps(subject, method, net, given.x)), method)
            for name, method in methods.items()
        }
        kept: dict[str, list[float]] = {name: [] for name in methods}
        for name, _, said in cascaded(layers, parts, 0):
            if clock() >= until:
                return
            kept[name].append(math.nan if isinstance(said, str) else float(said[0, 0, 2]))
    means = {name: float(torch.tensor(several).nanmean()) for name, several in kept.items()}
    measured.kept |= {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _explaining(name: str, layer: str | None) -> Method:
    """A method of the table, at the layer that the page explains, and of networks that the page draws it for."""
    method = METHODS[name]
    asked_for = {"layer": layer, "other_activations": "plain"}
    return partial(method.explain, **{option: asked_for[option] for option in asked_for if option in method.options})


def read_trust(
    trust: Trust | str | os.PathLike[str], photos: Sequence[str], collected: Collected, checksum: str
) -> Measured:
    """What a comparison that was made before says of the maps on the page, for the classes that it explained.

    Args:
        trust: a Trust, or its folder.
        photos: the names of the photos, or their files.
        collected: what is on the page.
        checksum: that of the network.

    Raises:
        InputError: for a comparison of a network with other weights.
        OutputError: for a folder without a comparison.
    """
    if not isinstance(trust, (Trust, str, os.PathLike)):
        raise InputError(f"trust is a Trust or its folder, not {kind_of(trust)}")
    measured, record = Measured(), record_of(trust)
    if record.get("weights") != checksum:
        what = "the comparison" if isinstance(trust, Trust) else os.fspath(trust)
        raise InputError(f"{what} is of a network with other weights than this one")
    at = {row["method"] for row in record["rows"] if row["layer"] in (None, collected.explained)}
    for method in (name for name in (CENTRE, *maps_of(collected)) if name in at):
        row = f"{method}@{collected.explained}"
        row = row if any(row == f"{one['method']}@{one['layer']}" for one in record["rows"]) else method
        for photo, name in enumerate(photos):
            for rank, target in enumerate(collected.classes[photo].tolist()):
                said = figures_of(record, name, row, target)
                if (kept := said.get("structure")) is not None and method != CENTRE:
                    measured.kept[method] = kept
                values = {_NAMES[key]: value for key, value in said.items() if key in _NAMES and value is not None}
                if {"insertion", "deletion"} <= set(values):
                    measured.figures[method, photo, rank] = values
    return measured


def in_order(collected: Collected, methods: Mapping[str, Tensor], photos: int) -> Iterator[tuple[int, int, str]]:
    """What is measured: photo, place of the class, and method; the likeliest class by the first methods first."""
    first = [CENTRE, *(method for method in methods if method in _FIRST)]
    for some in (first, [method for method in methods if method not in _FIRST]):
        for rank in range(collected.classes.shape[1]):
            yield from ((photo, rank, method) for method in some for photo in range(photos))


def maps_of(collected: Collected) -> dict[str, Tensor]:
    """The maps (B, K, h, w) by the method's name on the page, those that most look at first."""
    heat: Mapping[str, Tensor] = collected.layers[collected.explained].heat if collected.explained else {}
    maps = {**heat, **{name: gradients.abs().amax(2) for name, gradients in collected.pixels.items()}}
    if "grad_cam" in heat and "guided" in maps:
        maps["guided_grad_cam"] = maps["guided"] * at_size(heat["grad_cam"], tuple(maps["guided"].shape[2:]))
    return {name: maps[name] for name in dict.fromkeys([*_FIRST, *maps]) if name in maps}


def _figures(
    net: Network, pixels: Pixels, values: Tensor | None, rank: int, target: Target, output: Output
) -> Figures | None:
    """Insertion and deletion of one map (h, w), or of a blob in the centre."""
    with prepared(net, [pixels], dims=(2,), output=output) as given:
        maps = centre(given.model, given.x)[0] if values is None else values.float()
        if not bool(maps.nan_to_num(0, 0, 0).any()):
            return None
        every = asked(given, target, "logit" if callable(target) else "probability")
        one = replace(every, classes=every.classes[:, [rank]])
        part = Part.of(Subject([0], net, given, one, target), maps[None, None])
        inserted = curve(part, removing=False, steps=STEPS, baseline="blur", seed=0)
        deleted = curve(part, removing=True, steps=STEPS, baseline="mean", seed=0)
    return {"insertion": float(inserted.values), "deletion": float(deleted.values)}
