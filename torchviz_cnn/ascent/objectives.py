"""What gradient ascent is to raise: channels, units, directions, class scores, and how natural or different images are.

Objectives add and scale like numbers: `channel("features.10", 12) - 0.1 * total_variation()`. Each gives one number per
image and knows the layers it reads, so that the forward pass stops at the deepest of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError, TargetError, counted, kind_of
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.scores.outputs import Ending
from torchviz_cnn.scores.reader import Reader, ReadyTarget, TargetFunction, label_of
from torchviz_cnn.scores.targets import Score, check_score, resolve_target, score_of, warn_of_probabilities


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an objective measures: some images, and what the network computes from them."""

    images: Tensor  # on the scale of the model's input: (B, C, H, W)
    activations: Mapping[LayerName, Tensor]  # by the names that it gave, the layers that the objective asked for
    output: Any  # what the network gave, where the objective needs it
    rows: Tensor  # which of all images these are: (B,)
    categories: tuple[str, ...] | None = None  # the names of the classes, where they are known
    ending: Ending | None = None  # whether the network ends in a softmax or sigmoid of its own
    step: int = 0  # how many steps the images have taken


@dataclass(frozen=True, eq=False)
class Objective:
    """A number for each image, which `maximize` raises; made by the functions of this module, joined by `+ - * /`."""

    text: str
    value: Callable[[Evaluation], Tensor]  # gives (B,)
    layers: tuple[LayerName, ...] = ()
    needs_output: bool = False
    couples: bool = False  # whether an image's number depends on the others of the batch
    count: int | None = None  # how many images there are, where each has an objective of its own
    is_sum: bool = False  # whether its text is a sum, which needs brackets in a product

    __array_ufunc__ = None  # numpy's numbers leave the joining to the objective

    def __add__(self, other: Objective | float) -> Objective:
        return _combined(self, other, operator.add, "+")

    def __radd__(self, other: Objective | float) -> Objective:
        return _combined(other, self, operator.add, "+")

    def __sub__(self, other: Objective | float) -> Objective:
        return _combined(self, other, operator.sub, "-")

    def __rsub__(self, other: Objective | float) -> Objective:
        return _combined(other, self, operator.sub, "-")

    def __mul__(self, other: Objective | float) -> Objective:
        return _combined(self, other, operator.mul, "*")

    def __rmul__(self, other: Objective | float) -> Objective:
        return _combined(other, self, operator.mul, "*")

    def __truediv__(self, other: float) -> Objective:
        if isinstance(other, Objective) or not other:
            raise InputError(f"an objective is divided by a number other than 0, not by {other}")
        return _combined(self, other, operator.truediv, "/")

    def __neg__(self) -> Objective:
        return -1 * self

    def __repr__(self) -> str:
        return self.text


def channel(
    layer: LayerName, channel: int | Sequence[int] | Tensor, *, border: int = 0, rectify: bool = False
) -> Objective:
    """Take the mean activation of a channel of a layer, (B, C, h, w) or (B, C); of several, one for each image.

    `border` positions on each side of the map do not count, as the image's padding reaches them; on small maps fewer,
    so that at least one is left. `rectify` counts negative activations as 0, as a Keras convolution with its ReLU does:
    a first convolution is linear in the image, and the mean of its whole map hardly depends on where edges are.

    >>> channel("features.10", 12, border=2) - 0.1 * total_variation()
    channel('features.10', 12, border=2) - 0.1 * total_variation()
    """
    border = checks.whole_number("border", border, 0)
    if not isinstance(rectify, bool):
        raise InputError(f"rectify is True or False, not {rectify!r}")

    def reduce(maps: Tensor) -> Tensor:
        kept = inner(maps, border)
        return (kept.relu() if rectify else kept).mean((1, 2))

    options = f", border={border}" * bool(border) + ", rectify=True" * rectify
    return _of_channel("channel", layer, channel, options, reduce)


def unit(layer: LayerName, channel: int | Sequence[int] | Tensor, position: tuple[int, int] | None = None) -> Objective:
    """Take the activation of one unit: a channel of a layer at (row, column), by default in the middle of the map."""
    place = None if position is None else checks.indices("position", position)
    if place is not None and (isinstance(place, int) or len(place) != 2):
        raise InputError(f"a position is a row and a column, not {position!r}")

    def reduce(maps: Tensor) -> Tensor:
        height, width = maps.shape[1:]
        row, column = place or (height // 2, width // 2)
        if not (-height <= row < height and -width <= column < width):
            there = f"the maps of layer {layer!r} are {height} x {width}"
            raise InputError(f"position {(row, column)} is out of range: {there}")
        return maps[:, row, column]

    return _of_channel("unit", layer, channel, "" if place is None else f", {tuple(place)}", reduce)


def layer(layer: LayerName) -> Objective:
    """Take the mean square of all activations of a layer: DeepDream's objective (Mordvintsev et al. 2015)."""
    return Objective(f"layer({_shown(layer)})", lambda given: _maps(given, layer).square().mean((1, 2, 3)), (layer,))


def direction(layer: LayerName, vector: Sequence[float] | Tensor, *, cosine_power: float = 0.0) -> Objective:
    """Measure how far the activations (B, C, h, w) of a layer point in a direction (C,): the mean of their dot product.

    With `cosine_power` p, each position counts times max(0.1, cosine) ** p: the direction more, the length less.
    """
    cosine_power = checks.number("cosine_power", cosine_power)
    with torch.inference_mode(False):
        try:
            towards = torch.as_tensor(vector, dtype=torch.float32, device="cpu").detach().clone().flatten()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"a direction is a vector of numbers, not {vector!r}") from None

    def value(given: Evaluation) -> Tensor:
        maps = _maps(given, layer)
        if maps.shape[1] != len(towards):
            raise InputError(
                f"a direction in layer {layer!r} has {counted(maps.shape[1], 'number')}, not {len(towards)}"
            )
        axis = towards.to(maps)[:, None, None]
        dot = (maps * axis).sum(1)
        if cosine_power:
            cosine = F.cosine_similarity(maps, axis.expand_as(maps), dim=1)
            dot = dot * cosine.clamp_min(0.1) ** cosine_power
        return dot.mean((1, 2))

    power = f", cosine_power={cosine_power:g}" * bool(cosine_power)
    return Objective(f"direction({_shown(layer)}, {counted(len(towards), 'number')}{power})", value, (layer,))


def class_score(
    target: int | str | Sequence[int | str] | Tensor, *, score: Score = "logit", output: Output = None
) -> Objective:
    """Take the score of a class, or of one class for each image: the logit, or as `score` says. Runs the whole network.

    A class is an index or, of a Network that has names for its classes, a name. `output` says where the class scores
    are in what the model gives, as for `grad_cam`; by default they are looked for.

    Simonyan et al., arXiv 1312.6034.
    """
    check_score(score)
    names = [target] if isinstance(target, str) else target if isinstance(target, (list, tuple)) else []
    by_name = any(isinstance(name, str) for name in names)
    asked: Any = target if by_name else checks.indices("target", target)
    several = not isinstance(asked, (int, str))

    def value(given: Evaluation) -> Tensor:
        wanted = [asked[row] for row in given.rows.tolist()] if several else asked
        logits, activation, _ = Reader(output, given.categories).read(given.output, len(given.images), given.ending)
        if given.step == 0:
            warn_of_probabilities(activation, score)
        classes, _ = resolve_target(wanted, logits, given.categories)
        return score_of(logits, classes, score, activation)[:, 0]

    text = f"class_score({_shown(asked)}" + f", score={score!r}" * (score != "logit") + ")"
    return Objective(text, value, needs_output=True, count=len(asked) if several else None)


def target(function: TargetFunction, *, output: Output = None) -> Objective:
    """Take the number that a function makes of the model's output for each image, as those of `torchviz_cnn.targets`.

    Args:
        function: the model's output, or the part of it that was chosen -> (B,).
        output: what of the model's output it is given: a key, an index, an attribute, or a function.

    Raises:
        TargetError: when it is used, for a function that gives something else than one number for each image.
    """
    if not callable(function):
        raise InputError(f"a target function is callable, and {kind_of(function)} is not; class_score takes classes")

    def value(given: Evaluation) -> Tensor:
        asked = function.named(given.categories) if isinstance(function, ReadyTarget) else function
        reader = Reader(output, given.categories, asked).of_images(given.rows)
        reading = reader.read(given.output, len(given.images), given.ending)
        if given.step == 0:
            warn_of_probabilities(reading.activation, "logit", label_of(function))
        if not reading.single:
            count = reading.logits.shape[1]
            raise TargetError(
                f"the target {label_of(function)} gives {counted(count, 'number')} for each image; one is raised"
            )
        return reading.logits[:, 0]

    return Objective(f"target({label_of(function)})", value, needs_output=True)


def diversity(layer: LayerName) -> Objective:
    """Measure how different the images of a batch are to a layer: 1 - the mean cosine of their Gram matrices, 0 to 1.

    It is added with a positive weight: `channel("features.10", 12) + 5 * diversity("features.10")`, for several images.
    """

    def value(given: Evaluation) -> Tensor:
        maps = _maps(given, layer).flatten(2)
        if len(maps) < 2:
            raise InputError("diversity compares the images of a batch: ask for at least 2")
        grams = F.normalize((maps @ maps.transpose(1, 2)).flatten(1), dim=1)
        alike = grams @ grams.T
        return 1 - (alike.sum(1) - alike.diagonal()) / (len(maps) - 1)

    return Objective(f"diversity({_shown(layer)})", value, (layer,), couples=True)


def total_variation() -> Objective:
    """Measure how rough an image is, to subtract it: the mean absolute difference of neighbours, across plus down."""

    def value(given: Evaluation) -> Tensor:
        x = given.images
        parts = [x.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3) if x.shape[dim] > 1]
        return torch.stack(parts).sum(0) if parts else x.new_zeros(len(x))

    return Objective("total_variation()", value)


def l2() -> Objective:
    """Measure how far an image is from zero, the mean colour, to subtract it: the root of the mean of its squares."""
    return Objective("l2()", lambda given: (given.images.square().mean((1, 2, 3)) + 1e-12).sqrt())


def inner(maps: Tensor, border: int) -> Tensor:
    """Maps (..., h, w) without this many positions at each side, or as many as leave at least one."""
    rows, columns = (min(border, (side - 1) // 2) for side in maps.shape[-2:])
    return maps[..., rows : maps.shape[-2] - rows, columns : maps.shape[-1] - columns]


def _maps(given: Evaluation, layer: LayerName) -> Tensor:
    """The activations of a layer as (B, C, h, w) in float32."""
    maps = given.activations[layer]
    if maps.ndim not in (2, 4):
        raise LayerError(f"layer {layer!r} gives {tuple(maps.shape)}, neither maps (B, C, h, w) nor features (B, C)")
    if len(maps) != len(given.images):
        raise LayerError(f"layer {layer!r} gives {counted(len(maps), 'map')} for {counted(len(given.images), 'image')}")
    return (maps if maps.ndim == 4 else maps[:, :, None, None]).float()


def _of_channel(
    name: str, layer: LayerName, channel: Any, options: str, reduce: Callable[[Tensor], Tensor]
) -> Objective:
    """What `reduce` gives of the map (B, h, w) of one channel of a layer, or of one for each image."""
    asked = checks.indices("channel", channel)

    @cache
    def index(device: torch.device) -> Tensor:
        """The channels, copied once, as each copy waits for the device."""
        with torch.inference_mode(False):
            return torch.tensor(asked, device=device)

    def value(given: Evaluation) -> Tensor:
        maps = _maps(given, layer)
        checks.require_channels(asked, layer, maps.shape[1])
        if isinstance(asked, int):
            return reduce(maps[:, asked])
        chosen = index(maps.device)[given.rows]
        return reduce(maps[torch.arange(len(maps), device=maps.device), chosen])

    count = None if isinstance(asked, int) else len(asked)
    return Objective(f"{name}({_shown(layer)}, {_shown(asked)}{options})", value, (layer,), count=count)


def _shown(asked: Any) -> str:
    if isinstance(asked, nn.Module):
        return type(asked).__name__
    return f"[{asked[0]!r}, ..., {asked[-1]!r}]" if isinstance(asked, (list, tuple)) and len(asked) > 8 else repr(asked)


def _combined(a: Objective | float, b: Objective | float, operation: Callable[[Any, Any], Any], sign: str) -> Objective:
    for side in (a, b):
        if not isinstance(side, (Objective, Real)):
            raise InputError(f"an objective is joined with objectives and numbers, not with {kind_of(side)}")
    objectives = [side for side in (a, b) if isinstance(side, Objective)]
    counts = sorted({side.count for side in objectives if side.count is not None})
    if len(counts) > 1:
        raise InputError(f"objectives for {counts[0]} and for {counts[1]} images cannot be joined")

    def value(given: Evaluation) -> Tensor:
        x, y = (side.value(given) if isinstance(side, Objective) else side for side in (a, b))
        return operation(x, y)  # type: ignore[no-any-return]

    text = f"{_text(a, sign in '*/')} {sign} {_text(b, sign != '+')}"
    layers = tuple(dict.fromkeys(name for side in objectives for name in side.layers))
    needs_output, couples = any(side.needs_output for side in objectives), any(side.couples for side in objectives)
    return Objective(text, value, layers, needs_output, couples, counts[0] if counts else None, sign in "+-")


def _text(side: Objective | float, binds: bool) -> str:
    if not isinstance(side, Objective):
        return f"{side:g}"
    return f"({side.text})" if binds and side.is_sum else side.text
