"""A Keras layer that is to be built, and the table of those that can be.

A layer that is missing is added by one function in a file beside this one, here for one of a single vector of weights:

    @builds("MyScale")
    def _my_scale(layer: LayerPlan) -> nn.Module:
        (gamma,) = layer.weights("gamma")
        (channels,) = layer.put("weight", gamma, (None,))
        return MyScale(channels)

Modules are made on the meta device, without numbers; `put` checks the shape of an array in the file, says which
parameter takes it, and gives the shape. No number is read before all layers fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import CheckpointError, ModelError, TorchvizError
from torchviz_cnn.models.keras.files import MAX_SIDE
from torchviz_cnn.models.keras.layers.modules import our_axis, our_order

Turn = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class LayerPlan:
    """A layer that is to be built: what the file says of it, and the shapes (in our order) of what it is called with.

    `fills` says how the values of each parameter and buffer are got.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    arrays: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    arguments: Sequence[Any] = ()
    training: bool = False
    keras2: bool = False
    fills: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """How many axes the input has."""
        return len(self.shapes[0])

    @property
    def channels(self) -> int:
        """How many channels, or values in the last of Keras' axes, the input has."""
        return self.shapes[0][our_axis(-1, self.rank)]

    def refuse(self, problem: str, error: type[TorchvizError] = ModelError) -> NoReturn:
        raise error(f"its layer {self.name!r} ({self.class_name}): {problem}")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.config.get(key, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.refuse(f"{key} is {value!r:.80}, not a number")
        return float(value)

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        return self.whole_number(key, self.config.get(key, default), least)

    def whole_number(self, key: str, value: Any, least: int, most: int = 2**31) -> int:
        if type(value) is not int or not least <= value <= most:
            self.refuse(f"{key} is {value!r:.80}, not a whole number from {least} to {most}")
        return value

    def pair(self, key: str, default: Any = None, least: int = 1) -> tuple[int, int]:
        value = self.config.get(key, default)
        pair = [value, value] if type(value) is int else value
        if not isinstance(pair, list) or len(pair) != 2:
            self.refuse(f"{key} is {value!r:.80}, not one whole number or two")
        return self.whole_number(key, pair[0], least, MAX_SIDE), self.whole_number(key, pair[1], least, MAX_SIDE)

    def choice(self, key: str, known: Iterable[str], default: str | None = None) -> str:
        value, names = self.config.get(key, default), list(known)
        if not isinstance(value, str) or value not in names:
            self.refuse(f"{key} is {value!r:.80}; known are {', '.join(names)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.config.get(key, default))

    def last_axis(self, key: str = "axis") -> None:
        """Refuse another axis than that of the channels."""
        axis = self.config.get(key, -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if axis not in (-1, self.rank - 1):
            self.refuse(f"{key} is {axis!r:.80}, not that of the channels, -1")

    def weights(self, *names: str) -> list[Any]:
        """The layer's arrays in the file, by name where it has names, else in Keras' order."""
        if all(name in self.arrays for name in names):
            return [self.arrays[name] for name in names]
        if len(self.arrays) != len(names):
            has = f"{len(self.arrays)} arrays" if self.arrays else "none"
            self.refuse(f"it has the weights {', '.join(names)}; the file has {has} for it", CheckpointError)
        return list(self.arrays.values())

    def put(self, parameter: str, array: Any, shape: Sequence[int | None], turn: Turn | None = None) -> tuple[int, ...]:
        """Say that an array of this shape, turned, is the value of a parameter. Gives the array's own shape."""
        sides = tuple(getattr(array, "shape", ()))
        fits = len(sides) == len(shape) and all(b in (a, None) for a, b in zip(sides, shape, strict=True))
        if not fits or array.dtype.kind != "f":
            wanted = " x ".join("any" if side is None else str(side) for side in shape)
            what = " x ".join(map(str, sides)) or "a single value"
            self.refuse(f"{parameter} is {wanted} numbers, and in the file {what} ({array.dtype})", CheckpointError)
        self.fills[parameter] = partial(_read, array, turn)
        return sides

    def constant(self, parameter: str, value: Tensor) -> None:
        self.fills[parameter] = lambda: value

    def by_axes(self, values: Any, axes: Sequence[int]) -> Tensor:
        """Numbers that the layer has along some of Keras' axes, or for all, as a tensor for its input in our order."""
        try:
            tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu")
            shape = [1] * self.rank
            for place, side in zip(sorted(axes, reverse=True), reversed(tensor.shape), strict=False):
                shape[place] = side
            return our_order(tensor.reshape(shape))
        except (TypeError, ValueError, RuntimeError, OverflowError, LookupError):
            self.refuse("its numbers do not fit its input")


def _read(array: Any, turn: Turn | None) -> Tensor:
    values = torch.from_numpy(np.asarray(array[()], dtype="float32"))
    return values.contiguous() if turn is None else turn(values).contiguous()


Builder = Callable[[LayerPlan], nn.Module]
BUILDERS: dict[str, Builder] = {}
"""Keras' class names, and what builds their modules."""


def builds(*class_names: str) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(class_names, builder))
        return builder

    return register
