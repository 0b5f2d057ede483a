"""How far the library is from what the machine can do: operations per second beside products and a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cam, patterns
from benchmarks.settings import Options, Spec
from benchmarks.tasks import FORWARD, OURS, Case, Contender

PRODUCT, CONVOLUTION = "matrix product", "convolution"


def product(side: int, device: str, kind: torch.dtype = torch.float32) -> Contender:
    """A square matrix product: the most that PyTorch gets out of the machine."""
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    name = PRODUCT if kind is torch.float32 else f"{PRODUCT}, {str(kind)[6:]}"
    return Contender(name, "peak", lambda: a @ b, work=2.0 * side**3)


def convolution(channels: int, side: int, device: str) -> Contender:
    """A convolution as those in the middle of VGG16: the most that networks of 3 x 3 convolutions can come to."""
    layer = nn.Conv2d(channels, channels, 3, padding=1).to(device).requires_grad_(False)
    x = torch.randn(8, channels, side, side, device=device)
    work = 2.0 * 8 * side**2 * channels**2 * 9
    return Contender(CONVOLUTION, "peak", lambda: layer(x), work=work)


def operations(setting: cam.Setting) -> float:
    """Floating-point operations of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        setting.model(setting.x[:1])
    return float(counter.get_total_flops()) * len(setting.x)


def cases(options: Options) -> Iterator[Case]:
    """Forward pass and Grad-CAM of three networks, and filter patterns at a middle depth."""
    batch = min(8, max(options.sizes.batches))
    for spec in options.specs("vgg16", "resnet50", "efficientnet_lite0"):
        yield Case(
            "machine", f"grad_cam, {spec.name}, batch {batch}", partial(of_network, options, spec, batch), rounds=3
        )
    (vgg,) = options.specs("vgg16")
    layer = vgg.depths[1]
    yield Case(
        "machine", f"filter_patterns, {vgg.name} at {layer}", partial(of_patterns, options, vgg, layer), rounds=2
    )


def peaks(options: Options) -> list[Contender]:
    side, channels, pixels = (64, 8, 16) if options.quick else (2048, 256, 56)
    return [product(side, options.device), convolution(channels, pixels, options.device)]


def of_network(options: Options, spec: Spec, batch: int) -> list[Contender]:
    """Grad-CAM is counted with the operations of the forward pass alone."""
    setting = cam.Setting(options.network(spec), spec.layer, options.images(batch, spec.side), [0])
    work = operations(setting)
    return [
        *peaks(options),
        Contender(FORWARD, "floor", cam.forward(setting), work=work),
        Contender(OURS, "ours", cam.ours(setting), work=work),
    ]


def of_patterns(options: Options, spec: Spec, layer: str) -> list[Contender]:
    """Filter steps, with the operations that none can do without."""
    setting = patterns.setting_of(options, spec, layer)
    work = patterns.operations(setting)
    made = [*peaks(options), Contender(OURS, "ours", patterns.ours(setting), units=setting.ours, work=work)]
    if patterns.BFLOAT16:
        side = 64 if options.quick else 2048
        made.append(product(side, options.device, torch.bfloat16))
        made.append(Contender(f"{OURS}, bfloat16", "ours", patterns.half(setting), units=setting.ours, work=work))
    return made
