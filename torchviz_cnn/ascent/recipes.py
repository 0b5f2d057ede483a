"""`Recipe`: the constants of gradient ascent. The textbook's two editions, and one that gives cleaner pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchviz_cnn.ascent.transformations import Transformation, jitter, rotate, scale
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media.render import Order

Preset = Literal["dlwp-2017", "dlwp-2025", "clean"]
Quality = Literal["textbook", "clean"]
Normalize = Literal["l2", "rms", "pixel", "none"]
Optimizer = Literal["ascent", "adam"]
Parameters = Literal["pixels", "fourier"]
Display = Literal["standardised", "deviation-0.1", "photo"]
_CHANGES = ("size", "steps", "step", "normalize", "border", "rectify", "parameters", "optimizer", "transformations")


@dataclass(frozen=True)
class Recipe:
    """All the constants of gradient ascent on an image, and of showing it; `Recipe.named` gives a preset with changes.

    Raises InputError for a constant out of range.
    """

    name: str
    size: int
    """Side of the image in pixels, where none is asked for."""
    steps: int
    step: float
    """How far a step goes: on the model's input scale, or as Adam's learning rate."""
    normalize: Normalize
    """What a gradient is divided by: the root of the `l2` sum or the `rms` mean of its squares over the image, the
    length of each `pixel`'s vector of channels, or nothing (`none`)."""
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

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("steps", 0), ("border", 0)):
            object.__setattr__(self, name, checks.whole_number(name, getattr(self, name), least))
        object.__setattr__(self, "step", checks.number("step", self.step))
        if not isinstance(self.rectify, bool):
            raise InputError(f"rectify is True or False, not {self.rectify!r}")
        kinds = (Normalize, Optimizer, Parameters, Display, Order)
        for name, kind in zip(("normalize", "optimizer", "parameters", "display", "order"), kinds, strict=True):
            checks.one_of(name, getattr(self, name), get_args(kind))
        if not 0 <= checks.number("crop", self.crop) < 0.5:
            raise InputError(f"crop is a share of at least 0 and below 0.5, not {self.crop!r}")
        bounds = [checks.number("noise", bound) for bound in self.noise] if isinstance(self.noise, Sequence) else []
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise InputError(f"noise goes from a low to a high value, (low, high), not {self.noise!r}")
        given = self.transformations
        if not isinstance(given, Sequence) or not all(isinstance(part, Transformation) for part in given):
            raise InputError(f"transformations are a list of jitter(...), scale(...) and rotate(...), not {given!r}")
        object.__setattr__(self, "transformations", tuple(given))

    @classmethod
    def named(
        cls,
        name: Preset = "dlwp-2025",
        *,
        size: int | None = None,
        steps: int | None = None,
        step: float | None = None,
        normalize: Normalize | None = None,
        border: int | None = None,
        rectify: bool | None = None,
        parameters: Parameters | None = None,
        optimizer: Optimizer | None = None,
        transformations: Sequence[Transformation] | None = None,
    ) -> Recipe:
        """Give a preset in which some constants are replaced; None leaves a constant as it is.

        Args:
            name: `"dlwp-2017"` and `"dlwp-2025"`, the textbook's two editions, or `"clean"`.
            optimizer: `"ascent"`, plain steps, or `"adam"`, by default with `normalize="none"` and `step=0.05`.
            size, steps, step, normalize, border, rectify, parameters: the constants of these names, see the class.
            transformations: random movements of the image between steps, see `torchviz_cnn.transformations`.

        Returns:
            The recipe.

        Raises:
            InputError: for names that do not exist, and numbers out of range.

        >>> Recipe.named("clean", step=0.1, border=0).step
        0.1
        """
        preset = RECIPES[checks.one_of("preset", name, RECIPES)]
        if optimizer == "adam" and preset.optimizer != "adam":
            preset = replace(preset, normalize="none", step=0.05)
        values = (size, steps, step, normalize, border, rectify, parameters, optimizer, transformations)
        changes: dict[str, Any] = {n: value for n, value in zip(_CHANGES, values, strict=True) if value is not None}
        return replace(preset, **changes)


_MOVEMENTS = (jitter(4), scale(0.95, 1.05), rotate(5), jitter(2))
RECIPES: dict[str, Recipe] = {
    "dlwp-2017": Recipe("dlwp-2017", 64, 40, 1.0, "rms", 0, (128 / 255, 148 / 255), "deviation-0.1", 0, "columns"),
    "dlwp-2025": Recipe("dlwp-2025", 200, 30, 10.0, "l2", 2, (0.4, 0.6), "standardised", 25 / 200, "rows"),
    "clean": Recipe(
        "clean", 128, 64, 0.05, "none", 2, (0.4, 0.6), "photo", 0.1, "rows", False, "fourier", "adam", _MOVEMENTS
    ),
}


def chosen_recipe(preset: Preset | Recipe | None, quality: Quality | None, steps: int | None = None) -> Recipe:
    """The recipe asked for by name, by quality or as it is, with this many steps. Raises InputError."""
    if quality is not None:
        checks.one_of("quality", quality, get_args(Quality))
    given = preset or ("clean" if quality == "clean" else "dlwp-2025")
    recipe = given if isinstance(given, Recipe) else Recipe.named(given)
    if quality is not None and (recipe.name == "clean") != (quality == "clean"):
        raise InputError(f"preset {recipe.name!r} is not of quality {quality!r}; ask for one of the two")
    return recipe if steps is None else replace(recipe, steps=steps)


def as_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe as what JSON can hold."""
    return {**asdict(recipe), "transformations": [repr(movement) for movement in recipe.transformations]}


def from_settings(settings: Mapping[str, Any]) -> Recipe:
    """The recipe that `as_settings` saved, without its transformations. Raises KeyError, TypeError or ValueError."""
    known = {field.name for field in fields(Recipe)} - {"transformations"}
    values = {key: value for key, value in settings.items() if key in known}
    return Recipe(**{**values, "noise": tuple(values["noise"])})


def normalized(gradient: Tensor, normalize: Normalize) -> Tensor:
    """Gradients (B, ...) each divided by its own size; one of zeros stays so.

    `l2`: the root of the sum of squares. `rms`: the root of their mean, + 1e-5. `pixel`: each pixel's by the length of
    its vector of channels, or 1e-7 where that is shorter, as Keras' `normalize` does.
    """
    if normalize == "none":
        return gradient
    if normalize == "pixel":
        return gradient / gradient.square().sum(1, keepdim=True).sqrt().clamp_min(1e-7)
    # Not vector_norm, which is ten times less exact than a sum: a ReLU near 0 may then switch the other way.
    length = gradient.square().flatten(1).sum(1).sqrt().view(-1, *[1] * (gradient.ndim - 1))
    if normalize == "rms":
        return gradient / (length / math.sqrt(gradient[0].numel()) + 1e-5)
    return gradient / length.clamp_min(torch.finfo(gradient.dtype).tiny)
