"""Independent implementations on the same weights, and the real checkpoint on real photos."""

from __future__ import annotations

import os
import warnings
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

pytestmark = pytest.mark.slow
ARCHITECTURES = [
    ("vgg16", "features.29"),
    ("vgg16", "features.16"),
    ("resnet50", "layer4"),
    ("resnet50", "layer2"),
    ("densenet121", "features.denseblock4"),
    ("mobilenet_v3_small", "features"),
    ("squeezenet1_0", "features.12"),
]


def batch(count: int = 4, size: int = 128) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    return model


def assert_equal_to_captum(model: nn.Module, layer: str, x: Tensor, classes: Tensor) -> None:
    from captum.attr import LayerGradCam

    reference = LayerGradCam(model, model.get_submodule(layer)).attribute(x, target=classes, relu_attributions=False)
    ours = tvc.grad_cam(model, x, layer, classes, relu=False)
    error = (ours.values - reference[:, 0]).abs().max() / reference.abs().max()
    assert float(error) < 1e-5


@pytest.mark.parametrize(("name", "layer"), ARCHITECTURES)
def test_grad_cam_equals_captum(name: str, layer: str) -> None:
    assert_equal_to_captum(network(name), layer, batch(), torch.tensor([386, 1, 999, 0]))


def test_grad_cam_equals_captum_with_functional_relus() -> None:
    for layer in ("conv2", "conv4"):
        assert_equal_to_captum(networks.functional_relu(), layer, networks.images(4), torch.tensor([0, 1, 2, 4]))


def test_cam_equals_torchcam() -> None:
    from torchcam.methods import CAM

    model, x = network("resnet18"), batch(2)
    ours = tvc.class_activation_map(model, x, torch.tensor([386, 7]))
    with CAM(model, target_layer="layer4", fc_layer="fc") as reference:
        for i, target in enumerate((386, 7)):
            with torch.no_grad():
                model(x[i : i + 1])
            (theirs,) = reference(target, normalized=False)
            assert torch.allclose(ours.values[i], theirs[0], rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_grad_cam_equals_the_textbooks_listing_in_keras() -> None:
    """A small VGG in Keras with our network's weights; the heatmap as the textbook computes it, softmax and mean."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend")
    model = networks.vgg_like()
    inputs = keras.Input((32, 32, 3))
    layers = keras.layers
    h, convs = inputs, []
    for i, width in enumerate((8, 8, 12, 12)):
        convs.append(layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv{i}"))
        h = convs[-1](h)
        h = layers.MaxPooling2D(2, name=f"pool{i}")(h) if i % 2 else h
    h = layers.AveragePooling2D(4, name="avg")(h)
    h = layers.Permute((3, 1, 2), name="channels_first")(h)
    h = layers.Flatten(name="flatten")(h)
    dense1, dense2 = layers.Dense(16, activation="relu", name="d1"), layers.Dense(5, activation="softmax", name="d2")
    outputs = dense2(dense1(h))
    functional = keras.Model(inputs, outputs)
    torch_convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv, ours in zip(convs, torch_convs, strict=True):
        conv.set_weights([ours.weight.detach().permute(2, 3, 1, 0).numpy(), array(ours.bias)])
    torch_dense = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for dense, theirs in zip((dense1, dense2), torch_dense, strict=True):
        dense.set_weights([theirs.weight.detach().T.numpy(), array(theirs.bias)])

    x = networks.images(1)
    picture = x.permute(0, 2, 3, 1).numpy()
    assert np.allclose(keras.ops.convert_to_numpy(functional(picture)), model(x).softmax(1).detach().numpy(), atol=1e-5)
    to_last = keras.Model(inputs, functional.get_layer("conv3").output)
    rest = keras.Input(functional.get_layer("conv3").output.shape[1:])
    r = rest
    for name in ("pool3", "avg", "channels_first", "flatten", "d1", "d2"):
        r = functional.get_layer(name)(r)
    head = keras.Model(rest, r)
    last = to_last(picture).clone().detach().requires_grad_(True)
    predictions = head(last)
    (gradients,) = torch.autograd.grad(predictions[:, int(predictions[0].argmax())].sum(), last)
    pooled = gradients.mean((0, 1, 2)).cpu().numpy()
    listing = np.mean(last[0].detach().cpu().numpy() * pooled, axis=-1)
    listing = np.maximum(listing, 0)
    assert listing.max() > 0
    listing /= listing.max()
    heat = tvc.grad_cam(model, x, "features.8", score="probability")
    assert np.abs(heat.map() - listing).max() < 1e-4


def array(tensor: Tensor | None) -> np.ndarray[Any, Any]:
    assert tensor is not None
    return tensor.detach().numpy()


@pytest.fixture(scope="module")
def squeezenet(data: Path) -> tvc.Network:
    return tvc.load_model("squeezenet1_0", data / "checkpoints" / "squeezenet1_0.pth")


ELEPHANTS = [(340, 15, 525, 260), (235, 45, 410, 130), (85, 130, 295, 260)]  # left, top, right, bottom, in the photo


@pytest.mark.parametrize("method", [tvc.grad_cam, tvc.class_activation_map])
def test_the_elephant(squeezenet: tvc.Network, data: Path, method: Callable[..., tvc.Heatmap]) -> None:
    photo = tvc.read_image(data / "images" / "elephant.jpg")
    heat = method(squeezenet, photo)
    assert int(heat.target[0]) == 386 == squeezenet.class_index("African elephant")
    assert abs(float(heat.logits.softmax(1)[0, 386]) - 0.356) < 0.001
    x, y = heat.peak(photo)
    assert any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in ELEPHANTS)
    assert heat.overlay(photo).size == photo.size


def test_accuracy_of_the_real_checkpoint(squeezenet: tvc.Network, data: Path) -> None:
    """Preprocessing, weights and class order together: top-1 of 0.61 on the sample photos, as stated for them."""
    paths = sorted((data / "imagenet_samples").glob("*.jpg"))[::7]
    x = torch.stack([squeezenet.preprocess(tvc.read_image(path)) for path in paths])
    with torch.no_grad():
        top = squeezenet.model(x).argmax(1)
    right = sum(int(path.name[:3]) == int(index) for path, index in zip(paths, top, strict=True))
    assert right / len(paths) > 0.5


def test_receptive_fields_do_not_change_a_real_network(squeezenet: tvc.Network) -> None:
    before = {name: tensor.clone() for name, tensor in squeezenet.model.state_dict().items()}
    described = tvc.describe(squeezenet.model, (224, 224))
    assert described.parameters == 1_248_424
    assert all(torch.equal(before[name], tensor) for name, tensor in squeezenet.model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0", "googlenet", "shufflenet_v2_x1_0"]
)
def test_describe_runs_on_every_kind_of_network(name: str) -> None:
    model = network(name)
    described = tvc.describe(model, (224, 224))
    assert described.parameters == sum(p.numel() for p in model.parameters())
    assert len(described.layers) > 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(described).count("\n") == len(described.layers) + 2
