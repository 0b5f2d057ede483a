"""The columns of the table: a metric each, which judges the maps of all methods on a few photos at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from torchviz_cnn.attribution.metrics.parts import Part, Rows
from torchviz_cnn.attribution.metrics.perturbation import curve, drop
from torchviz_cnn.attribution.metrics.result import Better

Stage = Literal["maps", "mosaics", "perturbation"]
"""When it is measured: with the maps of all photos, on mosaics, or on a few photos that are changed many times."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the columns need besides the maps."""

    steps: int
    """How many times a photo is changed for a curve."""
    seed: int
    seconds: Tensor
    """How long each method took an image: (M,)."""


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
    """(part, setting) -> rows, of a part in which the methods stand where the classes do; None for the mosaics."""


def _seconds(part: Part, setting: Setting) -> Rows:
    return Rows(setting.seconds.expand(len(part.numbers), -1).clone())


def _insertion(part: Part, setting: Setting) -> Rows:
    return curve(part, removing=False, steps=setting.steps, baseline="blur", seed=setting.seed)


def _deletion(part: Part, setting: Setting) -> Rows:
    return curve(part, removing=True, steps=setting.steps, baseline="mean", seed=setting.seed)


def _drop(part: Part, setting: Setting) -> Rows:
    return drop(part)


COLUMNS = (
    Column(
        "seconds",
        "seconds per image",
        "lower",
        "maps",
        False,
        "How long the map of one photo takes.",
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
)
"""The table of columns: a new metric is a new row here."""
