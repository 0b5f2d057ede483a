"""What filters respond to: the time of one step up for one filter, at three depths."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import Lap, Run, now
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchviz_cnn as tvc
from benchmarks.settings import Options, Spec
from benchmarks.tasks import BY_HAND, OURS, Case, Task

PATTERNS: Task[Setting] = Task()
BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass(frozen=True)
class Setting:
    """What a case is about."""

    model: nn.Module
    layer: str
    filters: int
    looped: int
    steps: int
    side: int

    @property
    def ours(self) -> float:
        """Filter steps of a call."""
        return self.filters * self.steps

    @property
    def loop(self) -> float:
        """Filter steps of a loop by hand."""
        return self.looped * self.steps


@PATTERNS.add(OURS, "ours", units=lambda setting: setting.ours)
def ours(setting: Setting) -> Run:
    """The whole call for all filters, with all that it sets up."""
    return lambda: tvc.filter_patterns(
        setting.model, setting.layer, range(setting.filters), size=setting.side, steps=setting.steps
    )


if BFLOAT16:

    @PATTERNS.add(f"{OURS}, bfloat16", "ours", units=lambda setting: setting.ours)
    def half(setting: Setting) -> Run:
        return lambda: tvc.filter_patterns(
            setting.model,
            setting.layer,
            range(setting.filters),
            size=setting.side,
            steps=setting.steps,
            precision="bfloat16",
        )


@PATTERNS.peer(BY_HAND, units=lambda setting: setting.loop)
def one_by_one(setting: Setting) -> Run:
    """The network cut off behind the layer, frozen, channels last; one filter after the other."""
    return partial(loop, cut(setting), setting, 1)


@PATTERNS.add(f"{BY_HAND}, batched", "peer", units=lambda setting: setting.loop)
def at_once(setting: Setting) -> Run:
    """The same with a few filters at once."""
    return partial(loop, cut(setting), setting, setting.looped)


@PATTERNS.peer("torch-lucent")
def lucent(setting: Setting) -> Run:
    """Two filters, without the first step, which sets up; it is kept from enlarging the image to 224 pixels."""
    return partial(of_lucent, copy.deepcopy(setting.model), setting, setting.side)


@PATTERNS.add("torch-lucent, as it comes", "peer")
def lucent_enlarged(setting: Setting) -> Run:
    """It enlarges an image below 224 pixels."""
    return partial(of_lucent, copy.deepcopy(setting.model), setting, None)


def loop(part: nn.Module, setting: Setting, batch: int) -> None:
    """Gradient ascent as one would write it."""
    for first in range(0, setting.looped, batch):
        count = min(batch, setting.looped - first)
        rows, channels = torch.arange(count), torch.arange(first, first + count)
        x = torch.empty(count, 3, setting.side, setting.side).uniform_(-0.5, 0.5)
        x = x.to(next(part.parameters()).device, memory_format=torch.channels_last)
        for _ in range(setting.steps):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(part(x)[rows, channels, 2:-2, 2:-2].mean((1, 2)).sum(), x)
            x = (x + 10 * gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-8).view(-1, 1, 1, 1)).detach()


class Clocked(torch.optim.Adam):
    """lucent's optimizer, with the time at which each step ended."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, lr=5e-2)
        self.ends: list[float] = []

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss: float | None = super().step(closure)  # type: ignore[arg-type]
        self.ends.append(now())
        return loss


def of_lucent(model: nn.Module, setting: Setting, inside: int | None) -> Lap:
    """The median of a few steps of two filters."""
    from lucent.optvis import param, render

    times: list[float] = []
    for index in range(2):
        made: list[Clocked] = []

        def clocked(params: list[Tensor], made: list[Clocked] = made) -> Clocked:
            made.append(Clocked(params))
            return made[-1]

        render.render_vis(
            model,
            f"{setting.layer.replace('.', '_')}:{index}",
            lambda: param.image(setting.side, fft=False, decorrelate=False),
            clocked,
            transforms=[],
            thresholds=(3,),
            progress=False,
            show_image=False,
            fixed_image_size=inside,
        )
        times += [b - a for a, b in zip(made[0].ends, made[0].ends[1:], strict=False)]
        for module in model.modules():  # it leaves its hooks behind, which would slow it down
            module._forward_hooks.clear()
    return Lap(statistics.median(times))


def cut(setting: Setting) -> nn.Module:
    """The network up to the layer, as one would cut it off by hand."""
    features: Any = setting.model.get_submodule("features")
    part: nn.Module = copy.deepcopy(features[: int(setting.layer.rpartition(".")[2]) + 1])
    return part.requires_grad_(False).to(memory_format=torch.channels_last)


def operations(setting: Setting) -> float:
    """What a step of a filter cannot do without: forward and back to the image, one filter in the last convolution."""
    part: Any = cut(setting)
    last = part[-1]
    last.weight = nn.Parameter(last.weight[:1], requires_grad=False)
    last.bias = nn.Parameter(last.bias[:1], requires_grad=False)
    x = torch.zeros(1, 3, setting.side, setting.side, device=last.weight.device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(part(x.clone()).mean(), x)  # the counter wants no leaf
    return float(counter.get_total_flops())


def setting_of(options: Options, spec: Spec, layer: str) -> Setting:
    """The setting of a layer."""
    sizes = options.sizes
    return Setting(options.network(spec), layer, sizes.filters, sizes.looped, sizes.ascent, sizes.image)


def cases(options: Options) -> Iterator[Case]:
    """Three depths of VGG16."""
    (spec,) = options.specs("vgg16")
    for layer in spec.depths:
        yield Case(
            "filters", f"{spec.name} at {layer}", partial(of_case, options, spec, layer), "filter step", rounds=2
        )


def of_case(options: Options, spec: Spec, layer: str) -> Iterator[Any]:
    return PATTERNS.contenders(setting_of(options, spec, layer))
