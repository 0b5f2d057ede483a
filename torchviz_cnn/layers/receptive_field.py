"""Receptive fields: what part of the input can reach one unit, for any model that runs.

What slides a window over a map (a convolution, a pooling, padding) adds to the field by the textbook's formula,
whatever the size of the map. All else is measured: the model runs once with every weight positive, activations and
normalisations as the identity and max-pooling as an average, from positive values no two of which are alike. Nothing
then cancels, so a unit depends on a pixel exactly where the gradient of the one with respect to the other is not zero.
The channels of a layer are taken together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from torchviz_cnn.core.errors import ModelError
from torchviz_cnn.core.graph import graph_nodes
from torchviz_cnn.core.names import named_layers, resolve
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.hooks.interrupts import FunctionMode
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.layers import positive_ops as ops
from torchviz_cnn.layers.layout import channels_last

Size = tuple[int, ...]
_NEAR = 4  # units on either side of the middle one, where it takes several to tell the stride


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of a layer see of the input: one number per spatial dimension, in pixels.

    The unit at position `i` sees `size` pixels from pixel `start + i * stride` on. Behind an upsampling the stride is a
    fraction, and size is that of the unit in the middle: its neighbours' may be a pixel more or less.
    """

    size: Size
    stride: tuple[float, ...]
    start: Size
    whole: bool
    """Whether a layer takes in the whole map before it at once, as global pooling does; `size` is then the input's."""


def receptive_fields(
    model: nn.Module, x: Tensor, names: list[str], progress: bool = False
) -> dict[str, ReceptiveField | None]:
    """What the units of each call of these layers see of an input like x, for a frozen model; None without dimensions.

    Raises ModelError where it cannot be measured.
    """
    fields: dict[str, ReceptiveField | None] = {}
    network, bar = PositiveNetwork(x), progress_bar(progress, total=len(names), desc="receptive fields", unit=" layers")
    layers = named_layers(model)

    def measure(name: str, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        last = channels_last(layers[resolve(model, layers, name).name], output, tuple(x.shape[2:]))
        replacement = network.cut(output, last)
        fields[name] = network.field(replacement, last)  # known by now, where it could be cut
        bar.update()
        return replacement

    with HookManager(model) as hooks, bar:
        hooks.on_forward(dict.fromkeys(f"{resolve(model, layers, name).name}#*" for name in names), measure)
        try:
            with network:
                hooks.run(network.x.clone(), stop_early=False)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"the receptive fields of {type(model).__name__} cannot be measured: {error}") from error
    return fields


class PositiveNetwork(FunctionMode):
    """Runs a model with positive weights, and measures receptive fields on the way.

    Fields are measured between consecutive layers only: behind each the graph is cut, and its units' field is stored.
    So the cost grows with depth, not with its square, and fields larger than the input come out right too.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        dims = x.ndim - 2
        self._generator = torch.Generator(x.device).manual_seed(0)
        self.x = self._varied(x).requires_grad_()
        self._input_size: Size = tuple(x.shape[2:])
        # By id, with the tensor itself, so that the id stays its own.
        self._fields: dict[int, tuple[Tensor, int, _Known]] = {}
        self._measuring = False
        self._remember(self.x, _Known(ReceptiveField((1,) * dims, (1,) * dims, (0,) * dims, False)))

    def field(self, output: Tensor, last: bool = False) -> ReceptiveField | None:
        """The field of a tensor of this forward pass; None without spatial dimensions, or independent of the input.

        `last`: whether it is (B, *S, C) rather than (B, C, *S).
        """
        known = self._measure(output, last)
        return None if known is None else known.field

    def _measure(self, output: Tensor, last: bool = False) -> _Known | None:
        if output.ndim != self.x.ndim or not output.requires_grad:
            return None
        if (known := self._known(output)) is not None:
            return known
        self._measuring = True
        try:
            with torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
                field, regular = self._measured(_channels_first(output, last))
        finally:
            self._measuring = False
        if field is None:
            return None
        self._remember(output, known := _Known(field, regular, last))
        return known

    def _measured(self, output: Tensor) -> tuple[ReceptiveField | None, bool]:
        places = output.shape[2:]
        middle = [(count - 1) // 2 for count in places]

        @cache  # a pass of its own for each unit, which may go through many layers
        def reach(*position: int) -> _Reach | None:
            return self._reach(output, position)

        here = reach(*middle)
        if here is None:
            return None, False
        if here.whole:
            return self._everything(places), True
        before = reach(*(max(place - 1, 0) for place in middle)) or here
        far = [min(place + _NEAR, count - 1) for place, count in zip(middle, places, strict=True)]
        after = reach(*far) or here
        stride: list[float] = []
        start, means = [], list[float]()
        for d, count in enumerate(places):
            units, moved = far[d] - middle[d], _moved(here, after, d)
            if count == 1:
                stride.append(here.stride[d])
            elif moved and moved > 0 and (middle[d] == 0 or moved == units * (_moved(before, here, d) or 0)):
                stride.append(moved / units)
            else:
                means = means or self._mean_steps(reach, middle, places)
                stride.append(means[d])
            start.append(here.low[d] - math.floor(middle[d] * stride[d] + 1e-6))
        size = tuple(high - low for low, high in zip(here.low, here.high, strict=True))
        return ReceptiveField(size, _rounded(stride), tuple(start), False), not means

    def _everything(self, places: Sequence[int]) -> ReceptiveField:
        """The field of units that see the whole input."""
        full = self._input_size
        stride = [max(side / count, 1.0) for side, count in zip(full, places, strict=True)]
        return ReceptiveField(full, _rounded(stride), (0,) * len(full), True)

    def _mean_steps(
        self, reach: Callable[..., _Reach | None], middle: Sequence[int], places: Sequence[int]
    ) -> list[float]:
        """How far the field moves per unit along each dimension: over a period, as of an upsampling, or a long way."""

        def moved_by(offsets: Sequence[int]) -> tuple[list[int], _Reach | None]:
            unit = [min(max(p + i, 0), n - 1) for p, i, n in zip(middle, offsets, places, strict=True)]
            return unit, reach(*unit)

        # Along the diagonal, for all dimensions at once: a shorter one stays at its border for a while.
        near = [moved_by([offset] * len(places)) for offset in range(-_NEAR, _NEAR + 1)]
        spans = [1 << max(count // 2, 1).bit_length() - 1 for count in places]  # whole periods of repeated doublings
        (first, one), (last, other) = moved_by([-(span // 2) for span in spans]), moved_by([s - s // 2 for s in spans])
        steps = []
        for d, count in enumerate(places):
            step = _period_step(list({unit[d]: r for unit, r in near if r is not None}.values()), d)
            if step is None and one is not None and other is not None and last[d] > first[d]:
                moved = other.low[d] - one.low[d] + other.high[d] - one.high[d]
                step = moved / 2 / (last[d] - first[d])
            steps.append(max(self._input_size[d] / count, 1.0) if step is None else step)
        return steps

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._measuring:  # our own arithmetic, of hundreds of small steps
            return func(*args, **(kwargs or {}))
        # Saved as they are, also where activation checkpointing would run this part again for the backward pass,
        # which is then without this mode.
        with torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
            return self._positive(func, args, kwargs or {})

    def _positive(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(func, "__name__", "").rstrip("_") in ops.POINTWISE:
            return args[0] if args else kwargs["input"]
        if func in ops.CONVOLUTIONS:
            return self._slid(
                ops.convolution_window, ops.convolution(ops.CONVOLUTIONS[func], *args, **kwargs), args, kwargs
            )
        if func in ops.TRANSPOSED:
            return self.cut(ops.transposed(func, *args, **kwargs))
        if func is F.linear:
            return self._placewise(ops.linear(*args, **kwargs), args[0] if args else kwargs["input"])
        if func in ops.MAX_POOLS:
            pooled, *rest = ops.max_pooling(func, ops.MAX_POOLS[func], args, kwargs)
            pooled = self._slid(ops.pooling_window, pooled, args, kwargs)
            return (pooled, *rest) if rest else pooled
        if func in ops.AVERAGE_POOLS:
            return self._slid(ops.pooling_window, func(*args, **kwargs), args, kwargs)
        if func is F.pad:
            known = self._known(args[0] if args else kwargs["input"])
            padded = func(*args, **kwargs)
            if known is None or known.last:  # it is measured on, by what comes next
                return padded
            return self._slid(ops.padding_window, padded, args, kwargs)
        if func in ops.ADAPTIVE:
            func, kwargs = ops.ADAPTIVE[func], {k: v for k, v in kwargs.items() if k in ("input", "output_size")}
            args = args[:2]
        args, kwargs = tree_map_only(nn.Parameter, ops.ones_like, (args, kwargs))
        return func(*args, **kwargs)

    def cut(self, output: Tensor, last: bool = False) -> Tensor:
        """A new leaf in place of this tensor, from which on fields are measured anew where its own is regular."""
        before = self._known(output)
        known = self._measure(output, last)
        if known is None or not known.regular or before is not None:
            return output  # what is not regular, as behind an upsampling, is measured on from the last cut that is
        return self._leaf(output, known)

    def _slid(self, window_of: Callable[..., ops.SlidingWindow], output: Tensor, args: Any, kwargs: Any) -> Tensor:
        """What a window gives, cut: its field by the formula, where the field of the map below is regular."""
        input: Tensor = args[0] if args else kwargs["input"]
        known = self._measure(input)
        if known is None or not known.regular:
            return self.cut(output)
        window = window_of(*args, **kwargs)
        grown, places = _slid_over(known.field, window), output.shape[2:]
        covers = all(size >= side for size, side in zip(grown.size, self._input_size, strict=True))
        whole = known.field.whole or (covers and window.takes_all(input.shape[2:], places))
        return self._leaf(output, _Known(self._everything(places) if whole else grown))

    def _placewise(self, output: Tensor, input: Tensor) -> Tensor:
        """What is computed of the channels at each place alone, whose field is that of the place."""
        known = self._known(input)
        if known is not None and known.last:
            self._remember(output, known)
        return output

    def _leaf(self, output: Tensor, known: _Known) -> Tensor:
        leaf = self._varied(output.detach()).requires_grad_()
        copy = leaf.clone()  # what follows may write into it, which a leaf does not allow
        self._remember(leaf, known)
        self._remember(copy, known)
        return copy

    def _varied(self, like: Tensor) -> Tensor:
        """Positive numbers, no two alike: with equal ones, what subtracts or normalises would cancel out."""
        return torch.empty_like(like).uniform_(0.5, 1.5, generator=self._generator)

    def _remember(self, tensor: Tensor, known: _Known) -> None:
        self._fields[id(tensor)] = tensor, tensor._version, known

    def _known(self, tensor: Tensor) -> _Known | None:
        """What is known of a tensor, unless something was written into it since."""
        kept, version, known = self._fields.get(id(tensor), (None, 0, None))
        return known if kept is tensor and version == tensor._version else None

    def _reach(self, output: Tensor, position: Sequence[int]) -> _Reach | None:
        """The input pixels that one unit depends on, through the leaves that it is made from; None without any."""
        place: Any = (0, slice(None), *position)
        unit = (output[place] * self._varied(output[place].detach())).sum()
        variables = [node.variable for node in graph_nodes(unit) if hasattr(node, "variable")]
        leaves = [leaf for leaf in variables if id(leaf) in self._fields]
        if not leaves:
            return None
        lows, highs, strides, whole = [], [], [], False
        free_low, free_high = [True] * len(position), [True] * len(position)
        for leaf, gradient in zip(leaves, torch.autograd.grad(unit, leaves, retain_graph=True), strict=True):
            field, _, behind = self._fields[id(leaf)][2]
            gradient = _channels_first(gradient, behind)
            reached = gradient[0].ne(0).any(0).nonzero()
            if not len(reached):
                continue
            sides = gradient.shape[2:]
            first, last = reached.amin(0).tolist(), reached.amax(0).tolist()
            lows.append([int(o + i * s) for o, i, s in zip(field.start, first, field.stride, strict=True)])
            highs.append(
                [int(o + i * s + n) for o, i, s, n in zip(field.start, last, field.stride, field.size, strict=True)]
            )
            free_low = [free and i > 0 for free, i in zip(free_low, first, strict=True)]
            free_high = [free and i < side - 1 for free, i, side in zip(free_high, last, sides, strict=True)]
            alone = zip(sides, field.stride, self._input_size, strict=True)
            strides.append([stride if side == 1 else float(full) for side, stride, full in alone])
            everything = max(sides) > 1 and first == [0] * len(sides) and last == [side - 1 for side in sides]
            covered = zip(lows[-1], highs[-1], self._input_size, strict=True)
            whole |= field.whole or (everything and all(high - low >= side for low, high, side in covered))
        if not lows:
            return None
        low, high, stride = ([*zip(*edges, strict=True)] for edges in (lows, highs, strides))
        free = list(zip(free_low, free_high, strict=True))
        return _Reach([min(e) for e in low], [max(e) for e in high], free, [max(step) for step in stride], whole)


class _Known(NamedTuple):
    """What was measured of a tensor."""

    field: ReceptiveField
    regular: bool = True
    """Whether the field is the same for all units but for its place, `stride` whole pixels per unit."""
    last: bool = False
    """Whether the channels are in the last dimension."""


@dataclass(frozen=True)
class _Reach:
    """The input pixels that one unit sees, by dimension."""

    low: list[int]
    high: list[int]
    """One past the last."""
    free: list[tuple[bool, bool]]
    """Whether the first and the last pixel are inside the map below; at its border, a field may have been cut off."""
    stride: list[float]
    """The stride of the map below, where that has a single place; else the input's side."""
    whole: bool


def _slid_over(field: ReceptiveField, window: ops.SlidingWindow) -> ReceptiveField:
    """The field of what a window gives, over a map of this field."""
    sides = range(len(field.size))
    return ReceptiveField(
        tuple(int(field.size[d] + (window.spans[d] - 1) * field.stride[d]) for d in sides),
        tuple(field.stride[d] * window.stride[d] for d in sides),
        tuple(int(field.start[d] - window.padding[d] * field.stride[d]) for d in sides),
        False,
    )


def _moved(one: _Reach, other: _Reach, d: int) -> int | None:
    """How far one unit's field lies beyond another's along a dimension; None where its edges do not move alike.

    An edge at a border does not tell, unless both are there: then the one that moves more does.
    """
    steps = (other.low[d] - one.low[d], other.high[d] - one.high[d])
    telling = {
        step for step, free in zip(steps, zip(one.free[d], other.free[d], strict=True), strict=True) if all(free)
    }
    if len(telling) > 1:
        return None
    return telling.pop() if telling else max(steps)


def _period_step(reaches: list[_Reach], d: int) -> float | None:
    """How far the field moves per unit, of units in a row, over their shortest period; None where none shows."""
    for period in range(1, len(reaches) // 2 + 1):
        steps = {_moved(one, other, d) for one, other in zip(reaches, reaches[period:], strict=False)}
        if len(steps) == 1 and (step := steps.pop()) is not None:
            return step / period
    return None


def _rounded(stride: Sequence[float]) -> tuple[float, ...]:
    """Whole numbers as int, others rounded."""
    return tuple(int(step) if step == int(step) else round(step, 4) for step in stride)


def _channels_first(tensor: Tensor, last: bool) -> Tensor:
    return tensor.movedim(-1, 1) if last else tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor
