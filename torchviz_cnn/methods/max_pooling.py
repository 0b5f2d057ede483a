"""Max pooling on a CPU, channels last: on maps in the usual order PyTorch takes longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from torchviz_cnn.methods.layout import ordinary

_LEAST = 2**17  # values from which on it pays
_CHANNELS = 16  # and channels
_CACHED = 10 * 2**20  # bytes that are reordered at a time


class FastMaxPooling(TorchFunctionMode):
    """A block in which max pooling of float32 maps on a CPU is faster. The values are the same, and so are the gradients."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (F.max_pool2d, torch.max_pool2d):
            found = _pooled(*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def _pooled(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:  # fmt: skip
    if not ordinary(input) or input.ndim != 4:
        return None
    small = input.numel() < _LEAST or input.shape[1] < _CHANNELS or 4 * input[0].numel() > _CACHED
    stride = kernel_size if stride is None or (isinstance(stride, (tuple, list)) and not stride) else stride
    sides = [_pair(given) for given in (kernel_size, stride, padding, dilation)]
    if (
        return_indices
        or small
        or None in sides
        or _transformed()
        or not input.is_contiguous()
        or input.is_contiguous(memory_format=torch.channels_last)
    ):
        return None
    return _MaxPool.apply(input, (*sides, ceil_mode))[0]  # type: ignore[no-any-return, no-untyped-call]


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, options: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        at_once = max(1, _CACHED // (4 * x[0].numel()))
        parts = [
            torch.ops.aten.max_pool2d_with_indices(part.contiguous(memory_format=torch.channels_last), *options)
            for part in x.split(at_once)  # type: ignore[no-untyped-call]
        ]
        values, indices = ([each.contiguous() for each in kind] for kind in zip(*parts, strict=True))
        return (values[0], indices[0]) if len(parts) == 1 else (torch.cat(values), torch.cat(indices))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        # As PyTorch's own does, which activation checkpointing may run in its place to get these back.
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:
        x, indices = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, *ctx.options, indices), None


def _pair(given: Any) -> list[int] | None:
    """One side or two, as two; None for what PyTorch is to look at itself."""
    sides = [given] if type(given) is int else list(given) if isinstance(given, (tuple, list)) else []
    return [sides[0], sides[-1]] if 1 <= len(sides) <= 2 and all(type(side) is int for side in sides) else None


def _transformed() -> bool:
    """Whether this runs inside `torch.func` or forward-mode differentiation, where PyTorch's own operations are needed."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
