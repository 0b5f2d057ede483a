"""Every layer of the table gives what Keras' own gives, at odd sizes too, alone and in random networks."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.keras.test_parity import keras, keras_outputs, save, scramble
from torchviz_cnn.models.keras.layers.table import BUILDERS
from torchviz_cnn.models.keras.network import keras_network

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
__all__ = ["keras"]  # a fixture

Layer = Callable[[Any, Any], Any]
"""From `keras.layers` and a Keras tensor to a Keras tensor."""
CHANNELS = 6


def same_and_valid(make: Callable[[Any, str], Any]) -> list[Layer]:
    return [lambda ks, x, p=padding: make(ks, p)(x) for padding in ("same", "valid")]  # type: ignore[misc]


def each(make: Callable[[Any, Any], Any], *options: Any) -> list[Layer]:
    return [lambda ks, x, o=option: make(ks, o)(x) for option in options]  # type: ignore[misc]


ACTIVATIONS = (
    *(
        "relu",
        "relu6",
        "softmax",
        "sigmoid",
        "tanh",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "swish",
        "mish",
        "softplus",
    ),
    *("softsign", "hard_sigmoid", "hard_silu", "hard_swish", "leaky_relu", "hard_tanh", "log_sigmoid", "tanh_shrink"),
    *("hard_shrink", "soft_shrink", "exponential", "linear", "log_softmax"),
)
MAPS: dict[str, list[Layer]] = {
    "Conv2D": [
        *same_and_valid(lambda ks, p: ks.Conv2D(4, 3, padding=p)),
        *same_and_valid(lambda ks, p: ks.Conv2D(4, (4, 2), strides=(2, 3), padding=p, activation="relu")),
        *same_and_valid(lambda ks, p: ks.Conv2D(6, 3, dilation_rate=(2, 1), padding=p, groups=3, use_bias=False)),
        *same_and_valid(lambda ks, p: ks.Conv2D(4, 2, padding=p, activation=ks.LeakyReLU(negative_slope=0.1))),
        *same_and_valid(lambda ks, p: ks.Conv2D(4, 1, strides=3, padding=p, activation="gelu")),
    ],
    "DepthwiseConv2D": [
        *same_and_valid(lambda ks, p: ks.DepthwiseConv2D(3, strides=2, padding=p, depth_multiplier=2)),
        *same_and_valid(lambda ks, p: ks.DepthwiseConv2D(4, padding=p, use_bias=False, activation="silu")),
    ],
    "SeparableConv2D": [
        *same_and_valid(lambda ks, p: ks.SeparableConv2D(5, 3, padding=p, depth_multiplier=2)),
        *same_and_valid(lambda ks, p: ks.SeparableConv2D(5, 4, strides=2, padding=p, use_bias=False)),
    ],
    "Conv2DTranspose": [
        layer
        for kernel in (2, 3, 4, 5)
        for strides in (1, 2, 3)
        for layer in same_and_valid(
            lambda ks, p, k=kernel, s=strides: ks.Conv2DTranspose(4, k, strides=s, padding=p)  # type: ignore[misc]
        )
    ]
    + same_and_valid(lambda ks, p: ks.Conv2DTranspose(4, 3, strides=2, padding=p, output_padding=1, activation="relu"))
    + same_and_valid(lambda ks, p: ks.Conv2DTranspose(4, 3, padding=p, dilation_rate=2, use_bias=False)),
    "Dense": each(lambda ks, n: ks.Dense(n, activation="softmax"), 5),
    "BatchNormalization": [
        *each(lambda ks, axis: ks.BatchNormalization(axis=axis, epsilon=0.01), -1, 3),
        *each(lambda ks, scale: ks.BatchNormalization(scale=scale, center=not scale), True, False),
    ],
    "LayerNormalization": [
        *each(lambda ks, axis: ks.LayerNormalization(axis=axis), -1, 3),
        *each(lambda ks, scale: ks.LayerNormalization(scale=scale, center=not scale), True, False),
    ],
    "GroupNormalization": each(lambda ks, groups: ks.GroupNormalization(groups), 1, 3, -1),
    "Activation": each(lambda ks, name: ks.Activation(name), *ACTIVATIONS),
    "ReLU": each(
        lambda ks, options: ks.ReLU(*options),
        *((), (6.0,), (0.5,), (None, 0.2), (0.7, 0.1), (None, 0.1, 0.3), (0.9, 0.0, 0.2)),
    ),
    "LeakyReLU": each(lambda ks, slope: ks.LeakyReLU(negative_slope=slope), 0.3, 0.0),
    "PReLU": each(lambda ks, axes: ks.PReLU(shared_axes=axes), [1, 2], [1, 2, 3]),
    "ELU": each(lambda ks, alpha: ks.ELU(alpha), 1.0, 0.5),
    "Softmax": each(lambda ks, axis: ks.Softmax(axis), -1, 1, -2),
    "MaxPooling2D": [
        *same_and_valid(lambda ks, p: ks.MaxPooling2D(2, padding=p)),
        *same_and_valid(lambda ks, p: ks.MaxPooling2D(3, strides=(2, 1), padding=p)),
        *same_and_valid(lambda ks, p: ks.MaxPooling2D((4, 3), strides=3, padding=p)),
    ],
    "AveragePooling2D": [
        *same_and_valid(lambda ks, p: ks.AveragePooling2D(3, strides=1, padding=p)),
        *each(lambda ks, p: ks.AveragePooling2D((2, 3), strides=2, padding=p), "valid"),
    ],
    "GlobalAveragePooling2D": each(lambda ks, keep: ks.GlobalAveragePooling2D(keepdims=keep), True, False),
    "GlobalMaxPooling2D": each(lambda ks, keep: ks.GlobalMaxPooling2D(keepdims=keep), True, False),
    "ZeroPadding2D": each(lambda ks, padding: ks.ZeroPadding2D(padding), 2, (1, 2), ((0, 1), (2, 3))),
    "Cropping2D": each(lambda ks, cropping: ks.Cropping2D(cropping), 2, (1, 2), ((0, 1), (2, 3))),
    "UpSampling2D": [
        *each(lambda ks, size: ks.UpSampling2D(size), 2, (3, 1)),
        *each(lambda ks, mode: ks.UpSampling2D((2, 3), interpolation=mode), "bilinear", "bicubic"),
    ],
    "Resizing": [
        *each(lambda ks, mode: ks.Resizing(7, 11, interpolation=mode), "nearest", "bilinear", "bicubic"),
        *each(lambda ks, crop: ks.Resizing(7, 5, crop_to_aspect_ratio=crop), True),
        *each(lambda ks, smooth: ks.Resizing(7, 5, antialias=smooth), True),
    ],
    "Rescaling": each(lambda ks, scale: ks.Rescaling(scale, offset=-1.0), 1 / 127.5, [0.5, 1, 2, 3, 4, 5]),
    "Normalization": [
        *each(lambda ks, axis: ks.Normalization(axis=axis), -1, None),
        *each(lambda ks, mean: ks.Normalization(mean=mean, variance=[4.0] * CHANNELS), [0.5, 1, 2, 3, 4, 5]),
        *each(lambda ks, mean: ks.Normalization(axis=None, mean=mean, variance=2.0, invert=True), 0.5),
    ],
    "Dropout": each(lambda ks, kind: getattr(ks, kind)(0.5), "Dropout", "AlphaDropout", "SpatialDropout2D"),
    "GaussianNoise": each(lambda ks, kind: getattr(ks, kind)(0.5), "GaussianNoise", "GaussianDropout"),
    "RandomFlip": each(lambda ks, kind: getattr(ks, kind)(0.2), "RandomRotation", "RandomZoom", "RandomContrast"),
    "Identity": each(lambda ks, kind: getattr(ks, kind)(), "Identity", "ActivityRegularization", "RandomFlip"),
    "Add": each(
        lambda ks, name: lambda x: getattr(ks, name)()([x, ks.Conv2D(CHANNELS, 1)(x), ks.Activation("relu")(x)]),
        *("Add", "Multiply", "Average", "Maximum", "Minimum"),
    ),
    "Subtract": each(lambda ks, _: lambda x: ks.Subtract()([x, ks.Activation("sigmoid")(x)]), None),
    "Multiply": each(lambda ks, _: lambda x: ks.Multiply()([x, ks.GlobalAveragePooling2D()(x)]), None),
    "Concatenate": each(
        lambda ks, axis: lambda x: ks.Concatenate(axis=axis)([x, ks.Activation("relu")(x)]), -1, 1, 2, 3, -2
    ),
    "TrueDivide": each(lambda ks, _: lambda x: (2.0 - x / 3.0) * np.arange(6, dtype="float32") + x * x, None),
    "GetItem": each(lambda ks, part: lambda x: x[part], (..., slice(1, 4)), (slice(None), slice(2, None, 2))),
}
"""Layers that take maps of any size, by their class."""

FIXED: dict[str, list[Layer]] = {
    "Flatten": each(lambda ks, _: ks.Flatten(), None),
    "Reshape": each(lambda ks, shape: ks.Reshape(shape), (9, -1), (7, 9, 30), (5, 63, 6), (-1,)),
    "Permute": [
        *each(lambda ks, dims: ks.Permute(dims), (2, 1, 3), (3, 1, 2)),
        *each(lambda ks, dims: lambda x: ks.Permute(dims)(ks.Reshape((9, -1))(x)), (2, 1)),
    ],
    "PReLU": each(lambda ks, axes: ks.PReLU(shared_axes=axes), None, [1], [3]),
    "LayerNormalization": each(lambda ks, axis: ks.LayerNormalization(axis=axis), [1, 2, 3], [2, 3]),
    "Normalization": each(lambda ks, axis: ks.Normalization(axis=axis), (1, 3), (1, 2, 3)),
    "Dense": each(lambda ks, _: lambda x: ks.Dense(4)(ks.Reshape((9, -1))(x)), None),
    "BatchNormalization": each(lambda ks, _: lambda x: ks.BatchNormalization()(ks.Dense(5)(ks.Flatten()(x))), None),
    "Stack": each(lambda ks, _: lambda x: operations().stack([x[..., 2], x[..., 0]], axis=-1), None),
}
"""Layers whose weights or results depend on the size of the map, here 15 x 21."""


def operations() -> Any:
    import keras as module

    return module.ops


def assert_equal(model: Any, folder: Path, *sizes: tuple[int, int], file: str = "model.keras") -> None:
    """Keras' outputs for two examples of each size, and those of the network read from the model's file."""
    values = zip(scramble(model).weights, model.get_weights(), strict=True)
    model.set_weights([abs(value) if "variance" in weight.path else value for weight, value in values])
    ours = keras_network(save(model, folder, file)).model
    for height, width in sizes:
        x = torch.randn(2, model.inputs[0].shape[-1], height, width, generator=torch.Generator().manual_seed(height))
        expected = keras_outputs(model, x)
        with torch.no_grad():
            given: Tensor = ours(x)
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MAPS)
def test_layers_of_maps(keras: Any, name: str, tmp_path: Path) -> None:
    for place, layer in enumerate(MAPS[name]):
        inputs = keras.Input((None, None, CHANNELS))
        model = keras.Model(inputs, layer(keras.layers, inputs))
        assert_equal(model, tmp_path, (15, 22), (16, 21), file=("model.keras", "model.h5")[place % 2])


@pytest.mark.parametrize("name", FIXED)
def test_layers_of_one_size(keras: Any, name: str, tmp_path: Path) -> None:
    for file in ("model.keras", "model.h5"):
        for layer in FIXED[name]:
            inputs = keras.Input((15, 21, CHANNELS))
            assert_equal(keras.Model(inputs, layer(keras.layers, inputs)), tmp_path, (15, 21), file=file)


def test_every_layer_of_the_table_is_tried() -> None:
    aliases = {"Convolution2D", "Convolution2DTranspose", "SeparableConvolution2D", "MaxPool2D", "AvgPool2D"}
    aliases |= {"GlobalAvgPool2D", "GlobalMaxPool2D", "BatchNormalizationV1", "SyncBatchNormalization"}
    of_applications = {"LayerScale", "CustomScaleLayer"}  # see test_applications
    written_by_keras2 = {"TFOpLambda", "SlicingOpLambda"}
    alike = {
        name for name in BUILDERS if BUILDERS[name] in (BUILDERS["Identity"], BUILDERS["Dropout"], BUILDERS["Add"])
    }
    tried = {*MAPS, *FIXED, *aliases, *of_applications, *written_by_keras2, *alike, "SpatialDropout2D"}
    assert set(BUILDERS) <= tried


def test_average_pooling_does_not_count_same_padding(keras: Any, tmp_path: Path) -> None:
    """As TensorFlow and JAX have it; Keras' torch backend repeats the edge where the padding is not symmetric."""
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, keras.layers.AveragePooling2D(2, padding="same")(inputs))
    ours = keras_network(save(model, tmp_path, "model.keras")).model
    x = torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    given = ours(x)
    assert given.shape == (1, 1, 3, 2)
    torch.testing.assert_close(given[0, 0, 2, 1], x[0, 0, 4, 2:].mean())
    torch.testing.assert_close(given[0, 0, 0, 0], x[0, 0, :2, :2].mean())


# --- random networks ----------------------------------------------------------------------------------------------


def some_block(keras: Any, chance: random.Random, x: Any) -> Any:
    """One to three layers of the table, then a convolution back to six channels."""
    names = sorted(set(MAPS) - {"GlobalAveragePooling2D", "GlobalMaxPooling2D", "Resizing"})
    for _ in range(chance.randint(1, 3)):
        wanted = chance.choice(MAPS[chance.choice(names)])
        x = keras.layers.Conv2D(CHANNELS, 1)(wanted(keras.layers, x))
        x = keras.layers.Activation("tanh")(x)  # so that nothing grows
    return x


@pytest.mark.parametrize("seed", range(int(os.environ.get("TORCHVIZ_CNN_RANDOM_NETWORKS", "12"))))
def test_random_networks(keras: Any, seed: int, tmp_path: Path) -> None:
    """A nested model that is called twice, a fork and a join, and a head, of random layers at random sizes."""
    chance, layers = random.Random(seed), keras.layers
    # Three blocks of pooling by up to 3 leave something of every map.
    size = (chance.randint(90, 120), chance.randint(90, 120))
    inside = keras.Input((None, None, CHANNELS))
    nested = keras.Model(inside, some_block(keras, chance, inside))
    sequential = keras.Sequential([layers.Input((None, None, CHANNELS)), layers.Conv2D(CHANNELS, 1), layers.ReLU()])
    inputs = keras.Input((*size, CHANNELS))
    x = some_block(keras, chance, inputs)
    fork = layers.Concatenate()([sequential(x), layers.Conv2D(3, 3, padding="same", strides=1)(x), sequential(x)])
    x = layers.Conv2D(CHANNELS, 1)(fork)
    x = nested(x) if seed % 3 else layers.Add()([nested(x), nested(x)])
    x = layers.Flatten()(layers.Resizing(5, 3)(x)) if seed % 2 else layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(7)(x))
    assert_equal(model, tmp_path, size, file=("model.keras", "model.h5")[seed % 2])
