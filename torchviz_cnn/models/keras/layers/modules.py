"""What Keras computes and PyTorch has no module for.

Maps are (B, C, H, W) here and (B, H, W, C) in Keras; everything of another rank is as in Keras. What Keras says of axes
and of the order of values is done in its own order, on `keras_order(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keras_order(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) as (B, H, W, C); what is no map, as it is."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def our_order(x: Tensor) -> Tensor:
    """Maps (B, H, W, C) as (B, C, H, W); what is no map, as it is."""
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def our_axis(axis: int, rank: int) -> int:
    """The axis of our order that is Keras' `axis` of a tensor of this rank."""
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} in {rank}")
    return (0, 2, 3, 1)[axis] if rank == 4 else axis % rank


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def same_padding(x: Tensor, kernel: Any, stride: Any, dilation: Any = 1) -> tuple[int, int, int, int]:
    """Left, right, top and bottom padding with which a window gives ⌈side / stride⌉ values, the odd one last."""
    sides: list[int] = []
    for side, k, step, spread in zip(x.shape[-2:], _pair(kernel), _pair(stride), _pair(dilation), strict=True):
        total = max((-(-side // step) - 1) * step + (k - 1) * spread + 1 - side, 0)
        sides = [total // 2, total - total // 2, *sides]
    return sides[0], sides[1], sides[2], sides[3]


class SameConv2d(nn.Conv2d):
    """A convolution with 'same' padding that depends on the input's size."""

    def forward(self, input: Tensor) -> Tensor:
        left, right, top, bottom = same_padding(input, self.kernel_size, self.stride, self.dilation)
        padding = (top, left)
        if (left, top) != (right, bottom):
            input, padding = F.pad(input, (left, right, top, bottom)), (0, 0)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class SameMaxPool2d(nn.MaxPool2d):
    """Max-pooling with 'same' padding, which is never the maximum."""

    def forward(self, input: Tensor) -> Tensor:
        left, right, top, bottom = same_padding(input, self.kernel_size, self.stride)
        padding = (top, left)
        if (left, top) != (right, bottom):
            input, padding = F.pad(input, (left, right, top, bottom), value=-torch.inf), (0, 0)
        return F.max_pool2d(input, self.kernel_size, self.stride, padding)


class SameAvgPool2d(nn.AvgPool2d):
    """Average pooling with 'same' padding, which is not counted."""

    def forward(self, input: Tensor) -> Tensor:
        left, right, top, bottom = same_padding(input, self.kernel_size, self.stride)
        if (left, top) == (right, bottom):
            return F.avg_pool2d(input, self.kernel_size, self.stride, (top, left), count_include_pad=False)
        padded, inside = (F.pad(each, (left, right, top, bottom)) for each in (input, torch.ones_like(input[:1, :1])))
        return F.avg_pool2d(padded, self.kernel_size, self.stride) / F.avg_pool2d(inside, self.kernel_size, self.stride)


class CroppedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution of which `crops` (left, right, top, bottom) are cut off; below 0, zeros are added."""

    crops: tuple[int, ...] = (0, 0, 0, 0)

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        full = F.conv_transpose2d(input, self.weight, None, self.stride, dilation=self.dilation)
        cut = F.pad(full, [-crop for crop in self.crops]) if any(self.crops) else full
        return cut if self.bias is None else cut + self.bias[:, None, None]


class GlobalAvgPool2d(nn.AdaptiveAvgPool2d):
    """The mean of each map: (B, C, H, W) to (B, C)."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).flatten(1)


class GlobalMaxPool2d(nn.AdaptiveMaxPool2d):
    """The maximum of each map: (B, C, H, W) to (B, C)."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:
        pooled: Tensor = super().forward(input)
        return pooled.flatten(1)


class DenseOnMaps(nn.Linear):
    """A dense layer at every place of a map."""

    def forward(self, input: Tensor) -> Tensor:
        return our_order(super().forward(keras_order(input)))


class LayerNormOnMaps(nn.LayerNorm):
    """Layer normalisation over Keras' last axes: over channels, at every place of a map."""

    def forward(self, input: Tensor) -> Tensor:
        return our_order(super().forward(keras_order(input)))


class Flatten(nn.Module):
    """All values of an example in a row, in Keras' order."""

    def forward(self, input: Tensor) -> Tensor:
        return keras_order(input).flatten(1)


class Reshape(nn.Module):
    """Another shape for the values of an example, in Keras' order."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def extra_repr(self) -> str:
        return f"{self.shape}"

    def forward(self, input: Tensor) -> Tensor:
        return our_order(keras_order(input).reshape(len(input), *self.shape))


class Permute(nn.Module):
    """Keras' axes of an example in another order, counted from 1."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def extra_repr(self) -> str:
        return f"{self.dims}"

    def forward(self, input: Tensor) -> Tensor:
        return our_order(keras_order(input).permute(0, *self.dims))


class GetItem(nn.Module):
    """Part of a tensor, by Keras' axes; a slice of step -1 turns the axis around."""

    def __init__(self, key: Sequence[Any]) -> None:
        super().__init__()
        self.key = tuple(key)

    def forward(self, input: Tensor) -> Tensor:
        x, after = keras_order(input), self.key[self.key.index(...) + 1 :] if ... in self.key else ()
        turned = slice(None, None, -1)
        axes = [place for place, part in enumerate(self.key[: len(self.key) - len(after)]) if part == turned]
        axes += [place - len(after) for place, part in enumerate(after) if part == turned]
        key = tuple(slice(None) if part == turned else part for part in self.key)
        return our_order(x.flip(axes)[key])


class Stack(nn.Module):
    """Tensors side by side along a new axis of Keras' order."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        return our_order(torch.stack([keras_order(x) for x in inputs], self.axis))


class Concatenate(nn.Module):
    """Tensors behind one another along an axis of Keras' order."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def extra_repr(self) -> str:
        return f"axis={self.axis}"

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, our_axis(self.axis, inputs[0].ndim))


OPERATIONS: Mapping[str, Callable[[Sequence[Any]], Tensor]] = {
    "Add": lambda parts: reduce(torch.add, parts),
    "Subtract": lambda parts: torch.sub(*parts),
    "Multiply": lambda parts: reduce(torch.mul, parts),
    "Divide": lambda parts: torch.div(*parts),
    "Average": lambda parts: reduce(torch.add, parts) / len(parts),
    "ScaledSum": lambda parts: parts[0] + parts[1] * parts[2],
    "Maximum": lambda parts: reduce(torch.maximum, parts),
    "Minimum": lambda parts: reduce(torch.minimum, parts),
}


class Merge(nn.Module):
    """One tensor computed of several, value by value; some may be `constants`, by their place among all."""

    def __init__(self, operation: str, constants: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.operation, self.places = operation, sorted(constants)
        for place, value in constants.items():
            self.register_buffer(f"constant_{place}", value)

    def extra_repr(self) -> str:
        return self.operation

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = list(inputs)
        rank = max(x.ndim for x in parts)
        for place, x in enumerate(parts):  # Keras gives what has fewer axes others behind the first
            parts[place] = our_order(x[(slice(None), *(None,) * (rank - x.ndim))]) if x.ndim < rank else x
        for place in self.places:
            parts.insert(place, self.get_buffer(f"constant_{place}"))
        return OPERATIONS[self.operation](parts)


class Rescaling(nn.Module):
    """`x * scale + offset`, for all values or by channel."""

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale + self.offset


class Resizing(nn.Module):
    """Maps of another size, all of them or, with `crop`, their middle part of the same proportions."""

    def __init__(self, size: tuple[int, int], mode: str, antialias: bool, crop: bool) -> None:
        super().__init__()
        self.size, self.mode, self.antialias, self.crop = size, mode, antialias, crop

    def extra_repr(self) -> str:
        return f"{self.size}, {self.mode}"

    def forward(self, input: Tensor) -> Tensor:
        (height, width), (rows, columns) = input.shape[-2:], self.size
        if self.crop:
            h = max(min(height, int(width * rows / columns)), 1)
            w = max(min(width, int(height * columns / rows)), 1)
            top, left = int((height - h) / 2), int((width - w) / 2)
            input = input[..., top : top + h, left : left + w]
        smooth = self.mode != "nearest-exact"
        align = False if smooth else None
        return F.interpolate(input, self.size, mode=self.mode, align_corners=align, antialias=smooth and self.antialias)


class PReLUOfPlaces(nn.Module):
    """A PReLU with a slope for every value of a map, or for every channel or place."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tuple(shape)))

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input) - self.weight * F.relu(-input)


class BoundedReLU(nn.Module):
    """Keras' ReLU with all of its options: `x` between threshold and top, `slope * (x - threshold)` below."""

    def __init__(self, top: float, slope: float, threshold: float) -> None:
        super().__init__()
        self.top, self.slope, self.threshold = top, slope, threshold

    def extra_repr(self) -> str:
        return f"top={self.top}, slope={self.slope}, threshold={self.threshold}"

    def forward(self, input: Tensor) -> Tensor:
        below = self.slope * (input - self.threshold)
        return torch.where(input >= self.threshold, input, below).clamp(max=self.top)


class HardSigmoidOfKeras2(nn.Module):
    """Keras 2's hard sigmoid, `0.2 x + 0.5` between 0 and 1; Keras 3's is PyTorch's."""

    def forward(self, input: Tensor) -> Tensor:
        return (0.2 * input + 0.5).clamp(0, 1)


class Exponential(nn.Module):
    """The exponential of every value."""

    def forward(self, input: Tensor) -> Tensor:
        return input.exp()
