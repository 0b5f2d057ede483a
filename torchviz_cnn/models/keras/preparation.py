"""How photos are prepared for a network of a Keras file: what the file says of it, and what is guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from torchviz_cnn.media.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from torchviz_cnn.models.keras.config import Call, Graph, Layer
from torchviz_cnn.models.keras.files import MAX_SIDE

_CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)


class _Scale(NamedTuple):
    """Mean and deviation of values of 0..1, as `keras.applications` calls its ways of preparing photos."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_UNIT = _Scale((0.0,), (1.0,))
_BYTES = _Scale((0.0,), (1 / 255,))
_TF = _Scale((0.5,), (0.5,))
_TORCH = _Scale(IMAGENET_MEAN, IMAGENET_STD)
_CAFFE = _Scale(_CAFFE_MEAN, (1 / 255,))

_KNOWN: tuple[tuple[str, _Scale, int], ...] = (
    ("block14_sepconv2", _TF, 299),  # Xception
    (r"mixed10|conv_7b", _TF, 299),  # Inception V3, Inception-ResNet V2
    (r"block_16_project|conv_pw_13|post_relu|normal_conv_1_\d+", _TF, 224),  # MobileNets, ResNet V2, NASNet
    (r"conv5_block(16|24|32|48)_concat", _TORCH, 224),  # DenseNet
    (r"conv5_block3_out|res5c_branch2a|block5_conv3", _CAFFE, 224),  # ResNet, VGG
    (r"block7[a-z]_project_conv", _BYTES, 224),  # EfficientNet
)
"""The networks of `keras.applications` by the name of a layer near their end, their scale and their side."""
_NEUTRAL = ("Identity", "Dropout", "GaussianNoise", "Resizing", "ZeroPadding2D", "Cropping2D")
"""Layers, besides augmentation, that leave values as they are."""
_SCALING = {"Rescaling", "Normalization", "TrueDivide", "Subtract", "Multiply", "GetItem"}
_SCALING |= {"TFOpLambda", "SlicingOpLambda"}


class Preparation(NamedTuple):
    """How photos are prepared."""

    preprocess: Preprocess
    guessed: bool
    """Whether the file leaves any of it open."""
    reversed: bool
    """Whether the network is taken to want blue, green, red."""


def preparation(graph: Graph, shape: tuple[int, int | None, int | None]) -> Preparation:
    """How photos are prepared, stretched as Keras does.

    A network that begins with a scaling of its own takes values of 0..255, or of 0..1 where it scales up. Others do
    not say: for those of `keras.applications` their own scale is taken, for the rest 0..1.
    """
    channels, *sides = shape
    names = [layer.name for layer in graph.every_layer()]
    scale, side = next(((known, edge) for pattern, known, edge in _KNOWN if _has(pattern, names)), (_UNIT, 224))
    begin = list(_beginning(graph))
    neutral = [layer for layer, _ in takewhile(lambda each: each[0].class_name in _NEUTRAL, begin)]
    resized = next((layer.config for layer in neutral if layer.class_name == "Resizing"), {})
    resized_to = [resized.get(key) for key in ("height", "width")]
    if None in sides and all(type(value) is int and 0 < value <= MAX_SIDE for value in resized_to):
        sides = resized_to
    first = begin[len(neutral) : len(neutral) + 1]
    says = bool(first) and first[0][0].class_name in _SCALING
    if says:
        scale = _UNIT if _takes_unit(*first[0]) else _BYTES
    size = (sides[0] or sides[1] or side, sides[1] or sides[0] or side)
    mean, std = (values if len(values) == channels else (sum(values) / len(values),) * channels for values in scale)
    preprocess = Preprocess(size, "stretch", min(size), mean, std)
    return Preparation(preprocess, not (says and all(sides)), scale is _CAFFE and channels == 3)


def _beginning(graph: Graph) -> Iterator[tuple[Layer, Call]]:
    """The layers as they run, those of nested models in their place, without augmentation."""
    for call in graph.calls:
        layer = graph.layers[call.result.layer]
        if layer.graph is not None:
            yield from _beginning(layer.graph)
        elif not layer.class_name.startswith("Random"):
            yield layer, call


def _takes_unit(layer: Layer, call: Call) -> bool:
    """Whether a layer that scales takes values of 0..1: it would make those of 0..255 large, or moves by little."""
    config = layer.config
    given = [part for part in call.arguments if isinstance(part, (int, float))]
    number = next(iter(given), config.get("mean") if layer.class_name == "Normalization" else config.get("scale"))
    number = number[0] if isinstance(number, list) and number else number
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    function = layer.class_name + str(config.get("function", ""))
    if "divide" in function.lower():
        return abs(number) < 16
    moves = "subtract" in function.lower() or layer.class_name == "Normalization"
    return 0 < abs(number) <= 1 if moves else abs(number) > 0.1


def _has(pattern: str, names: list[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)
