"""Weights written by Keras 3 (torch backend) give the same outputs here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VGG, vgg16

from torchviz_cnn.attribution.cam.formulas import grad_cam
from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning, TorchvizWarning
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.models.convnets import convnet_2017, convnet_2025, fashion_mnist_convnet
from torchviz_cnn.models.keras.weights import load_keras_weights
from torchviz_cnn.models.xception import mini_xception, mini_xception_fer2013, xception
from torchviz_cnn.scores.targets import Score

h5py = pytest.importorskip("h5py")
DATA = Path(os.environ.get("TORCHVIZ_CNN_DATA", Path(__file__).parents[4] / "shared" / "data"))
FORMATS = ("model.h5", "weights.h5", "model.weights.h5", "model.keras")


@pytest.fixture(scope="session")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = pytest.importorskip("keras")
    if module.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend")
    return module


# --- the originals, as their books and papers print them ----------------------------------------------------


def keras_convnet_2017(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential([layers.Input((150, 150, 3))])
    for width in (32, 64, 128, 128):
        model.add(layers.Conv2D(width, 3, activation="relu"))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(512, activation="relu"))
    model.add(layers.Dense(1))
    return model


def keras_convnet_2025(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None, None, 3))
    x = layers.Rescaling(1.0 / 255)(inputs)
    for width in (32, 64, 128, 256):
        x = layers.Conv2D(width, 3, activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(512, 3, activation="relu")(x)
    x = layers.Dropout(0.25)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(1)(x))


def keras_fashion_mnist(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential([layers.Input((None, None, 1))])
    for index, width in enumerate((16, 32, 64, 128)):
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        if index < 3:
            model.add(layers.MaxPooling2D(2))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    return model


def keras_mini_xception(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None, None, 3))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.Rescaling(1.0 / 255)(x)
    x = layers.Conv2D(32, 5, use_bias=False)(x)
    for size in (32, 64, 128, 256, 512):
        residual = layers.Conv2D(size, 1, strides=2, padding="same", use_bias=False)(x)
        for _ in range(2):
            x = layers.Activation("relu")(layers.BatchNormalization()(x))
            x = layers.SeparableConv2D(size, 3, padding="same", use_bias=False)(x)
        x = layers.add([layers.MaxPooling2D(3, strides=2, padding="same")(x), residual])
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(1)(x))


def keras_mini_xception_fer2013(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None, None, 1))
    x = inputs
    for _ in range(2):
        x = layers.Conv2D(8, 3, use_bias=False)(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    for size in (16, 32, 64, 128):
        residual = layers.Conv2D(size, 1, strides=2, padding="same", use_bias=False)(x)
        residual = layers.BatchNormalization()(residual)
        x = layers.SeparableConv2D(size, 3, padding="same", use_bias=False)(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
        x = layers.SeparableConv2D(size, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.add([layers.MaxPooling2D(3, strides=2, padding="same")(x), residual])
    x = layers.Conv2D(7, 3, padding="same")(x)
    return keras.Model(inputs, layers.Activation("softmax")(layers.GlobalAveragePooling2D()(x)))


def keras_vgg16(keras: Any, include_top: bool = True) -> Any:
    """VGG16's layers under their published names, at a sixteenth of their width: the original takes 550 MB a
    file."""
    layers = keras.layers
    model = keras.Sequential([layers.Input((224, 224, 3) if include_top else (None, None, 3))])
    for block, (width, count) in enumerate(((4, 2), (8, 2), (16, 3), (32, 3), (32, 3)), start=1):
        for index in range(1, count + 1):
            name = f"block{block}_conv{index}"
            model.add(layers.Conv2D(width, 3, padding="same", activation="relu", name=name))
        model.add(layers.MaxPooling2D(2, name=f"block{block}_pool"))
    if include_top:
        model.add(layers.Flatten(name="flatten"))
        model.add(layers.Dense(64, activation="relu", name="fc1"))
        model.add(layers.Dense(64, activation="relu", name="fc2"))
        model.add(layers.Dense(10, name="predictions"))
    return model


def small_vgg16() -> VGG:
    """torchvision's VGG16 with its convolutions and dense layers replaced by narrow ones, names and all."""
    with torch.device("meta"):
        model: VGG = vgg16()
    for name, layer in list(model.named_modules()):
        parent, _, key = name.rpartition(".")
        if isinstance(layer, nn.Conv2d):
            narrow = nn.Conv2d(max(3, layer.in_channels // 16), layer.out_channels // 16, 3, padding=1)
            model.get_submodule(parent).register_module(key, narrow)
    model.classifier[0] = nn.Linear(32 * 49, 64)
    model.classifier[3] = nn.Linear(64, 64)
    model.classifier[6] = nn.Linear(64, 10)
    return model


# --- helpers ------------------------------------------------------------------------------------------------


def scramble(model: Any, seed: int = 0) -> Any:
    """Random weights, biases and BatchNorm statistics: defaults of zero and one would hide a swap."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) == 1:
            value = torch.rand(shape, generator=generator) * 0.5 + 0.5
            if "gamma" in weight.path:
                value = value / 2  # many residual blocks would otherwise double the signal a dozen times
            elif "variance" not in weight.path:
                value = value - 0.75
        else:
            fan_in = torch.Size(shape[:-1]).numel() if "depthwise" not in weight.path else shape[0] * shape[1]
            value = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        values.append(value.numpy())
    model.set_weights(values)
    return model


def save(model: Any, folder: Path, name: str) -> Path:
    path = folder / name
    if name == "weights.h5":  # the legacy weight file, which Keras 3 reads and no longer writes by itself
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    elif name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


@torch.no_grad()
def keras_outputs(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model(x.permute(0, 2, 3, 1), training=False)
    return (out.permute(0, 3, 1, 2) if out.ndim == 4 else out).detach().cpu()


@torch.no_grad()
def assert_same(ours: nn.Module, theirs: Any, sizes: tuple[tuple[int, int], ...], channels: int, scale: float) -> None:
    """`scale` is what the Keras model divides by itself."""
    for seed, (height, width) in enumerate(sizes):
        x = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed)) * scale
        expected = keras_outputs(theirs, x)
        assert expected.std() > 1e-3  # a constant output would agree with anything
        torch.testing.assert_close(ours.eval()(x / scale), expected, atol=1e-4, rtol=1e-4)


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[], nn.Module], tuple[tuple[int, int], ...], int, float]] = {
    "convnet_2017": (keras_convnet_2017, convnet_2017, ((150, 150),), 3, 1.0),
    "convnet_2025": (keras_convnet_2025, convnet_2025, ((96, 96), (101, 87)), 3, 255.0),
    "fashion_mnist_convnet": (keras_fashion_mnist, fashion_mnist_convnet, ((28, 28), (33, 29)), 1, 1.0),
    "mini_xception": (keras_mini_xception, mini_xception, ((64, 64), (75, 71)), 3, 255.0),
    "vgg16": (keras_vgg16, small_vgg16, ((224, 224),), 3, 1.0),
}


@pytest.mark.filterwarnings("ignore:.*HDF5 file via.*")
@pytest.mark.parametrize("name", CASES)
def test_every_format_gives_the_outputs_of_keras(keras: Any, name: str, tmp_path: Path) -> None:
    build, factory, sizes, channels, scale = CASES[name]
    theirs = scramble(build(keras))
    for file in FORMATS:
        # Weights alone say nothing of the input, and the first of these networks flattens its map.
        ours = load_keras_weights(factory(), save(theirs, tmp_path, file), input_size=sizes[0])
        assert_same(ours, theirs, sizes, channels, scale)


def test_vgg_notop_into_its_features(keras: Any, tmp_path: Path) -> None:
    theirs = scramble(keras_vgg16(keras, include_top=False))
    path = save(theirs, tmp_path, "weights.h5")
    features = small_vgg16().get_submodule("features")
    network = Network(features, Preprocess())
    assert load_keras_weights(network, path) is network
    assert_same(features, theirs, ((64, 64), (70, 45)), 3, 1.0)


def test_notop_file_keeps_the_head_and_says_so(keras: Any, tmp_path: Path) -> None:
    theirs = scramble(keras_vgg16(keras, include_top=False))
    model = small_vgg16()
    head = model.get_parameter("classifier.6.weight").clone()
    with pytest.warns(TorchvizWarning, match=r"classifier\.0, classifier\.3, classifier\.6 keep"):
        load_keras_weights(model, save(theirs, tmp_path, "model.weights.h5"))
    assert torch.equal(model.get_parameter("classifier.6.weight"), head)
    assert_same(model.get_submodule("features"), theirs, ((64, 64),), 3, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("include_top", [True, False])
def test_xception_gives_the_outputs_of_keras(keras: Any, include_top: bool, tmp_path: Path) -> None:
    shape = None if include_top else (None, None, 3)
    theirs = scramble(
        keras.applications.Xception(
            weights=None, include_top=include_top, input_shape=shape, classifier_activation=None
        )
    )
    assert theirs.count_params() == (22_910_480 if include_top else 20_861_480)
    sizes = ((299, 299),) if include_top else ((96, 96), (107, 121))
    for file in FORMATS:
        path = save(theirs, tmp_path, file)
        ours = load_keras_weights(xception(include_top=include_top), path)
        assert_same(ours, theirs, sizes, 3, 1.0)
        path.unlink()


@pytest.mark.slow
def test_xception_without_any_names_goes_by_order(keras: Any, tmp_path: Path) -> None:
    """Files of the first Keras 3 releases hold class names and numbers only."""
    theirs = scramble(keras.applications.Xception(weights=None, include_top=False, input_shape=(None, None, 3)))
    path = save(theirs, tmp_path, "model.weights.h5")
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, item: item.attrs.clear())
    assert_same(load_keras_weights(xception(include_top=False), path), theirs, ((96, 107),), 3, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_grad_cam_of_xception_is_the_textbooks(keras: Any, score: Score, tmp_path: Path) -> None:
    """The book's listing, step by step in Keras, against `grad_cam` on the same weights."""
    activation = "softmax" if score == "probability" else None
    theirs = scramble(keras.applications.Xception(weights=None, classes=10, classifier_activation=activation))
    ours = load_keras_weights(xception(num_classes=10), save(theirs, tmp_path, "model.keras")).eval()
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1

    last = theirs.get_layer("block14_sepconv2_act")
    last_conv_layer_model = keras.Model(theirs.inputs, last.output)
    classifier_input = keras.Input(batch_shape=last.output.shape)
    y = theirs.get_layer("avg_pool")(classifier_input)
    classifier_model = keras.Model(classifier_input, theirs.get_layer("predictions")(y))

    maps = last_conv_layer_model(x.permute(0, 2, 3, 1)).detach().clone().requires_grad_(True)
    predictions = classifier_model(maps)
    top = int(predictions[0].argmax())
    (gradients,) = torch.autograd.grad(predictions[0, top], maps)
    heatmap = (maps.detach()[0] * gradients.mean((0, 1, 2))).mean(-1).clamp(min=0)
    assert heatmap.max() > 0
    heatmap = heatmap / heatmap.max()

    values = grad_cam(ours, x, layer="block14_sepconv2_act", target=top, score=score).values[0]
    torch.testing.assert_close(values / values.max(), heatmap.cpu(), atol=1e-4, rtol=1e-4)


def test_a_layer_name_of_both_sides_beats_the_order(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    theirs = keras.Sequential([layers.Input((8, 8, 2)), layers.Conv2D(2, 1, name="b"), layers.Conv2D(2, 1, name="a")])
    scramble(theirs)
    ours = nn.Sequential()
    ours.add_module("a", nn.Conv2d(2, 2, 1))
    ours.add_module("b", nn.Conv2d(2, 2, 1))
    load_keras_weights(ours, save(theirs, tmp_path, "weights.h5"))
    x = torch.rand(1, 2, 8, 8)
    torch.testing.assert_close(ours[0](ours[1](x)), keras_outputs(theirs, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("file", ["model.h5", "model.keras", "weights.h5"])
def test_epsilon_comes_from_the_file_or_is_that_of_keras(keras: Any, file: str, tmp_path: Path) -> None:
    layers = keras.layers
    theirs = scramble(
        keras.Sequential(
            [
                layers.Input((9, 9, 3)),
                layers.Conv2D(4, 3),
                layers.BatchNormalization(epsilon=1e-3 if file == "weights.h5" else 0.1),
            ]
        )
    )
    ours = load_keras_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), save(theirs, tmp_path, file))
    assert_same(ours, theirs, ((9, 9),), 3, 1.0)


@pytest.mark.slow
def test_maps_that_are_not_square_and_norms_without_scale(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    theirs = scramble(
        keras.Sequential(
            [
                layers.Input((18, 11, 3)),
                layers.Conv2D(4, 3, padding="same", use_bias=False),
                layers.BatchNormalization(scale=False),
                layers.MaxPooling2D(2),
                layers.Conv2D(5, 3, use_bias=False, activation="relu"),
                layers.BatchNormalization(center=False),
                layers.BatchNormalization(scale=False, center=False),
                layers.Flatten(),
                layers.Dense(6, activation="relu"),
                layers.Dense(3),
            ]
        )
    )
    for file in ("model.h5", "weights.h5", "model.keras"):
        ours = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(5), nn.BatchNorm2d(5)),
            *(nn.Flatten(), nn.Linear(5 * 7 * 3, 6), nn.ReLU(), nn.Linear(6, 3)),
        )
        load_keras_weights(ours, save(theirs, tmp_path, file), input_size=(18, 11))
        assert_same(ours, theirs, ((18, 11),), 3, 1.0)


def test_depthwise_and_nested_models(keras: Any, tmp_path: Path) -> None:
    """A nested model lists trainable weights before frozen ones; depthwise kernels look like one-channel
    ones."""
    layers = keras.layers
    stem = [layers.Conv2D(4, 3) for _ in range(2)] + [layers.DepthwiseConv2D(3), layers.BatchNormalization()]
    base = keras.Sequential([layers.Input((None, None, 4)), *stem])
    base.layers[0].trainable = False
    theirs = scramble(keras.Sequential([layers.Input((None, None, 4)), base, layers.Conv2D(1, 1)]))
    for file in FORMATS:
        ours = nn.Sequential(
            nn.Conv2d(4, 4, 3),
            nn.Conv2d(4, 4, 3),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 1, 1),
        )
        path = save(theirs, tmp_path, file)
        if file == "weights.h5":  # nothing in it says in which order the nested layers run
            with pytest.warns(CheckpointWarning, match="does not describe its nested model") as caught:
                load_keras_weights(ours, path)
            assert caught[0].filename == __file__
        else:
            load_keras_weights(ours, path)
        assert_same(ours, theirs, ((12, 11),), 4, 1.0)


def test_a_transposed_convolution_is_not_taken_for_a_convolution(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    theirs = keras.Sequential([layers.Input((None, None, 3)), layers.Conv2DTranspose(3, 3)])
    for file in ("model.h5", "model.keras"):
        with pytest.raises(CheckpointError, match="unexpected in the file"):
            load_keras_weights(nn.Sequential(nn.Conv2d(3, 3, 3)), save(theirs, tmp_path, file))


# --- a real checkpoint --------------------------------------------------------------------------------------

FER2013 = DATA / "checkpoints" / "fer2013_mini_xception.hdf5"


@pytest.mark.skipif(not FER2013.exists(), reason="needs the shared data folder")
def test_fer2013_checkpoint_says_of_faces_what_keras_says(keras: Any) -> None:
    data = pytest.importorskip("skimage.data")
    face = torch.from_numpy(data.astronaut()[0:180, 140:310].copy()).float().mean(-1)[None, None]
    grey = torch.nn.functional.interpolate(face, size=(64, 64), mode="bilinear", antialias=True)
    x = torch.cat([grey, grey.flip(3), grey * 0.5]) / 255 * 2 - 1

    ours = load_keras_weights(mini_xception_fer2013(), FER2013).eval()
    theirs = keras_mini_xception_fer2013(keras)
    theirs.load_weights(FER2013)  # Keras' own reader of its legacy format
    with torch.no_grad():
        softmax = ours(x).softmax(1)
    torch.testing.assert_close(softmax, keras_outputs(theirs, x), atol=1e-5, rtol=1e-5)
    assert softmax[0].argmax() == 3  # she smiles: happy
