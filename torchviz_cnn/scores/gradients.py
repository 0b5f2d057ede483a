"""Gradients of several scores at once, with respect to one tensor or several."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torchviz_cnn.core.errors import ModelError

BATCHED_BYTES = 512 * 2**20
"""How much memory the gradients of the classes that go back together may take."""

_log = logging.getLogger("torchviz_cnn")


def score_gradients(
    scores: Tensor,
    inputs: Sequence[Tensor],
    keep_graph: bool = False,
    limit: int = BATCHED_BYTES,
    *,
    largest: int = 0,
) -> Iterator[list[Tensor | None]]:
    """Gradients of the columns of scores (B, K) with respect to each input, some columns at a time: (k, B, ...).

    Several columns go back through the network in one batched pass, as many as memory allows. None stands for an input
    that the scores do not depend on. `keep_graph` keeps the graph for another pass over it. `limit` is the memory that
    they may take, in bytes, and `largest` the bytes of the largest tensor between the inputs and the scores.
    """
    count = scores.shape[1]
    if not scores.requires_grad:
        yield [None] * len(inputs)
        return
    size = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in inputs))
    step = max(1, limit // max(1, 3 * size))
    one_hot = torch.eye(count, dtype=scores.dtype, device=scores.device)
    for start in range(0, count, step):
        select = one_hot[start : start + step, None].expand(-1, *scores.shape)
        yield _pass_back(scores, inputs, select, keep_graph or start + step < count)


def require_gradient(gradient: Tensor | None, model: torch.nn.Module, place: str) -> Tensor:
    """The gradient; raises ModelError, which names the place, where none came back."""
    if gradient is None:
        raise ModelError(
            f"no gradient comes back to {place} of {type(model).__name__}: the score does not depend on it, or the "
            "model detaches it or runs a part of itself under torch.no_grad()"
        )
    return gradient


def _pass_back(scores: Tensor, inputs: Sequence[Tensor], gradients: Tensor, keep_graph: bool) -> list[Tensor | None]:
    if len(gradients) > 1:
        try:
            return _batched(scores, inputs, gradients)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation of this model cannot be batched
            _log.info("classes go back one by one: %s", str(error).partition("\n")[0])
    last = len(gradients) - 1
    one_by_one = [
        torch.autograd.grad(scores, inputs, gradient, retain_graph=keep_graph or k < last, allow_unused=True)
        for k, gradient in enumerate(gradients)
    ]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*one_by_one, strict=True)]


def _batched(scores: Tensor, inputs: Sequence[Tensor], gradients: Tensor) -> list[Tensor | None]:
    """The same in one pass, of which the graph is kept.

    `torch.func.vmap` has a rule for convolutions, which `is_grads_batched` takes class by class: twice as fast.
    """
    used: list[bool] = []

    def pass_one(gradient: Tensor) -> tuple[Tensor, ...]:
        parts = torch.autograd.grad(scores, inputs, gradient, retain_graph=True, allow_unused=True)
        used[:] = [part is not None for part in parts]
        return tuple(part for part in parts if part is not None)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        parts = iter(torch.func.vmap(pass_one)(gradients))
    return [next(parts) if is_used else None for is_used in used]
