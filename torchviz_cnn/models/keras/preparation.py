"""How photos are prepared for a network of a Keras file: what the file says of it, and what is guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torchviz_cnn.media.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from torchviz_cnn.models.keras.config import Graph, Layer

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
_AUGMENTATION = ("Identity", "Dropout", "GaussianNoise", "Resizing", "ZeroPadding2D", "Cropping2D", "InputLayer")
_SCALING = (
    "Rescaling",
    "Normalization",
    "TrueDivide",
    "Subtract",
    "Multiply",
    "TFOpLambda",
    "GetItem",
    "SlicingOpLambda",
)


def preparation(graph: Graph, shape: tuple[int, int | None, int | None]) -> tuple[Preprocess, bool]:
    """How photos are prepared, stretched as Keras does, and whether any of it is guessed.

    A network that begins with a scaling of its own takes values of 0..255, or of 0..1 where it scales up. Others do
    not say: for those of `keras.applications` their own scale is taken, for the rest 0..1. Networks that wanted blue,
    green, red (VGG, ResNet) get red, green, blue.
    """
    channels, height, width = shape
    names = [layer.name for layer in graph.every_layer()]
    known = next(((scale, side) for pattern, scale, side in _KNOWN if _has(pattern, names)), None)
    scaling = next((layer for layer in _beginning(graph) if layer.class_name not in _AUGMENTATION), None)
    says = scaling is not None and scaling.class_name in _SCALING
    scale, side = known or (_UNIT, 224)
    if scaling is not None and says:
        scale = _scale_before(scaling)
    size = (height or width or side, width or height or side)
    mean, std = (_for_channels(values, channels) for values in scale)
    return Preprocess(size, "stretch", min(size), mean, std), not (says and height and width)


def _beginning(graph: Graph) -> Iterator[Layer]:
    """The layers that a photo meets first, into nested models, as long as each hands its result to one other."""
    for call in graph.calls:
        layer = graph.layers[call.result.layer]
        if layer.graph is None:
            if not layer.class_name.startswith("Random"):
                yield layer
        else:
            yield from _beginning(layer.graph)


def _scale_before(layer: Layer) -> _Scale:
    """The scale of what a layer that scales takes: bytes, or values of 0..1 where it would make bytes large."""
    config: Any = layer.config
    factor, mean = config.get("scale"), config.get("mean")
    mean = mean[0] if isinstance(mean, list) and mean else mean
    small = isinstance(factor, (int, float)) and abs(factor) > 0.1
    small = small or (isinstance(mean, (int, float)) and 0 < abs(mean) <= 1)
    return _UNIT if small else _BYTES


def _has(pattern: str, names: list[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels
