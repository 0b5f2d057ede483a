"""Keras' own networks, saved by Keras and read from their file alone: how far the outputs are from Keras'.

    KERAS_BACKEND=torch python scripts/keras_parity.py [NAME ...]

Weights, biases and BatchNorm statistics are random: Keras' defaults of zero and one would hide a swap. The outputs are
compared before the final softmax. Writes the table between the markers of docs/models.md, unless names are given.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from usage import tell_mistakes

import torchviz_cnn as tvc

BEGIN, END = "<!-- keras: begin -->", "<!-- keras: end -->"
FILES = ("model.keras", "model.h5")


@dataclass(frozen=True)
class Case:
    """A Keras network, the sizes (H, W) of photos that it is compared for, and the largest value of their pixels."""

    build: Callable[[Any], Any]
    sizes: tuple[tuple[int, int], ...]
    scale: float = 1.0


def application(name: str, scale: float = 1.0, size: tuple[int, int] = (197, 213)) -> Case:
    """A network of `keras.applications` for inputs of one odd size, with its classifier."""

    def build(keras: Any) -> Any:
        factory = getattr(keras.applications, name)
        return factory(weights=None, input_shape=(*size, 3), classifier_activation=None)

    return Case(build, (size,), scale)


def convnet_2017(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential([layers.Input((150, 150, 3))])
    for width in (32, 64, 128, 128):
        model.add(layers.Conv2D(width, 3, activation="relu"))
        model.add(layers.MaxPooling2D(2))
    for layer in (layers.Flatten(), layers.Dropout(0.5), layers.Dense(512, activation="relu"), layers.Dense(1)):
        model.add(layer)
    return model


def convnet_2025(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None, None, 3))
    x = layers.Rescaling(1.0 / 255)(layers.RandomFlip("horizontal")(inputs))
    for width in (32, 64, 128, 256):
        x = layers.MaxPooling2D(2)(layers.Conv2D(width, 3, activation="relu")(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(512, 3, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.25)(x)))


def transfer_learning(keras: Any) -> Any:
    """The textbook's feature extraction: a frozen base, its preprocessing, augmentation and a head."""
    layers = keras.layers
    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(None, None, 3))
    base.trainable = False
    inputs = keras.Input((None, None, 3))
    x = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])(inputs)
    x = base(keras.applications.mobilenet_v2.preprocess_input(x), training=False)
    x = layers.Dense(64, activation="relu")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5)(x)))


def caffe_base(keras: Any) -> Any:
    """A base that wants blue, green, red, flattened with its preprocessing into one graph."""
    inputs = keras.Input((71, 90, 3))
    x = keras.applications.vgg16.preprocess_input(inputs)
    base = keras.applications.VGG16(weights=None, include_top=False, input_tensor=x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(base.output)))


CASES: dict[str, Case] = {
    "the textbook's convnet of 2017": Case(convnet_2017, ((150, 150),)),
    "the textbook's convnet of 2025": Case(convnet_2025, ((180, 180), (101, 87)), 255),
    "frozen MobileNetV2 under a head": Case(transfer_learning, ((160, 160), (139, 95)), 255),
    "VGG16 with its preprocessing": Case(caffe_base, ((71, 90),), 255),
    "VGG16": application("VGG16"),
    "ResNet50": application("ResNet50"),
    "ResNet50V2": application("ResNet50V2"),
    "MobileNet": application("MobileNet"),
    "MobileNetV2": application("MobileNetV2"),
    "MobileNetV3Small": application("MobileNetV3Small", 255),
    "DenseNet121": application("DenseNet121"),
    "InceptionV3": application("InceptionV3"),
    "InceptionResNetV2": application("InceptionResNetV2"),
    "Xception": application("Xception"),
    "EfficientNetB0": application("EfficientNetB0", 255),
    "EfficientNetV2B0": application("EfficientNetV2B0", 255),
    "ConvNeXtTiny": application("ConvNeXtTiny", 255, (224, 224)),
}


def scrambled(model: Any, seed: int = 0) -> Any:
    """The model with random weights, which keep the size of values from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) < 2:
            value = torch.rand(shape, generator=generator) * 0.5 + 0.5
            value = value / 2 if "gamma" in weight.path else value if "variance" in weight.path else value - 0.75
        else:
            fan_in = torch.Size(shape[:-1]).numel() if "depthwise" not in weight.path else shape[0] * shape[1]
            value = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        values.append(value.numpy())
    model.set_weights(values)
    return model


@torch.no_grad()
def compared(model: Any, path: Path, sizes: tuple[tuple[int, int], ...], scale: float) -> tuple[float, float]:
    """Save a model; the largest difference of its outputs from those of what is read, and their own spread."""
    model.save(path)
    net = tvc.load_model(path, mean=(0, 0, 0), std=(1, 1, 1))  # the inputs are Keras' own
    largest = spread = 0.0
    for height, width in sizes:
        x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)) * scale
        expected = model(x.permute(0, 2, 3, 1), training=False).cpu()
        largest = max(largest, float((net.model(x) - expected).abs().max()))
        spread = max(spread, float(expected.std()))
    return largest, spread


def row(keras: Any, name: str) -> str:
    case = CASES[name]
    model = scrambled(case.build(keras))
    with tempfile.TemporaryDirectory() as folder:
        results = [compared(model, Path(folder) / file, case.sizes, case.scale) for file in FILES]
    sizes = ", ".join(f"{height} x {width}" for height, width in case.sizes)
    parameters = f"{model.count_params():,}".replace(",", " ")
    largest = max(difference for difference, _ in results)
    return f"| {name} | {parameters} | {sizes} | {largest:.1e} | {largest / results[0][1]:.1e} |"


def main(names: list[str]) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = importlib.import_module("keras")
    lines = [
        "| network | parameters | photos | largest difference | in standard deviations of the outputs |",
        "|---|---|---|---|---|",
    ]
    for name in names or CASES:
        lines.append(row(keras, name))
        print(lines[-1], flush=True)
    if not names:
        page = Path(__file__).parents[1] / "docs" / "models.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        table = "\n".join([BEGIN, *lines, END])
        page.write_text(before + table + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    tell_mistakes()
    main(sys.argv[1:])
