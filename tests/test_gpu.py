"""Every method gives on a GPU what it gives on the CPU, in every precision, and no loop waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

Method = Callable[[nn.Module, Tensor], Tensor]
GOAL = 0.5 * tvc.objectives.class_score(1) + tvc.objectives.channel("features.8", 2)

METHODS: dict[str, Method] = {
    "grad_cam": lambda model, x: tvc.grad_cam(model, x, target=1, relu=False).values,
    "grad_cam, classes": lambda model, x: tvc.grad_cam(model, x, target=classes_of(x), relu=False).values,
    "ablation_cam": lambda model, x: tvc.ablation_cam(model, x, target=classes_of(x), relu=False).values,
    "score_cam": lambda model, x: tvc.score_cam(model, x, target=classes_of(x), relu=False).values,
    "full_grad": lambda model, x: tvc.full_grad(model, x, 1).values,
    "smoothed_cam": lambda model, x: tvc.smoothed_cam(model, x, target=1, samples=1, relu=False).values,
    "saliency": lambda model, x: tvc.saliency(model, x, 1).gradients,
    "guided": lambda model, x: tvc.saliency(model, x, 1, relu="guided").gradients,
    "deconvnet of the score": lambda model, x: tvc.saliency(model, x, 1, relu="deconvnet").gradients,
    "input_x_gradient": lambda model, x: tvc.input_x_gradient(model, x, 1).gradients,
    "guided_grad_cam": lambda model, x: tvc.guided_grad_cam(model, x, "features.2", 3).gradients,
    "smooth_grad": lambda model, x: tvc.smooth_grad(model, x, 1, samples=3).gradients,
    "integrated_gradients": lambda model, x: tvc.integrated_gradients(model, x, 1, steps=4).gradients,
    "occlusion": lambda model, x: tvc.occlusion(model, x, 1, patch=16).scores,
    "deconvnet": lambda model, x: tvc.deconvnet(model, x, "features.9", 3).values,
    "capture": lambda model, x: tvc.capture(model, x, "features.9")["features.9"],
    "predict": lambda model, x: tvc.predict(model, x),
    "filter_patterns": lambda model, x: tvc.filter_patterns(model, "features.2", [0, 3], size=24, steps=2).values,
    "maximize": lambda model, x: tvc.maximize(model, GOAL, size=32, steps=2).values,
    "channel_heatmap": lambda model, x: tvc.channel_heatmap(model, x, "features.2", 3, 1, at="input").values,
    "relevance": lambda model, x: tvc.top_activations(model, x, ["features.9"], k=2, by="relevance").values[
        "features.9"
    ],
    "top_activations": lambda model, x: tvc.top_activations(model, x, ["features.9"], k=2).values["features.9"],
}


def classes_of(x: Tensor) -> Tensor:
    return torch.tensor([[1, 3]]).expand(len(x), -1)


def off(a: Tensor, b: Tensor) -> float:
    """How far two tensors are apart, as a share of the second's size."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


@pytest.fixture(autouse=True)
def exact_products() -> Any:
    """TensorFloat-32 off, as its ten bits are not what is compared here."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_gives_what_the_cpu_gives(name: str) -> None:
    method, x = METHODS[name], images(3)
    expected = method(networks.vgg_like(), x)
    model = networks.vgg_like().cuda()
    with unchanged(model, x):
        result = method(model, x)
    assert off(result, expected) < 1e-4


@pytest.mark.parametrize("name", ["grad_cam", "saliency", "guided", "deconvnet", "occlusion", "predict"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64", "autocast", "channels_last"])
def test_every_precision(name: str, kind: str) -> None:
    method, x = METHODS[name], images(3)
    expected = method(networks.vgg_like(), x)
    model = networks.vgg_like().cuda()
    if kind == "autocast":
        with torch.autocast("cuda", torch.bfloat16):
            result = method(model, x)
    elif kind == "channels_last":
        result = method(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    else:
        result = method(model.to(getattr(torch, kind)), x)
    limit = {"bfloat16": 0.5, "autocast": 0.5, "float16": 0.1}.get(kind, 1e-4)
    assert off(result, expected) < limit


@pytest.mark.parametrize("name", ["grad_cam", "saliency"])
def test_results_stay_on_the_device_until_they_are_drawn(name: str) -> None:
    assert METHODS[name](networks.vgg_like().cuda(), images(2)).is_cuda


def test_gradient_ascent_does_not_wait_for_the_device_in_its_loop() -> None:
    """Twice the steps must not mean more waits: those there are belong to the start and the end."""
    model = networks.vgg_like().cuda()

    def waits(steps: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                tvc.filter_patterns(model, "features.2", [0, 1], size=24, steps=steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message).lower() for warning in caught)

    waits(2)
    assert waits(12) <= waits(6) + 1
