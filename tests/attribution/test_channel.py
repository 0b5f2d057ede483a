"""One channel's part in a score, at its layer and at the pixels, against plain autograd written out here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.attribution.test_any_map import CASES, CLASSES_OF_BOTH, of_plain_autograd, rand
from tests.conftest import unchanged
from torchviz_cnn.core.errors import EmptyMapWarning, InputError, LayerError, TargetError


@pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")
@pytest.mark.parametrize("case", CASES)
def test_at_the_layer_it_is_activation_times_gradient(case: str) -> None:
    one = CASES[case]
    model, x = one.build(), rand(2, *one.size)
    activations, gradients = of_plain_autograd(model, x, one.layer, one.maps, CLASSES_OF_BOTH)
    for channel in (0, activations.shape[1] - 1):
        with unchanged(model, x):
            heat = tvc.channel_heatmap(model, x, one.layer, channel, CLASSES_OF_BOTH)
        expected = activations[:, None, channel] * gradients[:, :, channel]
        torch.testing.assert_close(heat.values, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert isinstance(heat, tvc.SignedHeatmap)
        assert heat.layer == one.layer


def conditional(model: nn.Module, x: Tensor, layer: str, channel: int, target: int) -> Tensor:
    """The gradient that comes to the input through one channel of one call of a layer, times the input."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    name, _, call = layer.partition("#")
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    model.get_submodule(name).register_forward_hook(keep)
    logits = model(x)
    gave = kept[int(call or 0)]
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), gave, retain_graph=True)
    own = torch.zeros_like(gradient)
    own[:, channel] = gradient[:, channel]
    (sent,) = torch.autograd.grad(gave, x, own)
    return (sent * x).detach().sum(1)


@pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")
@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (networks.vgg_like, "features.0"),  # before an in-place ReLU
        (networks.vgg_like, "features.8"),
        (networks.functional_relu, "conv2"),
        (networks.residual, "layer1"),
        (networks.reused, "relu#1"),
        (networks.batch_norm, "1"),
    ],
)
def test_at_the_input_it_is_the_gradient_through_the_channel_alone(build: Callable[[], nn.Module], layer: str) -> None:
    model, x = build(), networks.images(3)
    channels = tvc.capture(model, x, layer)[layer].shape[1]
    total = torch.zeros(3, 32, 32)
    for channel in range(channels):
        with unchanged(model, x):
            heat = tvc.channel_heatmap(model, x, layer, channel, 2, at="input")
        expected = conditional(model, x, layer, channel, 2)
        torch.testing.assert_close(heat.values, expected, rtol=1e-4, atol=1e-6)
        assert heat.values.shape == (3, 32, 32)
        total += heat.values
    (gradient,) = torch.autograd.grad(model(x.requires_grad_())[:, 2].sum(), x)
    torch.testing.assert_close(total, (gradient * x).sum(1).detach(), rtol=1e-3, atol=1e-5)


def test_at_the_input_several_classes_and_tokens_give_what_each_gives_alone() -> None:
    one = CASES["vit, block"]
    model, x = one.build(), rand(2, *one.size)
    both = tvc.channel_heatmap(model, x, one.layer, 3, CLASSES_OF_BOTH, at="input")
    assert both.values.shape == (2, 2, 32, 32)
    for k in range(2):
        alone = tvc.channel_heatmap(model, x, one.layer, 3, CLASSES_OF_BOTH[:, k], at="input")
        torch.testing.assert_close(both.values[:, k], alone.values, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")
def test_the_maps_of_all_channels_add_up_to_hires_cam() -> None:
    model, x = networks.residual(), networks.images(2)
    whole = tvc.hires_cam(model, x, "layer2", 1, relu=False)
    channels = whole.activations.shape[1]
    total = torch.stack([tvc.channel_heatmap(model, x, "layer2", c, 1).values for c in range(channels)]).sum(0)
    torch.testing.assert_close(total, whole.values, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")
def test_its_sum_is_the_relevance_by_which_images_are_ordered_and_its_peak_the_place() -> None:
    model, x = networks.vgg_like(), networks.images(5)
    top = tvc.top_activations(model, x, "features.8", 5, by="relevance", target=3)
    for channel in range(top.channels("features.8")):
        heat = tvc.channel_heatmap(model, x, "features.8", channel, 3)
        for place, image in enumerate(top.images["features.8"][channel].tolist()):
            values = heat.values[image]
            torch.testing.assert_close(values.sum(), top.values["features.8"][channel, place], rtol=1e-4, atol=1e-6)
            row, column = top.positions["features.8"][channel, place].tolist()
            assert float(values[row, column]) == pytest.approx(float(values.max()), rel=1e-5, abs=1e-7)


def test_with_a_network_it_takes_photos_and_lies_on_them() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32), resize=36), ("a", "b", "c", "d", "e"))
    for at in ("layer", "input"):
        heat = tvc.channel_heatmap(net, photo, "features.3", 1, "d", at=at)
        assert heat.overlay().size == photo.size
        assert "channel 1" in repr(heat)
        assert "d" in heat.headline()
    assert "at the input" in tvc.channel_heatmap(net, photo, "features.3", 1, "d", at="input").method


def test_a_dead_channel_is_empty_with_a_warning() -> None:
    model = networks.vgg_like()
    with torch.no_grad():
        conv: Any = model.features[0]
        conv.weight[2], conv.bias[2] = 0, -1
    for at in ("layer", "input"):
        with pytest.warns(EmptyMapWarning, match="channel 2 of layer 'features.1' has no part in class 1 in image 0"):
            heat = tvc.channel_heatmap(model, networks.images(1), "features.1", 2, 1, at=at)
        assert not heat.values.any()


@pytest.mark.parametrize(
    ("layer", "channel", "options", "error", "words"),
    [
        ("features.8", 99, {}, InputError, "channel 99 is out of range: layer 'features.8' has"),
        ("features.8", -1, {}, InputError, "channel is a whole number of at least 0"),
        ("features.8", 0, {"at": "pixels"}, InputError, "no at 'pixels'"),
        ("featurs.8", 0, {}, LayerError, "did you mean 'features.8'"),
        ("classifier.1", 0, {}, LayerError, "not maps"),
        ("features.8", 0, {"target": 9}, TargetError, "target 9 is out of range"),
    ],
)
def test_what_cannot_work_is_said(
    layer: str, channel: int, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        tvc.channel_heatmap(networks.vgg_like(), networks.images(1), layer, channel, **options)


@pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")
def test_all_channels_add_up_to_what_the_guide_says() -> None:
    model, x, layer = networks.vgg_like(), networks.images(2), "features.8"
    count = tvc.capture(model, x, layer)[layer].shape[1]
    for at, expected in (
        ("layer", tvc.hires_cam(model, x, layer, 1, relu=False).values),
        ("input", tvc.input_x_gradient(model, x, 1).gradients.sum(1)),
    ):
        heats = [tvc.channel_heatmap(model, x, layer, channel, 1, at=at) for channel in range(count)]  # type: ignore[arg-type]
        total = torch.stack([heat.values for heat in heats]).sum(0)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
