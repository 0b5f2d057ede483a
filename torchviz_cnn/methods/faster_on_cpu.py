"""What makes a gradient through a network faster on a CPU, and changes nothing about it but rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from torchviz_cnn.hooks import HookManager
from torchviz_cnn.methods.blocked_maps import blocked_maps
from torchviz_cnn.methods.max_pooling import FastMaxPooling
from torchviz_cnn.methods.thin_products import thin_products


@contextmanager
def faster_on_cpu(model: nn.Module, hooks: HookManager, x: Tensor) -> Iterator[None]:
    """A block for one run of a lent model on images (B, C, H, W), forward and backward. Does nothing on other devices."""
    if x.device.type != "cpu":
        yield
        return
    with FastMaxPooling(), blocked_maps(model, hooks, x), thin_products(model):
        yield
