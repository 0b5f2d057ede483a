"""The saliency family and the deconvnet beside captum, Keras and explicit constructions, on full-size networks."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.deconv.test_deconvnet import close, everywhere, explicit, strongest
from torchviz_cnn.attribution.smoothing import gaussian
from torchviz_cnn.models import zfnet

pytestmark = pytest.mark.slow
NAMES = {"vgg16": "features.29", "resnet18": "layer4", "squeezenet1_0": "features.12"}
TARGET = torch.tensor([386, 5])


def batch(count: int = 2, size: int = 128) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, str]:
    """A network, the same without in-place ReLUs, which captum's hooks do not allow, and the layer of its last maps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.get_model(request.param, weights=None).eval()
    functional = copy.deepcopy(model)
    for module in functional.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model, functional, NAMES[request.param]


def assert_equal(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == reference.shape
    assert reference.any()
    assert float((ours - reference).abs().max() / reference.abs().max()) < tolerance


Reference = Callable[[nn.Module, Tensor, str], Tensor]


def _captum(name: str, **options: Any) -> Reference:
    def reference(functional: nn.Module, x: Tensor, layer: str) -> Tensor:
        import captum.attr

        extra = [functional.get_submodule(layer)] if name == "GuidedGradCam" else []
        result: Tensor = getattr(captum.attr, name)(functional, *extra).attribute(x, target=TARGET, **options)
        return result.detach()

    return reference


CASES: dict[str, tuple[Callable[[nn.Module, Tensor, str], tvc.Saliency], Reference]] = {
    "saliency": (lambda m, x, _: tvc.saliency(m, x, TARGET), _captum("Saliency", abs=False)),
    "guided": (lambda m, x, _: tvc.saliency(m, x, TARGET, relu="guided"), _captum("GuidedBackprop")),
    "deconvnet": (lambda m, x, _: tvc.saliency(m, x, TARGET, relu="deconvnet"), _captum("Deconvolution")),
    "input x gradient": (lambda m, x, _: tvc.input_x_gradient(m, x, TARGET), _captum("InputXGradient")),
    "guided Grad-CAM": (
        lambda m, x, layer: tvc.guided_grad_cam(m, x, layer, TARGET, interpolation="nearest"),
        _captum("GuidedGradCam"),
    ),
    "integrated gradients": (
        lambda m, x, _: tvc.integrated_gradients(m, x, TARGET, steps=5),
        _captum("IntegratedGradients", n_steps=5),
    ),
}


@pytest.mark.filterwarnings(
    "ignore::torchviz_cnn.core.errors.EmptyMapWarning"
)  # SqueezeNet ends in a ReLU, shut for some
@pytest.mark.parametrize("case", CASES)
def test_equals_captum(pair: tuple[nn.Module, nn.Module, str], case: str) -> None:
    model, functional, layer = pair
    ours, reference = CASES[case]
    assert_equal(ours(model, batch(), layer).gradients, reference(functional, batch(), layer))


def test_smooth_grad_equals_captum_on_the_same_noise(pair: tuple[nn.Module, nn.Module, str]) -> None:
    from captum.attr import Saliency

    model, functional, layer = pair
    x = batch(size=96 if layer == NAMES["vgg16"] else 224)
    noisy = [torch.stack([one + 0.15 * (one.max() - one.min()) * n for one in x]) for n in gaussian(0, 4, x[0])]
    each = torch.stack([Saliency(functional).attribute(n, target=TARGET, abs=False) for n in noisy]).detach()
    assert_equal(tvc.smooth_grad(model, x, TARGET, samples=4).gradients, each.mean(0))
    variance = tvc.smooth_grad(model, x, TARGET, samples=4, statistic="variance").gradients
    assert_equal(variance, each.var(0, unbiased=False), 1e-4)


def test_occlusion_equals_captum(pair: tuple[nn.Module, nn.Module, str]) -> None:
    from captum.attr import Occlusion

    model, functional, layer = pair
    size, patch, stride = (96, 24, 18) if layer == NAMES["vgg16"] else (128, 32, 24)
    x = batch(size=size)
    target = model(x).argmax(1)  # SqueezeNet's class is 0 where its ReLU is shut, under every patch
    reference = Occlusion(functional).attribute(
        x, target=target, sliding_window_shapes=(3, patch, patch), strides=(3, stride, stride), baselines=0.5
    )
    ours = tvc.occlusion(model, x, target, patch=patch, stride=stride, fill=0.5)
    # a drop is the small difference of large scores
    assert_equal(ours.values, reference[:, 0], 1e-3)


@pytest.mark.parametrize("layer", ["features.4", "features.16", "features.28", "features.30"])
@pytest.mark.parametrize("unit", ["strongest", "all"])
def test_deconvnet_of_vgg16_equals_the_explicit_construction(unit: Any, layer: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.vgg16(weights=None).eval()
    layers = list(model.features)[: int(layer.partition(".")[2]) + 1]
    keep = strongest(12) if unit == "strongest" else everywhere(12)
    x = batch(1)
    ours = tvc.deconvnet(model, x, layer, 12, unit=unit).values
    assert close(ours, explicit(layers, x, keep, adding=False))
    assert close(ours, explicit(layers, x, keep, adding=True))


def test_deconvnet_of_alexnet_adds_where_pools_overlap() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.alexnet(weights=None).eval()
    layers, x = list(model.features)[:11], batch(1)
    ours = tvc.deconvnet(model, x, "features.10", 7, unit="all").values
    adding, overwriting = (explicit(layers, x, everywhere(7), adding=way) for way in (True, False))
    assert close(ours, adding)
    assert not close(ours, overwriting)


def test_alexnet_beside_zfnet() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = {"AlexNet": torchvision.models.alexnet(weights=None), "ZFNet": zfnet()}
    result = tvc.compare({name: (model, batch(1)) for name, model in pair.items()}, k=2)
    assert [len(p.layers) for p in result.projections.values()] == [10, 10]
    assert all(p.values.flatten(2).any(2).all() for p in result.projections.values())
    assert len(result.filters["AlexNet"].filters) == 64
    assert len(result.filters["ZFNet"].filters) == 96


@pytest.mark.parametrize("efficient", [False, True])
def test_densenet121(efficient: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.densenet121(weights=None, memory_efficient=efficient).eval()
    from captum.attr import GuidedBackprop

    class Modules(nn.Module):
        """The function that DenseNet ends in, as a module, for captum to see."""

        def __init__(self) -> None:
            super().__init__()
            self.features, self.relu, self.classifier = copy.deepcopy(model.features), nn.ReLU(), model.classifier

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.classifier(self.relu(self.features(x)).mean((2, 3)))
            return out

    functional = Modules()
    for module in functional.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if hasattr(module, "memory_efficient"):
            module.memory_efficient = False  # type: ignore[assignment]
    x = batch(1, 96)
    reference = GuidedBackprop(functional).attribute(x, target=5).detach()
    assert_equal(tvc.saliency(model, x, 5, relu="guided").gradients, reference)


def test_saliency_equals_the_courses_listing_in_keras() -> None:
    """Gradient of the categorical cross-entropy, absolute, summed over the channels, 0..255; on a network of Keras."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend")
    model, layers = networks.gap_linear(), keras.layers
    functional = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    weights = [p.detach() for p in model.parameters()]
    order = [w.permute(2, 3, 1, 0) if w.ndim == 4 else w.T if w.ndim == 2 else w for w in weights]
    functional.set_weights([w.numpy() for w in order])
    x = networks.images(1)
    picture = x.permute(0, 2, 3, 1).contiguous().requires_grad_()
    label = keras.utils.to_categorical([2], 5)
    loss = keras.losses.categorical_crossentropy(keras.ops.convert_to_tensor(label), functional(picture))
    (gradient,) = torch.autograd.grad(loss.sum(), picture)
    listing = np.abs(gradient[0].detach().cpu().numpy()).sum(-1)
    listing = ((listing - listing.min()) / (listing.max() - listing.min()) * 255).astype(np.uint8)
    ours = tvc.saliency(model, x, 2, score="cross_entropy", reduce="sum")
    assert_equal(ours.gradients, gradient.permute(0, 3, 1, 2), 1e-4)
    assert np.abs(ours.grey().astype(int) - listing).max() <= 1


ELEPHANTS = [(340, 15, 525, 260), (235, 45, 410, 130), (85, 130, 295, 260)]  # left, top, right, bottom, in the photo


def test_the_elephant(data: Path) -> None:
    net = tvc.load_model("squeezenet1_0", data / "checkpoints" / "squeezenet1_0.pth")
    photo = tvc.read_image(data / "images" / "elephant.jpg")
    results = {
        "guided": tvc.saliency(net, photo, relu="guided"),
        "guided Grad-CAM": tvc.guided_grad_cam(net, photo),
        "SmoothGrad": tvc.smooth_grad(net, photo),
        "integrated gradients": tvc.integrated_gradients(net, photo),
    }
    for result in results.values():
        assert int(result.target[0]) == 386
        across, down = result.peak(photo)
        assert any(left <= across <= right and top <= down <= bottom for left, top, right, bottom in ELEPHANTS)
    error = results["integrated gradients"].completeness_error
    assert error is not None
    assert abs(float(error)) < 0.02 * float(result.logits.max())
    hidden = tvc.occlusion(net, photo, patch=40, stride=12)
    across, down = hidden.peak(photo)
    assert any(
        left - 20 <= across <= right + 20 and top - 20 <= down <= bottom + 20 for left, top, right, bottom in ELEPHANTS
    )
