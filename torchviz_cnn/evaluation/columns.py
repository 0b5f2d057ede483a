"""The columns of the table: a metric each, which judges the maps of methods on a few photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from torchviz_cnn.attribution.metrics.localisation import Masks, energy, pointing
from torchviz_cnn.attribution.metrics.parts import Part, Rows, without
from torchviz_cnn.attribution.metrics.perturbation import curve, drop
from torchviz_cnn.attribution.metrics.result import Better
from torchviz_cnn.attribution.metrics.road import road_of

Stage = Literal["maps", "weights", "mosaics", "perturbation"]
"""When it is measured: with the maps of all photos, each method by itself; where the network's weights become random;
on mosaics; or on a few photos that are changed many times, all methods at once, which then stand in a Part where the
classes do."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the columns need besides the maps."""

    steps: int
    """How many times a photo is changed for a curve."""
    tolerance: float
    """How far from the object a peak may lie, in pixels of the photo."""
    seed: int
    masks: Masks | None
    seconds: float = 0.0
    """How long it took an image."""


class Column(NamedTuple):
    """A metric of the table."""

    name: str
    """As in `torchviz_cnn.metrics`, where it is one of them."""
    title: str
    better: Better
    stage: Stage
    judges: bool
    """Whether it says how good a map is, so that methods are compared by it."""
    says: str
    """What it measures, in a sentence."""
    measure: Callable[[Part, Setting], Rows] | None
    """(part, setting) -> what it says of the maps of the part; None of random weights and mosaics, which have their own
    way."""


def _seconds(part: Part, setting: Setting) -> Rows:
    return Rows(torch.full(part.raw.shape[:2], setting.seconds))


def _insertion(part: Part, setting: Setting) -> Rows:
    return curve(part, removing=False, steps=setting.steps, baseline="blur", seed=setting.seed)


def _deletion(part: Part, setting: Setting) -> Rows:
    return curve(part, removing=True, steps=setting.steps, baseline="mean", seed=setting.seed)


def _drop(part: Part, setting: Setting) -> Rows:
    return drop(part)


def _road(part: Part, setting: Setting) -> Rows:
    return road_of(part, shares=_SHARES, noise=_NOISE, seed=setting.seed)


def _pointing(part: Part, setting: Setting) -> Rows:
    if setting.masks is None:
        return _none(part, NO_MASKS)
    return pointing(part, setting.masks, setting.tolerance)


def _energy(part: Part, setting: Setting) -> Rows:
    return _none(part, NO_MASKS) if setting.masks is None else energy(part, setting.masks)


def _none(part: Part, reason: str) -> Rows:
    nothing = torch.full(part.raw.shape[:2], float("nan"))
    return without(Rows(nothing), nothing.isnan(), reason)


_SHARES, _NOISE = (0.2, 0.4, 0.6, 0.8), 0.01
"""The protocol of ROAD: which shares of the pixels are removed, and the noise on what fills them in."""
NO_MASKS = "no masks were given"
STRUCTURE = "structure"
MOSAICS = "grid_pointing_game"
MASKED = ("pointing_game", "energy_in_mask")
"""The columns that need masks."""

COLUMNS = (
    Column(
        "seconds",
        "seconds",
        "lower",
        "maps",
        False,
        "How many seconds the map of one photo takes.",
        _seconds,
    ),
    Column(
        "insertion",
        "insertion",
        "higher",
        "perturbation",
        True,
        "The mean probability of the class while the pixels come back into the blurred photo, the strongest first.",
        _insertion,
    ),
    Column(
        "deletion",
        "deletion",
        "lower",
        "perturbation",
        True,
        "The mean probability of the class while the pixels are taken away, the strongest first.",
        _deletion,
    ),
    Column(
        "average_drop",
        "average drop",
        "lower",
        "perturbation",
        True,
        "The share of the probability that is lost where the photo is seen through its map.",
        _drop,
    ),
    Column(
        "road",
        "ROAD",
        "higher",
        "perturbation",
        True,
        "The probability of the class with the weakest pixels removed and filled in from their neighbours, minus that "
        "with the strongest; 0 for a random map.",
        _road,
    ),
    Column(
        "pointing_game",
        "pointing game",
        "higher",
        "maps",
        True,
        "How often the strongest place of a map lies on the object of the mask, or close to it.",
        _pointing,
    ),
    Column(
        "energy_in_mask",
        "energy in mask",
        "higher",
        "maps",
        True,
        "The share of the positive values that lies on the object of the mask.",
        _energy,
    ),
    Column(
        MOSAICS,
        "own cell",
        "higher",
        "mosaics",
        True,
        "In mosaics of four photos of different classes, the share of the evidence for a class on its own photo; a "
        "quarter by chance.",
        None,
    ),
    Column(
        STRUCTURE,
        "structure kept",
        "lower",
        "weights",
        True,
        "How much of the structure of the maps stays, on the average, while the network's weights become random from "
        "the output down to the input: 1 where the maps do not depend on what the network has learned.",
        None,
    ),
    Column(
        "randomization",
        "rank correlation",
        "lower",
        "weights",
        False,
        "The rank correlation of the maps with those where all weights are random; the structure kept tells more.",
        None,
    ),
)
"""The table of columns: a new metric is a new row here."""
