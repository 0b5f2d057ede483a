"""Gradient ascent beside Keras, and on the trained networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchviz_cnn as tvc
from tests import networks
from torchviz_cnn.ascent.recipes import RECIPES, Normalize, Preset, Recipe
from torchviz_cnn.layers.defaults import convolutions

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.DeadFilterWarning")]


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras")


def in_keras(keras: Any, convolutions: Sequence[Any]) -> Any:
    """The same convolutions with ReLUs between them, as Keras layers: images (B, H, W, C) to what the last gives."""
    first = convolutions[0]
    inputs = keras.Input((None, None, first.in_channels))
    x = inputs
    for place, convolution in enumerate(convolutions):
        layer = keras.layers.Conv2D(convolution.out_channels, 3, padding="same")
        x = layer(x)
        layer.set_weights([convolution.weight.detach().permute(2, 3, 1, 0).numpy(), convolution.bias.detach().numpy()])
        if place + 1 < len(convolutions):
            x = keras.layers.ReLU()(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("preset", ["dlwp-2017", "dlwp-2025"])
@pytest.mark.parametrize("how", ["l2", "rms", "pixel"])
def test_the_presets_are_what_keras_does(keras: Any, preset: Preset, how: Normalize) -> None:
    """The textbook's listing, with Keras' own operations, from the same noise: equal after 5 steps."""
    model, channel, recipe = networks.vgg_like(), 3, RECIPES[preset]
    network = in_keras(keras, [model.features[0], model.features[2]])
    start = tvc.filter_patterns(model, "features.2", [channel], size=48, steps=0, preset=preset)
    result = tvc.filter_patterns(
        model, "features.2", [channel], size=48, steps=5, preset=Recipe.named(preset, normalize=how)
    )
    image, border = start.values.permute(0, 2, 3, 1).clone(), recipe.border
    for _ in range(5):
        image = image.clone().requires_grad_()
        activation = network(image)[:, border : 48 - border, border : 48 - border, channel]
        (grads,) = torch.autograd.grad(keras.ops.mean(activation), image)
        if how == "pixel":
            grads = keras.ops.normalize(grads)
        elif how == "l2":
            grads = grads / keras.ops.sqrt(keras.ops.sum(keras.ops.square(grads)))
        else:
            grads = grads / (keras.ops.sqrt(keras.ops.mean(keras.ops.square(grads))) + 1e-5)
        image = (image + recipe.step * grads).detach()
    assert torch.allclose(result.values, image.permute(0, 3, 1, 2), atol=1e-4)


def trained(name: str, data: Path | None) -> tvc.Network:
    if name != "squeezenet1_0":
        return tvc.load_model(name)
    assert data is not None
    return tvc.load_model(name, data / "checkpoints" / "squeezenet1_0.pth")


def raised(model: tvc.Network, size: int, each: int) -> None:
    x = torch.zeros(1, 3, size, size)
    for layer in convolutions(model, x):
        count = tvc.capture(model, x, [layer])[layer].shape[1]
        channels = range(0, count, max(1, count // each))
        recipe = Recipe.named(rectify=layer in ("features.0", "conv1"))
        result = tvc.filter_patterns(model, layer, channels, size=size, preset=recipe)
        live = torch.tensor([c not in result.dead for c in channels])
        assert int(live.sum()) > 0, layer
        share = float(result.raised[live].float().mean())
        assert share >= 0.95, f"{layer}: {share:.0%} raised"


@pytest.mark.parametrize(("name", "size", "each"), [("cats_and_dogs", 96, 10), ("cats_and_dogs_mini_xception", 128, 2)])
def test_ascent_raises_the_filters_of_the_bundled_networks(name: str, size: int, each: int) -> None:
    raised(trained(name, None), size, each)


def test_ascent_raises_the_filters_of_squeezenet(data: Path) -> None:
    raised(trained("squeezenet1_0", data), 64, 6)


@pytest.mark.parametrize("layer", ["features.0", "features.5.expand3x3", "features.12"])
def test_a_filter_of_squeezenet_is_the_same_in_any_batch(data: Path, layer: str) -> None:
    model = trained("squeezenet1_0", data)
    for steps in (2, 30):
        together = tvc.filter_patterns(model, layer, range(64), size=64, steps=steps)
        for channel in (0, 63):
            alone = tvc.filter_patterns(model, layer, channel, size=64, steps=steps)
            difference = (alone.values[0] - together.values[channel]).abs().max() / together.values[channel].abs().max()
            assert steps > 2 or float(difference) <= 1e-5
            one, other = (np.asarray(image, dtype=np.float64) for image in (alone.image(0), together.image(channel)))
            assert float(np.abs(one - other).mean()) <= 2


def test_clean_patterns_have_less_high_frequency(data: Path) -> None:
    """What makes textbook patterns look noisy: of their spectrum, the share beyond half the highest frequency."""
    model = trained("squeezenet1_0", data)

    def share(values: Tensor) -> float:
        power = torch.fft.fft2(values - values.mean((2, 3), keepdim=True)).abs().square().sum((0, 1))
        far = np.maximum(*np.meshgrid(*(np.abs(np.fft.fftfreq(side)) for side in power.shape), indexing="ij")) > 0.25
        return float(power[torch.from_numpy(far)].sum() / power.sum())

    textbook = tvc.filter_patterns(model, "features.7.expand3x3", range(4), size=96)
    clean = tvc.filter_patterns(model, "features.7.expand3x3", range(4), size=96, quality="clean")
    assert bool(clean.raised.all())
    assert share(clean.values) < 0.5 * share(textbook.values)
