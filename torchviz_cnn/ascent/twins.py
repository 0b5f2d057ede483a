"""Copies of a network around its own weights: for a core of their own, in bfloat16, or with fewer channels."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchviz_cnn.core.names import named_layers
from torchviz_cnn.hooks.manager import HookManager


def twin(model: nn.Module) -> nn.Module | None:
    """A copy of a model's modules around the same parameters and buffers; None where it cannot be copied."""
    if any("forward" in vars(module) for module in model.modules()):
        return None  # put there by hand: it may run the modules of the original
    shared = [*model.parameters(), *model.buffers()]
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    except Exception:  # whatever a user's module holds that does not copy
        return None


def narrowed(model: nn.Module, lent: nn.Module, layer: str, channels: Sequence[int]) -> bool:
    """Leave a twin's convolution only the output channels asked for, where it is plain; gives whether it was.

    The layer ends the forward pass, so the others of its channels would be computed for nothing.
    """
    original = named_layers(lent).get(layer)
    if type(original) is not nn.Conv2d or original.groups > 1 or original._forward_hooks or original._forward_pre_hooks:
        return False
    if original._parameters.get("weight") is None:  # made by a parametrisation or a hook
        return False
    copy = named_layers(model)[layer]
    for name in ("weight", "bias"):
        tensor = original._parameters[name]
        if tensor is not None:
            kept = tensor.detach()[list(channels)].to(copy._parameters[name].dtype)  # type: ignore[union-attr]
            copy._parameters[name] = nn.Parameter(kept, requires_grad=False)
    return True


def output_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer gives for an input."""
    kept: list[Tensor] = []
    with HookManager(model) as hooks:
        hooks.on_forward(layer, lambda name, output: kept.append(output.clone()))
        hooks.run(x)
    return kept[0]


_LOWERED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def prepare(model: nn.Module, device: torch.device, low_precision: bool) -> None:
    """Give a twin weights as they are read at every step: in bfloat16, and on a GPU channels last."""
    kind = torch.bfloat16 if low_precision else None
    order = torch.channels_last if device.type == "cuda" else torch.preserve_format
    for module in model.modules():
        if type(module) in _LOWERED and (low_precision or order is torch.channels_last):
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    how = order if tensor.ndim == 4 else torch.preserve_format
                    made = tensor.detach().to(dtype=kind or tensor.dtype, memory_format=how)
                    module._parameters[name] = nn.Parameter(made, requires_grad=False)


def made_for_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)
