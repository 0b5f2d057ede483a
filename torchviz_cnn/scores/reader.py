"""How the numbers that are explained are read from what a model gives: class scores, or what a function makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torchviz_cnn.core.errors import InputError, ModelError, TargetError, counted, did_you_mean, kind_of
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.scores.outputs import Activation, Categories, Ending, read_classes

TargetFunction = Callable[[Any], Tensor]
"""What a model gives -> one number for each image (B,), or K of them (B, K). It is also called with the output for
another number of images than the batch has. `torchviz_cnn.targets` has ready ones."""


@runtime_checkable
class ReadyTarget(Protocol):
    """A target function that knows class names, and may hold something of its own for each image."""

    of_classes: bool
    """Whether it takes class scores (B, n), which are looked for in the output, and not the output as it is."""

    def __call__(self, output: Any) -> Tensor: ...

    def named(self, categories: Categories) -> TargetFunction:
        """The same, with class names replaced by their indices."""

    def of_images(self, images: Tensor) -> TargetFunction:
        """The same for some images of the batch, each as often as its index is named."""

    def settled(self, output: Any) -> ReadyTarget:
        """The same for changed copies of the images that an output is for."""

    def mirrored(self, width: int) -> ReadyTarget:
        """The same for images of this width in pixels that are flipped left to right."""


class Reading(NamedTuple):
    """What was read from a model's output."""

    logits: Tensor
    """Class outputs (B, n), or the numbers of a function (B, K); float32."""
    activation: Activation | None
    """What makes probabilities of the class outputs, or of those that a function is of; None where it is of none."""
    single: bool
    """Whether a function gave one number for each image."""


@dataclass(frozen=True, eq=False)
class Reader:
    """How what is explained is read from a model's output."""

    output: Output = None
    categories: Categories = None
    function: TargetFunction | None = None

    def read(self, output: Any, batch: int, ending: Ending | None = None) -> Reading:
        """What a model gives for this many images: its class outputs, or the numbers of the function.

        Raises ModelError for an output that has no such part or is not class scores, TargetError for what a function
        must not give.
        """
        part = selected(output, self.output)
        if self.function is None:
            return Reading(*read_classes(part, batch, self.categories, ending), False)
        activation = None
        if isinstance(self.function, ReadyTarget) and self.function.of_classes:
            part, activation = read_classes(part, batch, self.categories, ending)
        values = self.function(part)
        what = self._wrong(values, batch, part)
        if what is not None:
            raise TargetError(f"the target {label_of(self.function)} gives {what}")
        rows = values.float() if values.ndim == 2 else values.float()[:, None]
        return Reading(rows, activation, values.ndim == 1)

    def of_images(self, images: Tensor) -> Reader:
        """The same for some images of a batch."""
        function = self.function
        return replace(self, function=function.of_images(images)) if isinstance(function, ReadyTarget) else self

    def settled(self, output: Any) -> Reader:
        """The same for changed copies of the images that an output is for."""
        if not isinstance(self.function, ReadyTarget):
            return self
        return replace(self, function=self.function.settled(selected(output, self.output)))

    def _wrong(self, values: Any, batch: int, part: Any) -> str | None:
        """What is wrong with what a function gives for this many images."""
        if not isinstance(values, Tensor):
            return f"{kind_of(values)}; a tensor (B,) is needed, one number for each image, without .item() or float()"
        shape = tuple(values.shape)
        if values.ndim not in (1, 2) or len(values) != batch or not values.numel():
            images = counted(batch, "image")
            return f"a tensor {shape} for {images}; one number for each is needed, (B,), or K of them, (B, K)"
        if not values.is_floating_point():
            return f"{str(values.dtype).removeprefix('torch.')}, to which no gradient comes back"
        if not bool(values.detach().isfinite().all()):
            return "NaN or infinity"
        given = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(part))
        if torch.is_grad_enabled() and given and not values.requires_grad:
            return "a tensor that does not depend on the model's output: it is detached, or computed without gradients"
        return None


def label_of(function: TargetFunction) -> str:
    """What a target function explains, in words."""
    if isinstance(function, ReadyTarget):
        return str(function)
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return "function" if name == "<lambda>" else str(name)


def selected(output: Any, choice: Output) -> Any:
    """The part of a model's output that was chosen: see `Output`.

    Raises ModelError where there is no such part, InputError for what chooses none.

    >>> selected({"out": [1, 2], "aux": 3}, "out.1")
    2
    """
    if choice is None:
        return output
    if callable(choice):
        return choice(output)
    if not isinstance(choice, (str, int)) or isinstance(choice, bool):
        raise InputError(f"output is a key, an index, the name of an attribute or a function, not {choice!r}")
    if isinstance(choice, str) and not (isinstance(output, Mapping) and choice in output):
        for part in choice.split("."):
            output = _part(output, int(part) if part.lstrip("-").isdigit() else part, choice)
        return output
    return _part(output, choice, choice)


def _part(output: Any, key: str | int, choice: str | int) -> Any:
    """An entry of a mapping, an element of a sequence, or an attribute, as of a dataclass."""
    of = "" if key == choice else f" (of output={choice!r})"
    if isinstance(output, Mapping):
        if key in output:
            return output[key]
        listed = ", ".join(map(repr, output))
        raise ModelError(
            f"the model's output has no key {key!r}{of}, but {listed}{did_you_mean(str(key), map(str, output))}"
        )
    if isinstance(key, int):
        if not isinstance(output, (list, tuple)):
            raise ModelError(f"the model's output is {kind_of(output)}, which has no element {key}{of}")
        if not -len(output) <= key < len(output):
            raise ModelError(f"the model's output has {len(output)} elements, and no element {key}{of}")
        return output[key]
    if not isinstance(output, Tensor) and hasattr(output, key):
        return getattr(output, key)
    names = [name for name in _names_of(output) if isinstance(name, str)]
    listed = f", but {', '.join(names)}" if names else ""
    raise ModelError(
        f"the model's output, {kind_of(output)}, has no part {key!r}{of}{listed}{did_you_mean(key, names)}"
    )


def _names_of(output: Any) -> list[Any]:
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(output._fields)
    if isinstance(output, Tensor):
        return []
    return [name for name in vars(output) if not name.startswith("_")] if hasattr(output, "__dict__") else []
