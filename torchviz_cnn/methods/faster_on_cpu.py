"""What makes a gradient through a network faster on a CPU, and changes nothing about it but rounding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torchviz_cnn.hooks import HookManager
from torchviz_cnn.methods.blocked_maps import blocked_maps
from torchviz_cnn.methods.max_pooling import FastMaxPooling
from torchviz_cnn.methods.thin_products import thin_products


@contextmanager
def faster_on_cpu(model: nn.Module, hooks: HookManager, x: Tensor, *, chains: bool = True) -> Iterator[None]:
    """A block for one run of a lent model on images (B, C, H, W), forward and backward. Does nothing on other devices, nor
    where the caller has modes or hooks of PyTorch's on, which are to see the operations as they are.
    Without `chains` no `blocked_maps`: hooks of ours would meet them, and gradients of several classes at once do not stay
    in blocks."""
    if x.device.type != "cpu" or _watched():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(FastMaxPooling())
        if chains:
            stack.enter_context(blocked_maps(model, hooks, x))
        stack.enter_context(thin_products(model))
        moded = bool(_get_current_dispatch_mode_stack())  # type: ignore[no-untyped-call]
        if moded and "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            # Compiled functions of the model's do not run under such modes.
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # type: ignore[no-untyped-call]
        yield


def _watched() -> bool:
    saving = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_tracing: None)(True)
    modes = torch._C._len_torch_function_stack() or _get_current_dispatch_mode_stack()  # type: ignore[no-untyped-call]
    return bool(modes) or saving is not None
