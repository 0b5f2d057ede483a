"""Max-pooling that remembers where its maxima were, and unpooling that puts values back there."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError


def max_pool_with_switches(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pool maxima and tell where each was.

    Args:
        x: maps (B, C, H, W).
        kernel_size: the window, in values; one side or (height, width).
        stride: from one window to the next, by default as wide as a window.
        padding: by how many values the maps are extended on each side.
        ceil_mode: whether windows that reach over the edge count.

    Returns:
        The maxima (B, C, h, w), and their places as row * W + column, (B, C, h, w).

    Raises:
        InputError: for what is not maps, and windows that do not fit them.

    >>> import torch
    >>> x = torch.tensor([[[[0.8, 0.6, 0.5, 0.3], [0.3, 0.4, 0.9, 0.8], [0.2, 0.7, 0.8, 0.4], [0.5, 0.4, 0.6, 0.5]]]])
    >>> pooled, switches = max_pool_with_switches(x, 2)
    >>> switches[0, 0].tolist()
    [[0, 6], [9, 10]]
    """
    try:
        pooled, switches = F.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode, return_indices=True)
    except (RuntimeError, TypeError) as error:
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{what} cannot be pooled in windows of {kernel_size!r}: {error}") from error
    return pooled, switches


def unpool(pooled: Tensor, switches: Tensor, output_size: int | Sequence[int]) -> Tensor:
    """Put pooled values (..., h, w) back where the switches say, zeros elsewhere: (..., H, W) for `output_size`.

    Windows that overlap may share their maximum: their values are added there, as max-pooling's gradient does;
    `torch.nn.functional.max_unpool2d` keeps one of them. Raises InputError for what does not fit together.

    >>> import torch
    >>> x = torch.tensor([[[[0.8, 0.6, 0.5, 0.3], [0.3, 0.4, 0.9, 0.8], [0.2, 0.7, 0.8, 0.4], [0.5, 0.4, 0.6, 0.5]]]])
    >>> unpool(*max_pool_with_switches(x, 2), (4, 4))[0, 0]
    tensor([[0.8000, 0.0000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.9000, 0.0000],
            [0.0000, 0.7000, 0.8000, 0.0000],
            [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    if not isinstance(pooled, Tensor) or not isinstance(switches, Tensor):
        raise InputError("pooled values and switches are tensors, as max_pool_with_switches gives them")
    size = tuple(output_size)[-2:] if isinstance(output_size, Sequence) else output_size
    height, width = checks.sides("output_size", size, "value")
    if pooled.shape != switches.shape or pooled.ndim < 2 or switches.is_floating_point():
        shapes = f"{tuple(pooled.shape)} and switches {tuple(switches.shape)} of {switches.dtype}"
        raise InputError(f"pooled values {shapes} do not fit: one place, a whole number, belongs to each value")
    places = switches.flatten(-2).long()
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < height * width:
        raise InputError(f"switches up to {int(places.max())} do not fit an output of {height} x {width}")
    back = pooled.new_zeros(*pooled.shape[:-2], height * width)
    return back.scatter_add(-1, places, pooled.flatten(-2)).view(*pooled.shape[:-2], height, width)
