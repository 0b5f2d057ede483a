"""What a network computes, with positive weights: so that nothing cancels, and where values come from can be seen.

And the windows that slide over maps there: of convolutions, poolings and padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

# Of these only *where* their values come from matters, and they give every value from its own place.
_POINTWISE_NAMES = """
relu relu6 hardtanh leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid tanh softplus
softsign tanhshrink softshrink hardshrink logsigmoid threshold clamp clamp_min clamp_max clip softmax log_softmax
dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
batch_norm instance_norm group_norm layer_norm rms_norm local_response_norm
"""
POINTWISE = set(_POINTWISE_NAMES.split())
"""The names of these functions, without the `_` of those that write in place."""
CONVOLUTIONS: dict[Callable[..., Any], int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
TRANSPOSED: set[Callable[..., Any]] = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
MAX_POOLS: dict[Callable[..., Any], int] = {
    getattr(place, f"max_pool{dims}d{suffix}"): dims
    for dims in (1, 2, 3)
    for place, suffix in ((F, ""), (torch, ""), (F, "_with_indices"))
}
AVERAGE_POOLS: dict[Callable[..., Any], int] = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}
ADAPTIVE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.adaptive_max_pool1d: F.adaptive_avg_pool1d,
    F.adaptive_max_pool2d: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d: F.adaptive_avg_pool3d,
}


@dataclass(frozen=True)
class SlidingWindow:
    """What slides over a map, one number per spatial dimension. The unit at `i` takes in `kernel` places, `dilation`
    apart, from `i * stride - padding` on."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @property
    def spans(self) -> list[int]:
        """How many places lie from its first to its last."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    def takes_all(self, sides: Sequence[int], places: Sequence[int]) -> bool:
        """Whether it takes in at once all of a map of these sides, more than one place, and gives a single one."""
        pooled = max(sides) > 1 and max(places) == 1 and not any(self.padding)
        return pooled and all(span >= side for span, side in zip(self.spans, sides, strict=True))


def ones_like(parameter: Tensor) -> Tensor:
    return torch.ones((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


def _numbers(value: Any, dims: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    return values * dims if len(values) == 1 else values


def convolution_window(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> SlidingWindow:
    kernel = list(weight.shape[2:])
    dilation = _numbers(dilation, len(kernel))
    if padding == "same":
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    padding = 0 if padding == "valid" else padding
    return SlidingWindow(kernel, _numbers(stride, len(kernel)), _numbers(padding, len(kernel)), dilation)


def pooling_window(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *rest: Any, **options: Any
) -> SlidingWindow:
    kernel = _numbers(kernel_size, input.ndim - 2)
    dilation = 1 if isinstance(dilation, bool) else dilation  # average pooling has its ceil_mode there
    every = [_numbers(value, len(kernel)) for value in (stride or kernel, padding, dilation)]
    return SlidingWindow(kernel, *every)


def padding_window(input: Tensor, pad: Sequence[int], *rest: Any, **options: Any) -> SlidingWindow:
    before = [*pad[::2], *[0] * (input.ndim - 2)][: input.ndim - 2][::-1]
    ones = [1] * (input.ndim - 2)
    return SlidingWindow(ones, ones, before, ones)


def convolution(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution whose weights are all alike needs one channel per group: thousands of times less work."""
    batch, channels, *sizes = input.shape
    mean = input.reshape(batch, groups, channels // groups, *sizes).mean(2)
    kernel = torch.ones(groups, 1, *weight.shape[2:], dtype=input.dtype, device=input.device)
    output = _conv(dims)(mean, kernel / kernel[0].numel(), None, stride, padding, dilation, groups)
    return _repeated(output.unsqueeze(2), 2, weight.shape[0] // groups).flatten(1, 2)


def _conv(dims: int) -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], (F.conv1d, F.conv2d, F.conv3d)[dims - 1])


def transposed(
    func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **options: Any
) -> Tensor:
    return func(input, torch.full_like(weight, 1 / weight[:, 0].numel()), None, *rest, **options)


def linear(input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    return _repeated(input.mean(-1, keepdim=True), -1, weight.shape[0])


def _repeated(input: Tensor, dim: int, count: int) -> Tensor:
    """A copy with `count` values along a dimension of one: the gradient of expand is a plain sum, hence fast."""
    shape = list(input.shape)
    shape[dim] = count
    return input.expand(shape).contiguous()


def max_pooling(
    func: Callable[..., Any], dims: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, ...]:
    with torch.no_grad():
        real = func(*args, **kwargs)
    shape = (real[0] if isinstance(real, tuple) else real).shape
    input: Tensor = args[0] if args else kwargs["input"]
    window = pooling_window(*args, **kwargs)
    kernel, stride, padding, dilation = window.kernel, window.stride, window.padding, window.dilation
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
