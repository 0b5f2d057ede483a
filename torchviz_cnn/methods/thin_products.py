"""Linear layers of a few images at the speed of memory: what a gradient through a VGG's or AlexNet's head spends its time on."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchviz_cnn.methods.layout import ordinary

_LARGE = 2**21
"""Weights (8 MB) that no core keeps at hand: each product reads them from memory."""
_FEW = 128
"""Rows up to which reading the weights is what a product spends its time on."""


def thin_products(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """A block in which products of a few rows with a large matrix, forward and backward, read that matrix only once.

    PyTorch's own product of a few rows can take some times as long as reading the matrix does. For
    float32 on a CPU, and networks that have such a linear layer; elsewhere the block does nothing. Values are the same
    but for rounding. It is for gradients: what a layer gives is read without.
    """
    product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    usable = product is not None and available and getattr(torch.backends.mkldnn, "enabled", True)
    if usable and any(parameter.ndim == 2 and _large(parameter) for parameter in model.parameters()):
        return _ThinProducts(product)
    return contextlib.nullcontext()


class _ThinProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, product: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._product = product

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS and not kwargs:
            *bias, rows, matrix = args
            if _thin(rows, matrix) and all(_fits(b, matrix) for b in bias):
                return self._product(rows, matrix.t(), bias[0] if bias else None, "none", [], "")
        return func(*args, **kwargs)


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def _large(matrix: Tensor) -> bool:
    return matrix.numel() >= _LARGE and ordinary(matrix)


def _thin(rows: Tensor, matrix: Tensor) -> bool:
    if not (_large(matrix) and ordinary(rows)):
        return False
    turned = matrix.t().is_contiguous()  # as a linear layer reads its weights on the way forward
    few = (1 if turned else 2) <= len(rows) <= _FEW
    return few and (turned or matrix.is_contiguous())


def _fits(bias: Tensor, matrix: Tensor) -> bool:
    return bias.shape == matrix.shape[1:] and ordinary(bias)
