"""The least that a computation takes on a device: its arithmetic and its memory traffic, over what the device reaches.

The ceilings are measured: a large product of matrices in each precision, and a large copy. What a network needs is
counted in a forward pass: PyTorch's own count of operations, and the bytes of the weights and of what each layer reads
and writes once, each layer on its own. A kernel that does several layers at once may go below that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import alternate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Ceilings:
    """What the device reached."""

    operations: dict[str, float]
    """Operations a second of a large product, by precision; `float32` as convolutions run by PyTorch's defaults."""
    bytes: float
    """Bytes a second of a large copy, read and written."""


@dataclass(frozen=True)
class Work:
    """What something cannot do without."""

    operations: float
    bytes: float

    def times(self, operations: float, bytes: float | None = None) -> Work:
        """The same so many times."""
        return Work(self.operations * operations, self.bytes * (operations if bytes is None else bytes))

    def seconds(self, ceilings: Ceilings, precision: str) -> tuple[float, str]:
        """The least time, and which of the two decides it: `arithmetic` or `memory`."""
        arithmetic, memory = self.operations / ceilings.operations[precision], self.bytes / ceilings.bytes
        return max((arithmetic, "arithmetic"), (memory, "memory"))


def ceilings(device: torch.device, tiny: bool) -> Ceilings:
    """Measure what a device reaches, each as the median of a few runs."""
    side, size = (256, 1 << 20) if tiny else (8192, 1 << 31)
    operations = {}
    for precision, dtype in PRECISIONS.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with as_convolutions():
            seconds = alternate({"product": partial(torch.matmul, a, b)}, 7, 2)["product"].median
        operations[precision] = 2 * side**3 / seconds
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = alternate({"copy": lambda: target.copy_(source)}, 7, 2)["copy"].median
    return Ceilings(operations, 2 * size / copied)


@contextlib.contextmanager
def as_convolutions() -> Iterator[None]:
    """Products of float32 matrices as convolutions run: with TensorFloat-32 where PyTorch's defaults allow it there."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class _Reached(Exception):
    """Ends a forward pass at a layer."""


def forward_work(model: nn.Module, x: Tensor, layer: str | None = None) -> tuple[Work, Work]:
    """What a forward pass of one image needs by itself, and what all images of a batch share: the weights.

    With a layer, the network up to its input and one channel of this layer, which is a convolution.
    """
    moved = shared = 0

    def note(module: nn.Module, given: Any, output: Any) -> None:
        nonlocal moved, shared
        moved += sum(_bytes(one) for one in (*given, output) if isinstance(one, Tensor))
        shared += sum(_bytes(one) for one in (*module.parameters(), *module.buffers()))

    def stop(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise _Reached(given[0])

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    last = None if layer is None else model.get_submodule(layer)
    if last is not None:
        handles.append(last.register_forward_pre_hook(stop))
    of_channel = 0.0
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x[:1])
    except _Reached as reached:
        (maps,) = reached.args
        assert isinstance(last, nn.Conv2d)
        places = maps[0, 0].numel() / (last.stride[0] * last.stride[1])
        of_channel = 2 * last.weight[0].numel() * places
        moved += _bytes(maps) + int(places) * maps.element_size()
    finally:
        for handle in handles:
            handle.remove()
    return Work(float(counter.get_total_flops()) + of_channel, moved), Work(0, shared)


def batch_work(model: nn.Module, x: Tensor) -> Work:
    """What a forward pass of a batch needs."""
    own, shared = forward_work(model, x)
    return Work(own.operations * len(x), own.bytes * len(x) + shared.bytes)


def ascent_work(model: nn.Module, x: Tensor, layer: str, count: int, steps: int) -> Work:
    """What gradient ascent on `count` channels of a layer needs: forward and back in each step, and a last forward.

    Going back reads and writes of each layer what going forward does: gradients instead of maps.
    """
    own, shared = forward_work(model, x, layer)
    return Work(own.operations * count, own.bytes * count + shared.bytes).times(2 * steps + 1)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
