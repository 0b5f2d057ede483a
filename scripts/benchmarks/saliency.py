"""The saliency family, guided Grad-CAM and occlusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from timing import Run
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.settings import TINY, Options, Spec, plain, without_inplace
from benchmarks.tasks import FORWARD, OURS, Case, Same, Task

CLASS = 5


@dataclass(frozen=True)
class Setting:
    """What a case is about."""

    model: nn.Module
    functional: nn.Module
    """the same without in-place ReLUs, for captum"""
    layer: str
    x: Tensor
    samples: int
    steps: int


def gradients(ours: tvc.Saliency, theirs: Tensor) -> tuple[Tensor, Tensor]:
    return ours.gradients, theirs.detach()


def drops(ours: tvc.Occlusion, theirs: Tensor) -> tuple[Tensor, Tensor]:
    return ours.values, theirs[:, 0]


def side(setting: Setting) -> tuple[int, int]:
    """Patch and stride of occlusion: 25 patches."""
    size = setting.x.shape[-1]
    return size // 4, 3 * size // 16


def captum(name: str, **options: Any) -> Callable[[Setting], Run]:
    """A method of captum's."""

    def make(setting: Setting) -> Run:
        import captum.attr

        method = getattr(captum.attr, name)(setting.functional)
        return lambda: method.attribute(setting.x, target=CLASS, **options)

    return make


def captum_guided_cam(setting: Setting) -> Run:
    from captum.attr import GuidedGradCam

    method = GuidedGradCam(setting.functional, setting.functional.get_submodule(setting.layer))
    return lambda: method.attribute(setting.x, target=CLASS)


def captum_smooth(setting: Setting) -> Run:
    from captum.attr import NoiseTunnel, Saliency

    method = NoiseTunnel(Saliency(setting.functional))
    return lambda: method.attribute(setting.x, nt_samples=setting.samples, stdevs=0.5, target=CLASS)


def captum_path(setting: Setting) -> Run:
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(setting.functional)
    return lambda: method.attribute(setting.x, target=CLASS, n_steps=setting.steps)


def captum_occlusion(setting: Setting) -> Run:
    from captum.attr import Occlusion

    (patch, stride), method = side(setting), Occlusion(setting.functional)
    options = {"sliding_window_shapes": (3, patch, patch), "strides": (3, stride, stride)}
    return lambda: method.attribute(setting.x, target=CLASS, **options)


Method = Callable[[Setting], object]
METHODS: dict[str, tuple[Method, Callable[[Setting], Run], Same | None]] = {
    "saliency": (lambda s: tvc.saliency(s.model, s.x, CLASS), captum("Saliency", abs=False), gradients),
    "input x gradient": (lambda s: tvc.input_x_gradient(s.model, s.x, CLASS), captum("InputXGradient"), gradients),
    "guided backpropagation": (
        lambda s: tvc.saliency(s.model, s.x, CLASS, relu="guided"),
        captum("GuidedBackprop"),
        gradients,
    ),
    "deconvnet of the class": (
        lambda s: tvc.saliency(s.model, s.x, CLASS, relu="deconvnet"),
        captum("Deconvolution"),
        gradients,
    ),
    "guided Grad-CAM": (
        lambda s: tvc.guided_grad_cam(s.model, s.x, s.layer, CLASS, interpolation="nearest"),
        captum_guided_cam,
        gradients,
    ),
    "SmoothGrad": (lambda s: tvc.smooth_grad(s.model, s.x, CLASS, samples=s.samples), captum_smooth, None),
    "integrated gradients": (
        lambda s: tvc.integrated_gradients(s.model, s.x, CLASS, steps=s.steps),
        captum_path,
        gradients,
    ),
    "occlusion": (
        lambda s: tvc.occlusion(s.model, s.x, CLASS, patch=side(s)[0], stride=side(s)[1]),
        captum_occlusion,
        drops,
    ),
}
"""By name: ours, captum's, and which tensors are equal. The noise of SmoothGrad is not captum's."""
TASKS: dict[str, Task[Setting]] = {}
for _name, (_ours, _theirs, _same) in METHODS.items():
    TASKS[_name] = Task()
    TASKS[_name].add(FORWARD, "floor")(lambda s: partial(plain, s.model, s.x))
    TASKS[_name].add(OURS, "ours")(lambda s, ours=_ours: partial(ours, s))  # type: ignore[misc]
    TASKS[_name].peer("captum", same=_same)(_theirs)

GRADIENTS = ["saliency", "input x gradient", "guided backpropagation", "deconvnet of the class", "guided Grad-CAM"]
ON = {
    "vgg16": ["saliency", "guided backpropagation", "guided Grad-CAM"],
    "resnet18": [*GRADIENTS, "SmoothGrad", "integrated gradients"],
    "squeezenet1_0": [*GRADIENTS, "occlusion"],
    TINY.name: list(METHODS),
}
"""What is measured on which network: those that run a network many times, on small ones."""


def cases(options: Options) -> Iterator[Case]:
    """All methods on three networks."""
    sizes = options.sizes
    extra = {"SmoothGrad": f", {sizes.samples} samples", "integrated gradients": f", {sizes.steps} steps"}
    for spec in options.specs("vgg16", "resnet18", "squeezenet1_0"):
        for name in ON[spec.name]:
            text = f"{name}{extra.get(name, '')}, {spec.name}, batch {sizes.saliency_batch}"
            yield Case("saliency", text, partial(of_case, options, spec, name), rounds=3)


def of_case(options: Options, spec: Spec, name: str) -> Iterator[Any]:
    sizes, model = options.sizes, options.network(spec)
    x = options.images(sizes.saliency_batch, spec.side)
    functional = without_inplace(model)
    return TASKS[name].contenders(Setting(model, functional, spec.layer, x, sizes.samples, sizes.steps))
