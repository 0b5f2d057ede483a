"""The activations of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import Lap, Run, now
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.settings import Options, Spec, plain
from benchmarks.tasks import BY_HAND, FORWARD, OURS, Case, Task

CAPTURE: Task[Setting] = Task()


@dataclass(frozen=True)
class Setting:
    """What a case is about."""

    model: nn.Module
    layer: str
    x: Tensor


def equal(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    return ours, theirs


@CAPTURE.add(FORWARD, "floor")
def forward(setting: Setting) -> Run:
    return partial(plain, setting.model, setting.x)


@CAPTURE.add(OURS, "ours")
def ours(setting: Setting) -> Run:
    return lambda: tvc.capture(setting.model, setting.x, setting.layer)[setting.layer]


@CAPTURE.peer(BY_HAND, same=equal)
def hook(setting: Setting) -> Run:
    """A forward hook that keeps the output, and the whole forward pass."""

    def run() -> Tensor:
        kept: list[Tensor] = []
        handle = setting.model.get_submodule(setting.layer).register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        with torch.no_grad():
            setting.model(setting.x)
        handle.remove()
        return kept[0]

    return run


@CAPTURE.peer("torchvision", same=equal)
def torchvision(setting: Setting) -> Run:
    """Its extractor is made once, which is not timed: it traces the network."""
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(setting.model, [setting.layer])

    def run() -> Tensor:
        with torch.no_grad():
            maps: Tensor = extractor(setting.x)[setting.layer]
        return maps

    return run


@CAPTURE.peer("torchlens", same=equal)
def torchlens(setting: Setting) -> Run:
    """It puts functions of its own in the place of PyTorch's, for the whole process: they are put back, untimed."""
    import torchlens as lens
    from torchlens.backends.torch.wrappers import unwrap_torch, wrap_torch

    def run() -> Lap:
        wrap_torch()
        start = now()
        with torch.no_grad():
            maps: Tensor = lens.pluck(setting.model, setting.x, setting.layer)
        seconds = now() - start
        unwrap_torch()
        return Lap(seconds, maps)

    return run


def cases(options: Options) -> Iterator[Case]:
    """An early and a late layer."""
    batch = options.sizes.captured
    for spec in options.specs("vgg16", "resnet50"):
        for place, layer in (("early", spec.early), ("late", spec.layer)):
            name = f"{spec.name}, {place}: {layer}, batch {batch}"
            yield Case("capture", name, partial(of_case, options, spec, layer, batch), memory=True, rounds=3)


def of_case(options: Options, spec: Spec, layer: str, batch: int) -> Iterator[Any]:
    return CAPTURE.contenders(Setting(options.network(spec), layer, options.images(batch, spec.side)))
