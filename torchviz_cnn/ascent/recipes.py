"""How gradient ascent goes about it: the textbook's two editions to the constant, and one that gives cleaner pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from torchviz_cnn.ascent.transformations import Transformation, jitter, rotate, scale
from torchviz_cnn.core.errors import InputError, did_you_mean
from torchviz_cnn.media.render import Order

Preset = Literal["dlwp-2017", "dlwp-2025", "clean"]
Quality = Literal["textbook", "clean"]
Normalize = Literal["l2", "rms", "pixel", "none"]
Optimizer = Literal["ascent", "adam"]
Parameters = Literal["pixels", "fourier"]
Display = Literal["standardised", "deviation-0.1", "photo"]


@dataclass(frozen=True)
class Recipe:
    """All the constants of gradient ascent on an image, and of showing it."""

    name: str
    size: int
    """Side of the image in pixels, where none is asked for."""
    steps: int
    step: float
    """How far a step goes: on the model's input scale, or as Adam's learning rate."""
    normalize: Normalize
    """What a gradient is divided by: the root of the `l2` sum or the `rms` mean of its squares over the image, the length
    of each `pixel`'s vector of channels, or nothing."""
    border: int
    """Positions at each side of a channel's map that do not count."""
    noise: tuple[float, float]
    """The image at the start, between these values on a photo's scale, 0..1."""
    display: Display
    crop: float
    """What share of the image is cut off at each side where it is shown."""
    order: Order
    rectify: bool = False
    """Whether negative activations of a channel count as 0."""
    parameters: Parameters = "pixels"
    optimizer: Optimizer = "ascent"
    transformations: tuple[Transformation, ...] = ()


RECIPES: dict[str, Recipe] = {
    "dlwp-2017": Recipe("dlwp-2017", 64, 40, 1.0, "rms", 0, (128 / 255, 148 / 255), "deviation-0.1", 0, "columns"),
    "dlwp-2025": Recipe("dlwp-2025", 200, 30, 10.0, "l2", 2, (0.4, 0.6), "standardised", 25 / 200, "rows"),
    "clean": Recipe(
        "clean", 128, 64, 0.05, "none", 2, (0.4, 0.6), "photo", 0.1, "rows", False, "fourier", "adam",
        (jitter(4), scale(0.95, 1.05), rotate(5), jitter(2)),
    ),
}  # fmt: skip


def choose(preset: Preset | None, quality: Quality | None, **changes: Any) -> Recipe:
    """A preset, by default that of the quality asked for, with what was asked for otherwise (not None) put in.

    Raises InputError for names that do not exist and for numbers out of range.
    """
    if quality is not None and quality not in get_args(Quality):
        raise InputError(f"quality is 'textbook' or 'clean', not {quality!r}")
    if preset is not None and quality is not None and (preset == "clean") != (quality == "clean"):
        raise InputError(f"preset {preset!r} is not of quality {quality!r}; ask for one of the two")
    name = preset or ("clean" if quality == "clean" else "dlwp-2025")
    if name not in RECIPES:
        raise InputError(f"no preset {name!r}{did_you_mean(str(name), RECIPES) or ';'} there are {', '.join(RECIPES)}")
    given = {key: value for key, value in changes.items() if value is not None}
    for key, value in given.items():
        _check(key, value)
    if "transformations" in given:
        given["transformations"] = _all_transformations(given["transformations"])
    if given.get("optimizer") == "adam" and RECIPES[name].optimizer != "adam":
        given = {"normalize": "none", "step": 0.05, **given}
    recipe = replace(RECIPES[name], **given)
    choices = {"normalize": Normalize, "optimizer": Optimizer, "parameters": Parameters}
    for key, kind in choices.items():
        value = getattr(recipe, key)
        if value not in get_args(kind):
            near = did_you_mean(str(value), get_args(kind)) or ";"
            raise InputError(f"no {key} {value!r}{near} there are {', '.join(get_args(kind))}")
    return recipe


def _check(key: str, value: Any) -> None:
    known = ("steps", "border", "step", "rectify", "normalize", "parameters", "optimizer", "transformations")
    if key not in known:
        raise InputError(f"no option {key!r}{did_you_mean(key, known) or ';'} a recipe has {', '.join(known)}")
    if key in ("steps", "border") and not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        raise InputError(f"{key} is a whole number of at least 0, not {value!r}")
    if key == "step" and not (isinstance(value, (int, float)) and math.isfinite(value)):
        raise InputError(f"a step is a finite number, not {value!r}")
    if key == "rectify" and not isinstance(value, bool):
        raise InputError(f"rectify is True or False, not {value!r}")


def _all_transformations(given: Sequence[Transformation]) -> tuple[Transformation, ...]:
    if not isinstance(given, Sequence):
        raise InputError(f"transformations are a list of them, not {given!r}")
    wrong = [part for part in given if not isinstance(part, Transformation)]
    if wrong:
        raise InputError(f"transformations are jitter(...), scale(...) and rotate(...), not {wrong[0]!r}")
    return tuple(given)


def as_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe as what JSON can hold."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {**values, "noise": list(recipe.noise), "transformations": [repr(t) for t in recipe.transformations]}


def from_settings(settings: Mapping[str, Any]) -> Recipe:
    """The recipe that `as_settings` wrote down, as far as showing its images needs it: movements are left out."""
    known = {field.name for field in fields(Recipe)} - {"transformations"}
    values = {key: value for key, value in settings.items() if key in known}
    try:
        return Recipe(**{**values, "noise": tuple(values["noise"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"these are not the settings of a recipe: {error}") from error
