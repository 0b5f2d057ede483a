"""The memory layout of tensors on a CPU, and the one in which a network runs fastest, where it does not mind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import TorchvizError

Found = TypeVar("Found")

_WEIGHTS_PER_PIXEL = 75  # each pass reorders the filters: more of them for few pixels cost more than is gained

_MIND: WeakSet[nn.Module] = WeakSet()
"""Networks that ran as usual, and not with the channels last."""


def ordinary(x: Tensor) -> bool:
    """Whether a tensor is as a CPU's own operations take it: float32 in plain memory, and no subclass's."""
    kind = x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided
    return kind and type(x) in (Tensor, nn.Parameter)


def in_fast_layout(model: nn.Module, x: Tensor, attempt: Callable[[Tensor], Found], at_once: int = 0) -> Found:
    """`attempt(x)`, for a lent model and input (B, C, H, W), with the channels last in memory where that is faster.

    Shapes are the same in any layout, and values but for rounding; a CPU's convolutions then need not reorder each map
    before and after: up to twice as fast. It is for scores: a gradient can change by a thousandth where rounding opens
    a ReLU whose input is next to zero. Networks may ask for the usual layout (`x.view(len(x), -1)` does): where the attempt
    fails, it is made once more with the input as it is, and the model remembered as one of those. It must not change
    anything that a second attempt would find changed. `at_once`: how many images pass together, where it is not all.
    """
    if model not in _MIND and _pays(model, x, at_once or len(x)):
        try:
            return attempt(x.contiguous(memory_format=torch.channels_last))
        except TorchvizError:
            raise
        except Exception:
            pass  # outside of this block, so that an error of the second attempt is told without the first
        found = attempt(x)
        _MIND.add(model)
        return found
    return attempt(x)


def _pays(model: nn.Module, x: Tensor, count: int) -> bool:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    filters = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and math.prod(module.kernel_size) > 1  # 1 x 1 is the same in both
    )
    return filters < _WEIGHTS_PER_PIXEL * count * x.shape[2] * x.shape[3]
