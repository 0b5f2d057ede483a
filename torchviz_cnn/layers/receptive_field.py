"""Receptive fields measured, not derived: what part of the input can reach one unit, for any model that runs.

The model runs once with every weight positive, activations and normalisations as the identity and max-pooling as an
average, from positive values no two of which are alike. Nothing then cancels, so a unit depends on an input pixel exactly
where the gradient of the one with respect to the other is not zero. The channels of a layer are taken together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from torchviz_cnn.core.errors import ModelError
from torchviz_cnn.core.names import named_layers, resolve
from torchviz_cnn.hooks.interrupts import FunctionMode
from torchviz_cnn.hooks.manager import HookManager

Size = tuple[int, ...]

# Of these only *where* their values come from matters, and they give every value from its own place.
_POINTWISE: set[Callable[..., Any]] = {
    F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.prelu, F.rrelu, F.rrelu_,
    F.elu, F.elu_, F.selu, F.selu_, F.celu, F.celu_, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.sigmoid,
    F.tanh, F.softplus, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink, F.logsigmoid, F.threshold, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.local_response_norm, F.softmax, F.log_softmax,
    torch.relu, torch.relu_, torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.clamp, torch.clamp_,
    torch.clamp_min, torch.clamp_max, torch.clip, torch.prelu, torch.softmax, torch.log_softmax, torch.batch_norm,
    torch.layer_norm, torch.group_norm, torch.instance_norm, torch.dropout, torch.dropout_, torch.selu, torch.celu,
    Tensor.relu, Tensor.relu_, Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_, Tensor.clamp,
    Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_, Tensor.clip, Tensor.clip_, Tensor.softmax,
    Tensor.log_softmax, Tensor.prelu, Tensor.hardshrink,
}  # fmt: skip
if hasattr(F, "rms_norm"):
    _POINTWISE |= {F.rms_norm, torch.rms_norm}

_CONVOLUTIONS: dict[Callable[..., Any], int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED: set[Callable[..., Any]] = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_MAX_POOLS: dict[Callable[..., Any], int] = {
    F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3, torch.max_pool1d: 1, torch.max_pool2d: 2, torch.max_pool3d: 3,
    F.max_pool1d_with_indices: 1, F.max_pool2d_with_indices: 2, F.max_pool3d_with_indices: 3,
}  # fmt: skip
_ADAPTIVE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.adaptive_max_pool1d: F.adaptive_avg_pool1d,
    F.adaptive_max_pool2d: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d: F.adaptive_avg_pool3d,
}


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
    """Whether a unit sees the whole input, as after global pooling; `size` is then the input's."""


def receptive_fields(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, ReceptiveField | None]:
    """What the units of each call of these layers see of an input like x, for a frozen model; None without dimensions.

    Raises ModelError where it cannot be measured.
    """
    fields: dict[str, ReceptiveField | None] = {}
    network = PositiveNetwork(x)

    def measure(name: str, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        replacement = network.cut(output)
        fields[name] = network.field(replacement)  # known by now, where it could be cut
        return replacement

    with HookManager(model) as hooks:
        layers = named_layers(model)
        hooks.on_forward(dict.fromkeys(f"{resolve(model, layers, name).name}#*" for name in names), measure)
        try:
            with network:
                hooks.run(network.x.clone(), stop_early=False)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"the receptive fields of {type(model).__name__} cannot be measured: {error}") from error
    return fields


class PositiveNetwork(FunctionMode):
    """Runs a model with positive weights, and measures receptive fields on the way.

    A field is measured from one layer to the next only: behind each the graph is cut, and what its units see is
    remembered. So the cost grows with depth, not with its square, and fields larger than the input
    come out right too.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        dims = x.ndim - 2
        self._generator = torch.Generator(x.device).manual_seed(0)
        self.x = self._varied(x).requires_grad_()
        self._input_size: Size = tuple(x.shape[2:])
        # By id, with the tensor itself, so that the id stays its own.
        self._fields: dict[int, tuple[Tensor, int, ReceptiveField]] = {}
        self._measuring = False
        self._remember(self.x, ReceptiveField((1,) * dims, (1,) * dims, (0,) * dims, False))

    def field(self, output: Tensor) -> ReceptiveField | None:
        """The field of a tensor of this forward pass; None without spatial dimensions, or independent of the input."""
        return self._measure(output)[0]

    def _measure(self, output: Tensor) -> tuple[ReceptiveField | None, bool]:
        """The field, and whether it is the same for all units but for its place, each `stride` whole pixels on."""
        if output.ndim != self.x.ndim or not output.requires_grad:
            return None, False
        if (known := self._known(output)) is not None:
            return known, True
        self._measuring = True
        try:
            with torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
                return self._measured(output)
        finally:
            self._measuring = False

    def _measured(self, output: Tensor) -> tuple[ReceptiveField | None, bool]:
        sizes = output.shape[2:]
        middle = [(size - 1) // 2 for size in sizes]
        here = self._seen(output, middle)
        if here is None:
            return None, False
        low, high, whole = here
        before = self._seen(output, [max(place - 1, 0) for place in middle]) or here
        after = self._seen(output, [min(p + 1, n - 1) for p, n in zip(middle, sizes, strict=True)]) or here
        stride: list[float] = []
        start, size, regular = [], [], True
        for d, full in enumerate(self._input_size):
            step, last = _moved(here, after, d), _moved(before, here, d)
            regular &= whole or sizes[d] == 1 or (step > 0 and (middle[d] == 0 or step == last))
            if step > 0 and (middle[d] == 0 or step == last):
                stride.append(step)
            else:
                alone = whole or sizes[d] == 1
                stride.append(max(full / sizes[d], 1.0) if alone else self._mean_step(output, middle, d))
            start.append(0 if whole else low[d] - int(middle[d] * stride[d]))
            size.append(full if whole else high[d] - low[d])
        plain = tuple(int(s) if s == int(s) else round(s, 2) for s in stride)
        return ReceptiveField(tuple(size), plain, tuple(start), whole), regular

    def _mean_step(self, output: Tensor, middle: list[int], d: int) -> float:
        """How far the field moves per unit along a dimension, on average over up to eight units."""
        last = min(middle[d] + 8, output.shape[2 + d] - 1)
        there = self._seen(output, [last if i == d else place for i, place in enumerate(middle)])
        here = self._seen(output, middle)
        if last == middle[d] or there is None or here is None:
            return max(self._input_size[d] / output.shape[2 + d], 1.0)
        return _moved(here, there, d) / (last - middle[d])

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
        if func in _POINTWISE:
            return args[0] if args else kwargs["input"]
        if func in _CONVOLUTIONS:
            return self.cut(_convolution(_CONVOLUTIONS[func], *args, **kwargs))
        if func in _TRANSPOSED:
            return self.cut(_transposed(func, *args, **kwargs))
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func in _MAX_POOLS:
            pooled, *rest = _max_pool(func, _MAX_POOLS[func], args, kwargs)
            return (self.cut(pooled), *rest) if rest else self.cut(pooled)
        if func in _ADAPTIVE:
            func, kwargs = _ADAPTIVE[func], {k: v for k, v in kwargs.items() if k in ("input", "output_size")}
            args = args[:2]
        args, kwargs = tree_map_only(nn.Parameter, _ones_like, (args, kwargs))
        return func(*args, **kwargs)

    def cut(self, output: Tensor) -> Tensor:
        """A new leaf in place of this tensor, from which on fields are measured anew where its own is known."""
        field, regular = self._measure(output)
        if field is None or not regular or self._known(output) is not None:
            return output  # what is not regular, as behind an upsampling, is measured on from the last cut that is
        leaf = self._varied(output.detach()).requires_grad_()
        copy = leaf.clone()  # what follows may write into it, which a leaf does not allow
        self._remember(leaf, field)
        self._remember(copy, field)
        return copy

    def _varied(self, like: Tensor) -> Tensor:
        """Positive numbers, no two alike: with equal ones, what subtracts or normalises would cancel out."""
        return torch.empty_like(like).uniform_(0.5, 1.5, generator=self._generator)

    def _remember(self, tensor: Tensor, field: ReceptiveField) -> None:
        self._fields[id(tensor)] = tensor, tensor._version, field

    def _known(self, tensor: Tensor) -> ReceptiveField | None:
        """The field of a tensor that was cut, unless something was written into it since."""
        kept, version, field = self._fields.get(id(tensor), (None, 0, None))
        return field if kept is tensor and version == tensor._version else None

    def _seen(self, output: Tensor, position: list[int]) -> Seen | None:
        """First and one past the last input pixel that a unit sees, by dimension, and whether it sees them all."""
        place: Any = (0, slice(None), *position)
        unit = (output[place] * self._varied(output[place].detach())).sum()
        leaves = [leaf for leaf in _leaves(unit) if id(leaf) in self._fields]
        if not leaves:
            return None
        lows, highs, whole = [], [], False
        for leaf, gradient in zip(leaves, torch.autograd.grad(unit, leaves, retain_graph=True), strict=True):
            reached = gradient[0].ne(0).any(0).nonzero()
            if not len(reached):
                continue
            field = self._fields[id(leaf)][2]
            first, last = reached.amin(0).tolist(), reached.amax(0).tolist()
            lows.append([o + i * s for o, i, s in zip(field.start, first, field.stride, strict=True)])
            highs.append(
                [o + i * s + n for o, i, s, n in zip(field.start, last, field.stride, field.size, strict=True)]
            )
            everything = [(0, side - 1) for side in leaf.shape[2:]]
            whole |= field.whole or (
                list(zip(first, last, strict=True)) == everything
                and all(
                    high - low >= side for low, high, side in zip(lows[-1], highs[-1], self._input_size, strict=True)
                )
            )
        if not lows:
            return None
        return [min(edge) for edge in zip(*lows, strict=True)], [max(edge) for edge in zip(*highs, strict=True)], whole


Seen = tuple[list[int], list[int], bool]


def _moved(one: Seen, other: Seen, d: int) -> int:
    """How far one unit's field lies beyond another's along a dimension; at the input's border, the free edge counts."""
    return max(other[0][d] - one[0][d], other[1][d] - one[1][d])


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The leaves of the graph that a tensor was computed by."""
    found: list[Tensor] = []
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _ones_like(parameter: Tensor) -> Tensor:
    return torch.ones((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


def _numbers(value: Any, dims: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    return values * dims if len(values) == 1 else values


def _convolution(
    dims: int, input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """A convolution whose weights are all alike needs one channel per group: thousands of times less work."""
    batch, channels, *sizes = input.shape
    mean = input.reshape(batch, groups, channels // groups, *sizes).mean(2)
    kernel = torch.ones(groups, 1, *weight.shape[2:], dtype=input.dtype, device=input.device)
    output = _conv(dims)(mean, kernel / kernel[0].numel(), None, stride, padding, dilation, groups)
    return _repeated(output.unsqueeze(2), 2, weight.shape[0] // groups).flatten(1, 2)


def _conv(dims: int) -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], (F.conv1d, F.conv2d, F.conv3d)[dims - 1])


def _transposed(
    func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **options: Any
) -> Tensor:
    return func(input, torch.full_like(weight, 1 / weight[:, 0].numel()), None, *rest, **options)


def _linear(input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    return _repeated(input.mean(-1, keepdim=True), -1, weight.shape[0])


def _repeated(input: Tensor, dim: int, count: int) -> Tensor:
    """A copy with `count` values along a dimension of one: the gradient of expand is a plain sum, hence fast."""
    shape = list(input.shape)
    shape[dim] = count
    return input.expand(shape).contiguous()


def _max_pool(func: Callable[..., Any], dims: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        real = func(*args, **kwargs)
    shape = (real[0] if isinstance(real, tuple) else real).shape
    names = ("input", "kernel_size", "stride", "padding", "dilation")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    input, kernel = given["input"], _numbers(given["kernel_size"], dims)
    stride = _numbers(given.get("stride") or kernel, dims)
    padding, dilation = _numbers(given.get("padding", 0), dims), _numbers(given.get("dilation", 1), dims)
    pads: list[int] = []
    for d in reversed(range(dims)):
        wanted = (shape[2 + d] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1
        pads += [padding[d], max(wanted - input.shape[2 + d] - padding[d], 0)]
    padded = F.pad(input, pads)
    if set(dilation) == {1}:
        average = cast(Callable[..., Tensor], (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1])
        pooled = average(padded, kernel, stride)
    else:
        channels = input.shape[1]
        ones = torch.ones(channels, 1, *kernel, dtype=input.dtype, device=input.device)
        pooled = _conv(dims)(padded, ones / ones[0].numel(), None, stride, 0, dilation, channels)
    inside: Any = (..., *(slice(size) for size in shape[2:]))
    return pooled[inside], *(real[1:] if isinstance(real, tuple) else ())
