"""Every method gives on a GPU what it gives on the CPU, in every precision, and no loop waits for the device."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.ascent.recipes import normalized
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

Method = Callable[[nn.Module, Tensor], Tensor]
GOAL = 0.5 * tvc.objectives.class_score(1) + tvc.objectives.channel("features.8", 2)
LAST = "features.9"


def of_cam(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """The maps of one of `CAM_METHODS`."""
    maps: Tensor = getattr(tvc, name)(model, x, target=1, relu=False).values
    return maps


METHODS: dict[str, Method] = {
    **{name: partial(of_cam, name) for name in CAM_METHODS},
    "grad_cam, classes": lambda model, x: tvc.grad_cam(model, x, target=classes_of(x), relu=False).values,
    "grad_cam, probability": lambda model, x: tvc.grad_cam(model, x, target=1, score="probability", relu=False).values,
    "competitive_cam": lambda model, x: tvc.competitive_cam(model, x).values,
    "class_activation_map": lambda model, x: tvc.class_activation_map(model, x, target=4).values,
    "ablation_cam": lambda model, x: tvc.ablation_cam(model, x, target=classes_of(x), relu=False).values,
    "score_cam": lambda model, x: tvc.score_cam(model, x, target=classes_of(x), relu=False).values,
    "full_grad": lambda model, x: tvc.full_grad(model, x, 1).values,
    "smoothed_cam": lambda model, x: tvc.smoothed_cam(model, x, target=1, samples=1, relu=False).values,
    "explain": lambda model, x: of_maps(tvc.explain(model, x, [[1, 3]] * len(x), ["features.2", LAST], relu=False)),
    "join_heatmaps": lambda model, x: (
        tvc.join_heatmaps(tvc.explain(model, x, 1, ["features.2", LAST], ["grad_cam", "hires_cam"], relu=False)).values
    ),
    "saliency": lambda model, x: tvc.saliency(model, x, 1).gradients,
    "saliency, guided": lambda model, x: tvc.saliency(model, x, 1, relu="guided").gradients,
    "saliency, deconvnet": lambda model, x: tvc.saliency(model, x, 1, relu="deconvnet").gradients,
    "input_x_gradient": lambda model, x: tvc.input_x_gradient(model, x, 1).gradients,
    "guided_grad_cam": lambda model, x: tvc.guided_grad_cam(model, x, "features.2", 3).gradients,
    "smooth_grad": lambda model, x: tvc.smooth_grad(model, x, 1, samples=3).gradients,
    "integrated_gradients": lambda model, x: tvc.integrated_gradients(model, x, 1, steps=4).gradients,
    "occlusion": lambda model, x: tvc.occlusion(model, x, 1, patch=16).scores,
    "deconvnet": lambda model, x: tvc.deconvnet(model, x, LAST, 3).values,
    "compare": lambda model, x: tvc.compare({"a": (model, x[:1]), "b": (model, x[1:2])}).projections["b"].values,
    "first_filters": lambda model, x: tvc.first_filters(model).filters,
    "max_pool_with_switches": lambda model, x: torch.stack(tvc.max_pool_with_switches(on(model, x), 3, 2)),
    "unpool": lambda model, x: tvc.unpool(*tvc.max_pool_with_switches(on(model, x), 2), x.shape[2:]),
    "capture": lambda model, x: tvc.capture(model, x, LAST)[LAST],
    "similar_channels": lambda model, x: numbers(tvc.similar_channels(model, "features.7", 2, 4).cosines),
    "similar_channels, activations": lambda model, x: numbers(
        tvc.similar_channels(model, "features.7", 2, 4, by="activations", x=x).cosines
    ),
    "predict": lambda model, x: tvc.predict(model, x),
    "filter_patterns": lambda model, x: tvc.filter_patterns(model, "features.2", [0, 3], size=24, steps=2).values,
    "filter_patterns, clean": lambda model, x: (
        tvc.filter_patterns(model, "features.2", [0, 3], size=24, steps=2, quality="clean").values
    ),
    "filter_atlas": lambda model, x: in_folder(
        lambda folder: tvc.filter_atlas(model, folder, "features.2", 3, size=24, steps=2).patterns("features.2").values
    ),
    "maximize": lambda model, x: tvc.maximize(model, GOAL, size=32, steps=2).values,
    "channel_heatmap": lambda model, x: tvc.channel_heatmap(model, x, "features.2", 3, 1, at="input").values,
    "top_activations": lambda model, x: tvc.top_activations(model, x, [LAST], k=2).values[LAST],
    "top_activations, statistics": lambda model, x: tvc.top_activations(model, x, [LAST]).statistics[LAST].mean,
    "top_activations, exact": lambda model, x: tvc.top_activations(model, x, [LAST], k=2, exact=True).values[LAST],
    "top_activations, relevance": lambda model, x: tvc.top_activations(model, x, [LAST], k=2, by="relevance").values[
        LAST
    ],
    "metrics.insertion": lambda model, x: measured(tvc.metrics.insertion, model, x, steps=4),
    "metrics.deletion": lambda model, x: measured(tvc.metrics.deletion, model, x, steps=4),
    "metrics.average_drop": lambda model, x: measured(tvc.metrics.average_drop, model, x, target=4),
    "metrics.road": lambda model, x: measured(tvc.metrics.road, model, x),
    "survey": lambda model, x: torch.as_tensor(tvc.survey(model, x, k=1, workers=0).confidence),
}
"""What is compared, by the name of the public function and, after a comma, of what it is asked for."""

NOT_COMPARED = {
    "cam_video": "writes a clip of Grad-CAM: it runs in test_pages_and_clips_are_made_on_a_gpu",
    "describe": "says shapes and sizes: it runs in test_pages_and_clips_are_made_on_a_gpu",
    "report": "writes a page of the methods above: it runs in test_pages_and_clips_are_made_on_a_gpu",
    "trust": "measures the methods above by the metrics above: it runs in test_pages_and_clips_are_made_on_a_gpu",
    "merge": "adds up results that are on the CPU",
    "relu_rule": "is what saliency's option relu is made of",
    "untouched": "computes nothing; test_a_gpu_gives_what_the_cpu_gives holds that the model comes back as it was",
    "layer_names": "lists names",
    "model_names": "lists names",
    "load_model": "reads files; its option device is tested in tests/models",
    "load_keras_weights": "reads files",
    "panel": "draws",
    "read_image": "reads files",
    "metrics.Mosaics": "is a result",
    "metrics.difull": "compares the methods above with positions in a mosaic",
    "metrics.energy_in_mask": "compares maps with masks; runs no network",
    "metrics.grid_pointing_game": "compares the methods above with positions in a mosaic",
    "metrics.pointing_game": "compares maps with masks; runs no network",
    "metrics.randomization": "compares the methods above with those of random weights",
    "metrics.sensitivity": "compares the methods above with those of noisy photos",
}
"""Public functions that are not in the table, and why."""

BUILT = {"class_activation_map": networks.gap_linear, "competitive_cam": networks.residual}
"""The networks that methods are tried on, where not `networks.vgg_like`."""


def classes_of(x: Tensor) -> Tensor:
    return torch.tensor([[1, 3]]).expand(len(x), -1)


def of_maps(maps: tvc.Explanation) -> Tensor:
    return torch.cat([heat.values.flatten() for heat in maps.values()])


def numbers(values: Any) -> Tensor:
    return torch.as_tensor(values)


def on(model: nn.Module, x: Tensor) -> Tensor:
    """A batch on the model's device, for functions that take no model."""
    return x.to(next(model.parameters()).device)


def measured(metric: Callable[..., Any], model: nn.Module, x: Tensor, target: int = 1, **options: Any) -> Tensor:
    """What a metric says of the same maps on every device."""
    maps = images(len(x), seed=5).abs().mean(1)
    return torch.as_tensor(metric(model, x, maps, target, **options).values)


def in_folder(run: Callable[[Path], Tensor]) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder))


def built(name: str) -> nn.Module:
    return BUILT.get(name.partition(",")[0], networks.vgg_like)()


def off(a: Tensor, b: Tensor) -> float:
    """How far two tensors are apart, as a share of the second's size."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def mostly_off(a: Tensor, b: Tensor) -> float:
    """The same without the tenth of the values that are furthest apart.

    Where two values of a max-pooling's window are nearly equal, or a ReLU's is nearly zero, rounding decides where the
    gradient goes.
    """
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    apart = (a - b).abs().flatten().sort().values
    return float(apart[: len(apart) - len(apart) // 10].norm() / b.norm().clamp(min=1e-12))


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """TensorFloat-32 off, as its ten bits are not what is compared here."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_the_table_has_every_public_function_or_says_why_not() -> None:
    public = {name for name in tvc.__all__ if inspect.isfunction(getattr(tvc, name))}
    public |= {f"metrics.{name}" for name in tvc.metrics.__all__}
    compared = {name.partition(",")[0] for name in METHODS}
    assert compared | set(NOT_COMPARED) == public
    assert not compared & set(NOT_COMPARED)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_compared_is_not_nothing(name: str) -> None:
    """On the CPU: two runs are the same, and their numbers are not all zero."""
    method, x = METHODS[name], images(3)
    one, other = (method(built(name), x) for _ in range(2))
    assert off(one, other) == 0
    assert float(one.double().abs().max()) > 0


@gpu
@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_gives_what_the_cpu_gives(name: str) -> None:
    method, x = METHODS[name], images(3)
    expected = method(built(name), x)
    model = built(name).cuda()
    with unchanged(model, x):
        result = method(model, x)
    assert off(result, expected) < 1e-4


IN_LOW_PRECISION = (
    *("grad_cam", "layer_cam", "competitive_cam", "saliency", "saliency, guided", "deconvnet", "occlusion"),
    *("predict", "capture", "top_activations"),
)


def loud(name: str) -> nn.Module:
    """A network with gradients of usual sizes; those of small random ones lie below what float16 holds in full."""
    model = built(name)
    if name not in ("predict", "capture", "occlusion", "top_activations"):
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.data *= 1024
    return model


def converted(model: nn.Module, kind: str) -> nn.Module:
    """A model in a precision; with `autocast` it stays as it is."""
    return model if kind == "autocast" else model.to(getattr(torch, kind))


def result_of(name: str, model: nn.Module, x: Tensor, kind: str) -> Tensor:
    """What a method gives of a model in a precision, or of one in float32 in a block of autocast to bfloat16."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=kind == "autocast"):
        return METHODS[name](converted(model, kind), x)


@gpu
@needs_gpu
@pytest.mark.parametrize("name", IN_LOW_PRECISION)
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_low_precision_costs_no_more_on_a_gpu_than_its_rounding(name: str, kind: str) -> None:
    """Beside the CPU in float64, the GPU is off by at most four times what the CPU is in the same precision."""
    x = images(3)
    exact = METHODS[name](loud(name).double(), x.double())
    rounding = mostly_off(result_of(name, loud(name), x, kind), exact)
    smallest = torch.finfo(torch.float16 if kind == "float16" else torch.bfloat16).eps
    assert mostly_off(result_of(name, loud(name).cuda(), x, kind), exact) < 4 * max(rounding, smallest)


@gpu
@needs_gpu
@pytest.mark.parametrize("name", IN_LOW_PRECISION)
def test_float64_is_exact_on_a_gpu_too(name: str) -> None:
    x = images(3).double()
    expected = METHODS[name](built(name).double(), x)
    assert off(METHODS[name](built(name).double().cuda(), x), expected) < 1e-6  # maps are float32


@gpu
@needs_gpu
@pytest.mark.parametrize("name", [*IN_LOW_PRECISION, "filter_patterns", "integrated_gradients"])
def test_channels_last_gives_the_same(name: str) -> None:
    x = images(3)
    expected = METHODS[name](built(name), x)
    model = built(name).cuda().to(memory_format=torch.channels_last)
    assert off(METHODS[name](model, x.contiguous(memory_format=torch.channels_last)), expected) < 1e-4


@gpu
@needs_gpu
def test_patterns_in_bfloat16_are_near_those_in_float32() -> None:
    """After one step, the direction of which is what bfloat16 rounds."""
    model = networks.vgg_like().cuda()
    one, other = (
        tvc.filter_patterns(model, "features.2", range(8), size=32, steps=1, precision=kind).values.flatten(1)
        for kind in ("float32", "bfloat16")
    )
    assert float(torch.cosine_similarity(one, other).min()) > 0.99


@gpu
@needs_gpu
@pytest.mark.parametrize("name", ["grad_cam", "saliency", "deconvnet", "capture", "predict"])
def test_results_stay_on_the_device_until_they_are_drawn(name: str) -> None:
    assert METHODS[name](networks.vgg_like().cuda(), images(2)).is_cuda


@gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore")
def test_pages_and_clips_are_made_on_a_gpu(tmp_path: Path) -> None:
    model = networks.vgg_like().cuda()
    net = tvc.Network(model, tvc.Preprocess((32, 32), resize=32), None, "tiny", "random")
    noise = np.random.default_rng(0)
    frames = [noise.integers(0, 255, (40, 48, 3), dtype=np.uint8) for _ in range(5)]
    photos = [Image.fromarray(frame) for frame in frames]
    tvc.report(net, photos[:2], tmp_path / "report" / "index.html", k=3, budget=5)
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert tvc.cam_video(net, frames, tmp_path / "clip.avi", target=1, fps=5).frames == 5
    rows = {row.method for row in tvc.trust(net, photos, methods=["grad_cam", "saliency"], steps=2, mosaics=4).rows}
    assert {"grad_cam", "saliency"} <= rows
    assert "features.7" in str(tvc.describe(model, (32, 32)))
    watch = tvc.Watch(model, images(2), tmp_path / "watch", every=1, target=1)
    assert watch.step()
    assert next(model.parameters()).is_cuda


@contextmanager
def no_waiting() -> Iterator[None]:
    """An error where something waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(run: Callable[[], object]) -> int:
    """How many times a call waits for the device, once it has run before."""
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message).lower() for warning in caught)


@gpu
@needs_gpu
@pytest.mark.parametrize("quality", ["textbook", "clean"])
def test_gradient_ascent_does_not_wait_for_the_device_in_its_loop(quality: Any, monkeypatch: Any) -> None:
    """From the first step that the loop takes to the last, all in between is an error that waits."""
    model, steps, taken = networks.vgg_like().cuda(), 6, []

    def watched(*args: Any) -> Tensor:
        taken.append(1)
        if len(taken) == 1:
            torch.cuda.set_sync_debug_mode("error")
        if len(taken) == steps:
            torch.cuda.set_sync_debug_mode("default")
        return normalized(*args)

    monkeypatch.setattr("torchviz_cnn.ascent.loop.normalized", watched)
    try:
        tvc.filter_patterns(model, "features.2", range(4), size=24, steps=steps, quality=quality)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(taken) == steps


@gpu
@needs_gpu
@pytest.mark.parametrize("name", sorted(set(CAM_METHODS) - {"eigen_cam"}))  # an eigenvalue problem tells its success
def test_formulas_do_not_wait(name: str) -> None:
    activations, gradients = torch.rand(4, 8, 6, 6, device="cuda"), torch.randn(4, 3, 8, 6, 6, device="cuda")
    with no_waiting():
        maps = CAM_METHODS[name].formula(activations, gradients)
    assert maps.shape == (4, 3, 6, 6)


@gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore:no positive evidence")
@pytest.mark.parametrize("build", [networks.vgg_like, networks.dense])
@pytest.mark.parametrize(("name", "most"), [("grad_cam", 8), ("saliency", 8), ("competitive_cam", 24)])
def test_waits_do_not_grow_with_the_batch(name: str, most: int, build: Callable[[], nn.Module]) -> None:
    """Of a call a few checks wait: of the input, the output, the target and the map."""
    model, function = build().cuda(), getattr(tvc, name)
    layer = {} if name == "saliency" else {"layer": "norm" if hasattr(model, "norm") else LAST}
    few, many = (waits(partial(function, model, images(n).cuda(), target=4, **layer)) for n in (2, 16))
    assert few == many <= most


@gpu
@needs_gpu
def test_mining_waits_only_where_results_are_joined() -> None:
    """Twice the batches between two saves must not mean more waits."""
    model, x, layers = networks.vgg_like().cuda(), images(64), ["features.8", LAST]
    few, many = (
        waits(partial(tvc.top_activations, model, x[:n], layers, k=2, batch_size=8, save_every=99)) for n in (32, 64)
    )
    assert many <= few + 1
