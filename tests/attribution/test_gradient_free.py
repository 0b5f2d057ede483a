"""Ablation-CAM and Score-CAM: equal to their formulas written out, to other programs', and streamed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.networks import CLASSES, images
from torchviz_cnn.core.errors import EmptyMapWarning, InputError, TorchvizWarning
from torchviz_cnn.hooks.manager import HookManager

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")
METHODS: dict[str, Callable[..., tvc.Heatmap]] = {"ablation_cam": tvc.ablation_cam, "score_cam": tvc.score_cam}
PLACES: list[tuple[Callable[[], nn.Module], str]] = [
    (networks.vgg_like, "features.4"),
    (networks.vgg_like, "features.8"),
    (networks.residual, "layer2.1.bn1"),  # a shortcut leads around it
    (networks.residual, "layer2"),
    (networks.dense, "convs.1"),  # all maps so far are concatenated
    (networks.functional_relu, "conv4"),
]


def run(model: nn.Module, x: Tensor, replaced: dict[str, Tensor] | None = None) -> Array:
    """The logits (B, n), with what some layers give replaced."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out, maps=maps: maps)
        for name, maps in (replaced or {}).items()
    ]
    with torch.no_grad():
        logits = model.eval()(x.clone()).double().numpy()
    for handle in handles:
        handle.remove()
    return np.asarray(logits)


def maps_of(model: nn.Module, x: Tensor, layer: str) -> Array:
    return tvc.capture(model, x, layer)[layer].double().numpy()


def ablated(model: nn.Module, x: Tensor, layer: str, classes: list[list[int]]) -> Array:
    """Ablation-CAM written out: the whole network runs once for each channel of each image."""
    rows = []
    for image, asked in zip(x, classes, strict=True):
        (a,), (y,) = maps_of(model, image[None], layer), run(model, image[None])
        total = np.zeros((len(asked), *a.shape[1:]))
        for c in range(len(a)):
            without = a.copy()
            without[c] = 0
            (lower,) = run(model, image[None], {layer: torch.tensor(without)[None].float()})
            for k, index in enumerate(asked):
                total[k] += (y[index] - lower[index]) / y[index] * a[c]
        rows.append(total)
    return np.stack(rows)


def enlarged(values: Array, size: tuple[int, int]) -> Array:
    """A map at another size, place by place: the middle of a place lies in its middle, and the edge goes on."""
    result = np.zeros(size)
    for row, column in np.ndindex(size):
        at = [
            np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
            for i, old, new in zip((row, column), values.shape, size, strict=True)
        ]
        low = [int(np.floor(i)) for i in at]
        high = [min(i + 1, old - 1) for i, old in zip(low, values.shape, strict=True)]
        down, across = at[0] - low[0], at[1] - low[1]
        above = values[low[0], low[1]] * (1 - across) + values[low[0], high[1]] * across
        below = values[high[0], low[1]] * (1 - across) + values[high[0], high[1]] * across
        result[row, column] = above * (1 - down) + below * down
    return result


def scored(model: nn.Module, x: Tensor, layer: str, classes: list[list[int]]) -> Array:
    """Score-CAM written out, with a black image as the baseline."""
    rows = []
    for image, asked in zip(x, classes, strict=True):
        (a,) = maps_of(model, image[None], layer)
        (baseline,) = run(model, torch.zeros_like(image)[None])
        varying = [c for c in range(len(a)) if a[c].max() > a[c].min()]
        rises = np.zeros((len(asked), len(varying)))
        for place, c in enumerate(varying):
            mask = enlarged((a[c] - a[c].min()) / (a[c].max() - a[c].min()), (image.shape[1], image.shape[2]))
            (masked,) = run(model, image[None] * torch.tensor(mask).float())
            rises[:, place] = masked[asked] - baseline[asked]
        weights = np.exp(rises) / np.exp(rises).sum(1, keepdims=True)
        rows.append(np.einsum("kc,chw->khw", weights, a[varying]))
    return np.stack(rows)


WRITTEN_OUT: dict[str, Callable[..., Array]] = {"ablation_cam": ablated, "score_cam": scored}


@pytest.mark.parametrize(("build", "layer"), PLACES)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_formula_written_out(name: str, build: Callable[[], nn.Module], layer: str) -> None:
    model, x, classes = build(), images(2), [[0, 3], [4, 1]]
    expected = WRITTEN_OUT[name](model, x, layer, classes)
    heat = METHODS[name](model, x, layer, torch.tensor(classes), relu=False)
    assert np.abs(heat.values.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
    positive = METHODS[name](model, x, layer, torch.tensor(classes))
    assert torch.equal(positive.values, heat.values.relu())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("score", ["logit", "probability", "log_probability", "cross_entropy"])
def test_a_batch_and_its_parts_make_no_difference(name: str, score: str) -> None:
    model, x, classes = networks.vgg_like(), images(3), torch.tensor([[0, 1], [2, 2], [4, 3]])
    options: dict[str, Any] = {"score": score, "relu": False}
    together = METHODS[name](model, x, "features.8", classes, **options)
    in_parts = METHODS[name](model, x, "features.8", classes, batch_size=5, **options)
    torch.testing.assert_close(together.values, in_parts.values, rtol=1e-4, atol=1e-6)
    for i in range(3):
        for k in range(2):
            alone = METHODS[name](model, x[i : i + 1], "features.8", int(classes[i, k]), batch_size=1, **options)
            torch.testing.assert_close(together.values[i, k], alone.values[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_channel_that_is_the_same_everywhere_is_not_run(name: str) -> None:
    model, x = networks.vgg_like(), images(1)
    last: Any = model.features[7]
    with torch.no_grad():
        for channel in (2, 5):
            last.weight[channel] = 0
            last.bias[channel] = -1.0  # zero behind its ReLU
    sizes: list[int] = []
    model.classifier.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    heat = METHODS[name](model, x, "features.8", 1, relu=False)
    assert sizes[-1] == int((heat.activations.flatten(2).amax(2) > 0).sum()) <= 10
    expected = WRITTEN_OUT[name](model, x, "features.8", [[1]])[:, 0]
    assert np.abs(heat.values.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", METHODS)
def test_a_layer_that_is_dead_has_an_empty_map(name: str) -> None:
    model = networks.vgg_like()
    last: Any = model.features[7]
    head: Any = model.classifier[3]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(-1)
        head.bias[1] = 1
    with pytest.warns(EmptyMapWarning, match="no positive evidence for class 1"):
        heat = METHODS[name](model, images(2), "features.8", 1)
    assert not heat.values.any()


def test_what_comes_before_the_layer_runs_once_for_all_channels() -> None:
    model, sizes = networks.vgg_like(), []
    model.features[0].register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    tvc.ablation_cam(model, images(1), "features.8", 0, relu=False)
    assert sizes == [1, 1]  # once for the maps, and once for the twelve without a channel


def test_a_network_that_does_not_take_several_maps_runs_a_few_images_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, x = networks.dense(), images(1)
    layer = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and "." in name)
    expected = ablated(model, x, layer, [[2]])[:, 0]
    with caplog.at_level(logging.INFO, "torchviz_cnn"):
        heat = tvc.ablation_cam(model, x, layer, 2, relu=False)
    assert "for one image" in caplog.text
    assert np.abs(heat.values.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_running_the_whole_of_a_network_is_bounded_too() -> None:
    model, sizes = networks.dense(), []
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "." in n)
    with torch.no_grad(), HookManager(model) as hooks:
        with hooks.record(name) as acts:
            hooks.run(images(1))
        maps = acts[name].repeat(40, 1, 1, 1) * torch.arange(40)[:, None, None, None]
        layer.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
        outputs = hooks.run_from(name, maps, images(1))
        alone = torch.cat([hooks.run_from(name, one[None], images(1)) for one in maps])
    assert max(sizes) <= 16
    torch.testing.assert_close(outputs, alone, rtol=1e-4, atol=1e-5)


def test_no_more_masked_images_than_a_batch_are_there_at_once() -> None:
    """And no masks either: the largest tensor of all is a batch of images."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call,misc]
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.count = max(self.count, out.numel())
            return out

    first = nn.Conv2d(3, 64, 3, stride=16)
    model = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    x = images(2, 128)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        tvc.score_cam(model, x, "1", 0, batch_size=4, relu=False)
    assert largest.count <= 4 * x[0].numel()


def test_a_score_that_is_not_above_zero_is_said() -> None:
    model, x = networks.gap_linear(), images(1)
    negative = int(run(model, x)[0].argmin())
    with torch.no_grad():
        model.fc.bias[negative] -= 1
    with pytest.warns(
        TorchvizWarning, match=f"the score of class {negative} in image 0 is -.*shows the evidence against"
    ):
        turned = tvc.ablation_cam(model, x, target=negative, relu=False)
    expected = ablated(model, x, turned.layer, [[negative]])[:, 0]
    assert np.abs(turned.values.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
    with torch.no_grad():
        model.fc.weight[negative] = 0
        model.fc.bias[negative] = 0
    with pytest.warns(TorchvizWarning, match="is 0: .* weighted by what is lost alone"):
        nothing = tvc.ablation_cam(model, x, target=negative, relu=False)
    assert not nothing.values.any()


class Viewed(nn.Module):
    """Views its maps as rows, which it can only where they lie channel by channel in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 30 * 30, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).relu().view(len(x), -1))
        return out


def test_a_network_that_views_its_maps_gets_images_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model, x = networks.seeded(Viewed)(), images(2)
    with caplog.at_level(logging.INFO, "torchviz_cnn"):
        heat = tvc.score_cam(model, x, "conv", 2, relu=False)
    assert "channels last" in caplog.text
    expected = scored(model, x, "conv", [[2], [2]])[:, 0]
    assert np.abs(heat.values.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", METHODS)
def test_mistakes(name: str) -> None:
    with pytest.raises(InputError, match="batch_size"):
        METHODS[name](networks.vgg_like(), images(1), "features.8", batch_size=0)
    with pytest.raises(InputError, match="did you mean 'logit'"):
        METHODS[name](networks.vgg_like(), images(1), "features.8", score="logits")


@pytest.mark.parametrize("layer", ["features.4", "features.8"])
def test_score_cam_equals_torchcams(layer: str) -> None:
    """torchcam gives channels that are the same everywhere a part of the softmax, which scales the map."""
    methods = pytest.importorskip("torchcam.methods")
    model, x = networks.vgg_like(inplace=False), images(2)
    with methods.ScoreCAM(model, layer, input_shape=(3, 32, 32)) as reference:
        for i in range(2):
            with torch.no_grad():
                model(x[i : i + 1])
            (theirs,) = reference(3, normalized=False)
            ours = tvc.score_cam(model, x[i : i + 1], layer, 3).values
            assert torch.allclose(ours / ours.max(), theirs / theirs.max(), atol=1e-4)


@pytest.mark.parametrize("layer", ["features.4", "features.8"])
def test_ablation_cam_equals_grad_cams(layer: str) -> None:
    """Behind a ReLU: elsewhere grad-cam does not ablate to 0, but to -1e7, further down with each image of a batch."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = networks.vgg_like(inplace=False), images(2)
    head: Any = model.classifier[3]
    compared = 0
    for k in range(2 * CLASSES):
        k, above = k % CLASSES, k < CLASSES  # scores above 0, and below, where the sign is turned
        with torch.no_grad():
            head.bias.fill_(1 if above else -1)
        heat = tvc.ablation_cam(model, x, layer, k)
        with grad_cam.AblationCAM(model, [model.get_submodule(layer)]) as reference:
            theirs = reference(x.clone(), [targets.ClassifierOutputTarget(k)] * 2)
        for i in range(2):
            ours = heat.map(i)
            if ours.any():
                shown = cv2.resize(((ours - ours.min()) / (ours.max() - ours.min())).astype(np.float32), (32, 32))
                shown = (shown - shown.min()) / (shown.max() - shown.min())  # grad-cam scales once more
                assert np.abs(shown - theirs[i]).max() < 1e-4
                compared += 1
    assert compared > 8


def test_masks_are_torchs_own_enlargement() -> None:
    values = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(values[None, None], (9, 12), mode="bilinear", align_corners=False)[0, 0]
    assert np.abs(enlarged(values.double().numpy(), (9, 12)) - theirs.numpy()).max() < 1e-6
