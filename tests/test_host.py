"""Hard rule 1, over all of the API: after any public call the model, the input and the process are what they were."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import CLASSES, images, seeded
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS
from torchviz_cnn.attribution.metrics.images import AllImages
from torchviz_cnn.attribution.metrics.mosaics import Mosaics, disconnected, own_cell

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning"),
]

Call = Callable[[nn.Module, Tensor, str, Path], object]


def network(model: nn.Module) -> tvc.Network:
    return tvc.Network(model, tvc.Preprocess((32, 32)), tuple("abcde"))


def photo() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def hook_manager(model: nn.Module, x: Tensor, layer: str, folder: Path) -> None:
    with tvc.untouched(model) as frozen, tvc.HookManager(frozen) as hooks:
        hooks.on_forward(layer, lambda name, output: output.clamp(max=1))
        hooks.on_backward(layer, lambda name, gradient: 2 * gradient)
        leaf = x.detach().clone().requires_grad_()
        torch.autograd.grad(hooks.run(leaf, stop_early=False).sum(), leaf)
        with torch.no_grad(), hooks.record(layer) as acts:
            hooks.run(leaf)
            hooks.run_from(layer, acts[layer], x[:1])


def report(model: nn.Module, x: Tensor, layer: str, folder: Path) -> object:
    from PIL import Image

    return tvc.report(network(model), [Image.fromarray(photo())], folder / "page.html", layers=[layer], budget=0)


def mosaics(model: nn.Module, x: Tensor) -> Mosaics:
    """Mosaics of two images, whatever the model takes them for; of their own classes there are too few."""
    with suppress(tvc.InputError):
        Mosaics.of(model, x, threshold=0)
    cells = {"cells": torch.tensor([[0, 1, 1, 0]]), "classes": torch.tensor([[0, 1, 2, 3]]), "n": 2, "size": "grow"}
    counts = dict.fromkeys(("recognised", "recognised_classes", "looked_at"), 2)
    return Mosaics(images=AllImages(x, model), threshold=0, labelled=True, **cells, **counts)  # type: ignore[arg-type]


CALLS: dict[str, Call] = {
    "Watch": lambda model, x, layer, folder: tvc.Watch(model, x, folder / "watch", layer=layer, target=0).step(),
    **{
        name: partial(lambda method, model, x, layer, folder: method.function(model, x, layer, 0), method)
        for name, method in CAM_METHODS.items()
    },
    "HookManager": hook_manager,
    "ablation_cam": lambda model, x, layer, folder: tvc.ablation_cam(model, x, layer, 0),
    "channel_heatmap": lambda model, x, layer, folder: [
        tvc.channel_heatmap(model, x, layer, 0, 0, at=at) for at in ("layer", "input")
    ],
    "cam_video": lambda model, x, layer, folder: tvc.cam_video(
        network(model), [photo(), photo()], folder / "clip.avi", layer=layer, scale="clip"
    ),
    "capture": lambda model, x, layer, folder: (tvc.capture(model, x), tvc.capture(model, x, layer)),
    "class_activation_map": lambda model, x, layer, folder: tvc.class_activation_map(model, x, 0),
    "competitive_cam": lambda model, x, layer, folder: tvc.competitive_cam(model, x, layer, 0),
    "compare": lambda model, x, layer, folder: tvc.compare({"a": (model, x[:1])}, {"a": [layer]}),
    "deconvnet": lambda model, x, layer, folder: tvc.deconvnet(model, x, layer, [0, 1]),
    "describe": lambda model, x, layer, folder: (tvc.describe(model, x[:1]), tvc.describe(model, (32, 32))),
    "explain": lambda model, x, layer, folder: tvc.explain(model, x, [[0, 1], [2, 0]], layer),
    "filter_atlas": lambda model, x, layer, folder: tvc.filter_atlas(
        model, folder / "atlas", [layer], size=24, steps=1
    ),
    "filter_patterns": lambda model, x, layer, folder: tvc.filter_patterns(model, layer, [0, 1], size=24, steps=2),
    "first_filters": lambda model, x, layer, folder: tvc.first_filters(model),
    "full_grad": lambda model, x, layer, folder: tvc.full_grad(model, x, 0),
    "guided_grad_cam": lambda model, x, layer, folder: tvc.guided_grad_cam(model, x, layer, 0),
    "input_x_gradient": lambda model, x, layer, folder: tvc.input_x_gradient(model, x, 0),
    "integrated_gradients": lambda model, x, layer, folder: tvc.integrated_gradients(model, x, 0, steps=2),
    "layer_names": lambda model, x, layer, folder: tvc.layer_names(model, x),
    "maximize": lambda model, x, layer, folder: tvc.maximize(
        model, tvc.objectives.channel(layer, 0) - 0.1 * tvc.objectives.total_variation(), size=32, steps=2
    ),
    **{
        f"metrics.{name}": partial(lambda name, model, x, layer, folder: public(f"metrics.{name}")(model, x), name)
        for name in (
            *("average_drop", "deletion", "energy_in_mask", "insertion"),
            *("pointing_game", "randomization", "road", "sensitivity"),
        )
    },
    "metrics.difull": lambda model, x, layer, folder: disconnected(model, mosaics(model, x), "grad_cam", layer=layer),
    "metrics.grid_pointing_game": lambda model, x, layer, folder: own_cell(model, mosaics(model, x), "saliency"),
    "occlusion": lambda model, x, layer, folder: tvc.occlusion(model, x, 0, patch=16),
    "merge": lambda model, x, layer, folder: [
        tvc.top_activations(model, x, [layer], k=1, workers=0, out=folder / "run"),
        tvc.merge(folder / "run", dataset=x, model=model).grid(layer, 0, projection="guided"),
    ],
    "predict": lambda model, x, layer, folder: tvc.predict(model, x),
    "report": report,
    "saliency": lambda model, x, layer, folder: tvc.saliency(model, x, torch.tensor([[0, 1], [2, 0]]), relu="guided"),
    "score_cam": lambda model, x, layer, folder: tvc.score_cam(model, x, layer, 0),
    "smooth_grad": lambda model, x, layer, folder: tvc.smooth_grad(model, x, 0, samples=2),
    "smoothed_cam": lambda model, x, layer, folder: tvc.smoothed_cam(model, x, layer, samples=1),
    "survey": lambda model, x, layer, folder: tvc.survey(model, x, layer=layer, k=1, workers=0, out=folder / "survey"),
    "similar_channels": lambda model, x, layer, folder: tvc.similar_channels(model, layer, 0, by="activations", x=x),
    "top_activations": lambda model, x, layer, folder: [
        tvc.top_activations(model, x, [layer], k=1, workers=0, by=by) for by in ("activation", "relevance")
    ],
    "trust": lambda model, x, layer, folder: tvc.trust(
        model, x, methods=["grad_cam", "guided"], layers=layer, steps=2, perturbed=1, mosaics=0, out=folder / "trust"
    ),
    "untouched": lambda model, x, layer, folder: hook_manager(model, x, layer, folder),
}
"""Every public function that takes a model: a small call of it."""

CHANGES_ITS_MODEL = {"load_keras_weights", "load_model"}
"""Functions that are asked to: they load weights into it."""


@seeded
def weight_norm() -> nn.Sequential:
    """A weight that is computed from two others at every call, and kept as a plain tensor in between."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        conv = torch.nn.utils.weight_norm(nn.Conv2d(3, 6, 3, padding=1))
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm": (networks.residual, "layer1"),
    "buffers written in forward": (networks.counting, "conv"),
    "dropout in evaluation": (networks.always_dropout, "conv"),
    "weight_norm": (weight_norm, "1"),
}


IN_ALL = ("train", "input with graph", "inference_mode")
"""The states that every network is tried in; the others are tried with the first one."""
MADE_OF_OTHERS = ("report", "survey", "trust")
"""Functions that call others of these many times: they are tried in the states `IN_ALL` alone, and where the network is
not the first, in the first of these."""
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "train": nullcontext,
    "frozen": nullcontext,
    "input with graph": nullcontext,
    "input that needs a gradient": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def public(name: str) -> Callable[..., Any]:
    """A public function by its name; one of `tvc.metrics` of the gradient, with masks where it takes some."""
    function: Callable[..., Any] = getattr(tvc.metrics, name.partition(".")[2]) if "." in name else getattr(tvc, name)
    given = {"maps": "saliency", "method": "saliency", "masks": torch.arange(32).expand(2, 32, 32) < 9}
    taken = inspect.signature(function).parameters if "." in name else ()
    judged = {key: value for key, value in given.items() if key in taken}
    return partial(function, **judged) if judged else function


def host(name: str, state: str) -> tuple[nn.Module, Tensor, str]:
    """A model in the middle of its life, a batch, and the layer that is looked at."""
    build, layer = NETWORKS[name]
    model, x = build(), images(2)
    model.train(state == "train")
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(state != "frozen")
        if i % 2 and state == "train":
            parameter.grad = torch.full_like(parameter, i)
    if state.startswith("input"):
        x.requires_grad_()
    return model, x * 2 if state == "input with graph" else x, layer


def test_every_public_function_that_takes_a_model_has_a_row() -> None:
    taking = set()
    for name in tvc.__all__:
        value = getattr(tvc, name)
        if inspect.isfunction(value) or value in (tvc.HookManager, tvc.Watch):
            taking |= {name} if {"model", "net", "networks"} & set(inspect.signature(value).parameters) else set()
    for name in tvc.metrics.__all__:
        value = getattr(tvc.metrics, name)
        taking |= {f"metrics.{name}"} if "model" in inspect.signature(value).parameters else set()
    assert set(CALLS) == taking - CHANGES_ITS_MODEL


@pytest.mark.parametrize("network_name", NETWORKS)
@pytest.mark.parametrize("name", CALLS)
def test_the_host_is_what_it_was(name: str, network_name: str, tmp_path: Path) -> None:
    states = list(STATES) if network_name == "BatchNorm" else list(IN_ALL)
    if name in MADE_OF_OTHERS:
        states = list(IN_ALL) if network_name == "BatchNorm" else states[:1]
    for state in states:
        model, x, layer = host(network_name, state)
        # What a method cannot explain, as a class activation map behind dropout, it refuses without a trace too.
        refusal = nullcontext() if network_name == "BatchNorm" else suppress(tvc.TorchvizError)
        result: object = None
        with STATES[state](), unchanged(model, x), refusal:
            result = CALLS[name](model, x, layer, tmp_path / state)
        for tensor in tensors_of(result):
            assert not tensor.requires_grad
            assert not (tensor.is_floating_point() and tensor.is_inference())


def tensors_of(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        result = list(result.values())
    if is_dataclass(result):
        result = [getattr(result, part.name) for part in fields(result)]
    return [tensor for part in result for tensor in tensors_of(part)] if isinstance(result, (list, tuple)) else []


@pytest.mark.parametrize("network_name", NETWORKS)
@pytest.mark.parametrize(
    "name", [name for name in CALLS if {"x", "target"} <= set(inspect.signature(public(name)).parameters)]
)
def test_a_target_that_is_refused_leaves_no_trace(name: str, network_name: str) -> None:
    model, x, layer = host(network_name, "train")
    options: dict[str, Any] = {"layer": layer, "channel": 0} if name == "channel_heatmap" else {}
    for target in (CLASSES, torch.tensor([0, 1, 2])):
        with unchanged(model, x), pytest.raises(tvc.TargetError):
            public(name)(model, x, target=target, **options)


class Stop(Exception):
    """The user's own."""


class Judge(nn.Module):
    """A target that is a network itself, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CLASSES, 1)

    def forward(self, output: Tensor) -> Tensor:
        values: Tensor = self.linear(output)
        return values[:, 0]


def refusing(output: Tensor) -> Tensor:
    raise Stop


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CALLS
        if {"target", "targets"} & set(inspect.signature(public(name)).parameters)
        and "video" not in name
        and name not in ("Watch", "competitive_cam", "report")
    ],
)
def test_a_function_as_target_leaves_no_trace(name: str) -> None:
    for state, mode in STATES.items():
        model, x, layer = host("BatchNorm", state)
        judge, parameters = Judge(), inspect.signature(public(name)).parameters
        given: dict[str, dict[str, Any]] = {
            "channel_heatmap": {"layer": layer, "channel": 0},
            "occlusion": {"patch": 16},
            "smoothed_cam": {"samples": 1},
            "top_activations": {"by": "relevance"},
        }
        options = given.get(name, {})
        asked = "target" if "target" in parameters else "targets"
        with mode(), unchanged(model, x), unchanged(judge, x):
            result = public(name)(model, x, **{asked: judge}, **options)
        for tensor in tensors_of(result):
            assert not tensor.requires_grad
        with mode(), unchanged(model, x), pytest.raises(Stop):
            public(name)(model, x, **{asked: refusing}, **options)


def stopping(model: nn.Module, call: int) -> Iterator[int]:
    """Let a hook of the user's on the first convolution raise at its n-th call."""
    count = 0

    def raises(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise Stop

    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    handle = convolution.register_forward_hook(raises)
    yield count
    handle.remove()


RUNS_NOTHING = {"first_filters"}


@pytest.mark.parametrize("name", CALLS)
def test_an_error_of_the_users_in_the_middle_reaches_the_user_and_leaves_no_trace(name: str, tmp_path: Path) -> None:
    for network_name in ("BatchNorm", "buffers written in forward"):
        stopped = 0
        for call in (1, 2, 3, 5):
            model, x, layer = host(network_name, "train")
            for _ in stopping(model, call):
                with unchanged(model, x), suppress(tvc.TorchvizError):
                    try:
                        CALLS[name](model, x, layer, tmp_path / f"{network_name} {call}")
                    except Stop:
                        stopped += 1
        assert bool(stopped) == (name not in RUNS_NOTHING)
