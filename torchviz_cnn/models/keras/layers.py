"""Keras' layers: a function for each class, which makes the PyTorch module of its options and weights (see `table`)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import did_you_mean
from torchviz_cnn.models.keras import modules as ours
from torchviz_cnn.models.keras.config import Ref
from torchviz_cnn.models.keras.files import MAX_SIDE
from torchviz_cnn.models.keras.table import BUILDERS, KerasLayer, Turn, builds


def build(layer: KerasLayer) -> tuple[nn.Module, nn.Module | None]:
    """The module of a layer, on the meta device, and that of the activation inside it. Raises ModelError."""
    if layer.class_name not in BUILDERS:
        if layer.class_name == "Lambda":
            layer.refuse("it runs code of its own, which is never executed")
        near = did_you_mean(layer.class_name, BUILDERS)
        layer.refuse(f"this kind of layer is not known{near}; load_keras_weights fills a network that you build")
    if layer.config.get("data_format") not in (None, "channels_last"):
        layer.refuse(f"data_format is {layer.config['data_format']!r:.80}; only channels_last is read")
    with torch.device("meta"):
        module = BUILDERS[layer.class_name](layer)
        inner = None if layer.class_name == "Activation" else layer.config.get("activation")
        return module, _activation(layer, inner)


# --- activations --------------------------------------------------------------------------------------------------

_PLAIN: dict[str, Callable[[], nn.Module]] = {
    **{"relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "elu": nn.ELU, "selu": nn.SELU},
    **{"celu": nn.CELU, "gelu": nn.GELU, "silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "softplus": nn.Softplus},
    **{"softsign": nn.Softsign, "hard_sigmoid": nn.Hardsigmoid, "hard_silu": nn.Hardswish, "hard_swish": nn.Hardswish},
    **{"leaky_relu": partial(nn.LeakyReLU, 0.2), "hard_tanh": nn.Hardtanh, "log_sigmoid": nn.LogSigmoid},
    **{"tanh_shrink": nn.Tanhshrink, "hard_shrink": nn.Hardshrink, "soft_shrink": nn.Softshrink},
    **{"exponential": ours.Exponential, "linear": nn.Identity},
}
"""Activations by Keras' names, with its defaults; `softmax` and `log_softmax` need an axis."""


def _activation(layer: KerasLayer, value: Any) -> nn.Module | None:
    """The module of an activation that an option names; None for the identity."""
    if value is None or value == "linear":
        return None
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config")
        if kind in ("ReLU", "LeakyReLU", "ELU", "Softmax") and isinstance(config, dict):
            return BUILDERS[kind](KerasLayer(layer.name, kind, config, {}, layer.shapes, keras2=layer.keras2))
        value = config if kind == "function" else kind
    if value in ("softmax", "log_softmax"):
        dim = ours.our_axis(-1, layer.rank)
        return nn.Softmax(dim) if value == "softmax" else nn.LogSoftmax(dim)
    if not isinstance(value, str) or value not in _PLAIN:
        near = did_you_mean(value, _PLAIN) if isinstance(value, str) else ""
        layer.refuse(f"the activation {value!r:.80} is not one of Keras' own{near}")
    return ours.HardSigmoidOfKeras2() if value == "hard_sigmoid" and layer.keras2 else _PLAIN[value]()


@builds("Activation")
def _activation_layer(layer: KerasLayer) -> nn.Module:
    return _activation(layer, layer.config.get("activation")) or nn.Identity()


@builds("ReLU")
def _relu(layer: KerasLayer) -> nn.Module:
    top = layer.config.get("max_value")
    slope, threshold = layer.number("negative_slope", 0), layer.number("threshold", 0)
    if threshold == 0 and top is None:
        return nn.LeakyReLU(slope) if slope else nn.ReLU()
    top = math.inf if top is None else layer.number("max_value")
    if threshold == 0 == slope:
        return nn.ReLU6() if top == 6 else nn.Hardtanh(0, top) if top > 0 else ours.BoundedReLU(top, 0, 0)
    return ours.BoundedReLU(top, slope, threshold)


@builds("LeakyReLU")
def _leaky_relu(layer: KerasLayer) -> nn.Module:
    return nn.LeakyReLU(layer.number("negative_slope" if "negative_slope" in layer.config else "alpha", 0.3))


@builds("ELU")
def _elu(layer: KerasLayer) -> nn.Module:
    return nn.ELU(layer.number("alpha", 1))


@builds("Softmax")
def _softmax(layer: KerasLayer) -> nn.Module:
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    return nn.Softmax(ours.our_axis(layer.whole_number("axis", axis, -4, 3), layer.rank))


@builds("PReLU")
def _prelu(layer: KerasLayer) -> nn.Module:
    (alpha,) = layer.weights("alpha")
    shape = layer.put("weight", alpha, (None,) * (layer.rank - 1), lambda slope: ours.our_order(slope[None])[0])
    if math.prod(shape) in (1, shape[-1]) and shape[-1] in (1, layer.channels):  # one for all, or one for each channel
        layer.put("weight", alpha, shape, torch.flatten)
        return nn.PReLU(shape[-1])
    return ours.PReLUOfPlaces((shape[2], *shape[:2]) if len(shape) == 3 else shape)


# --- convolutions and dense layers --------------------------------------------------------------------------------


def _bias(layer: KerasLayer) -> list[str]:
    return ["bias"] if layer.flag("use_bias", True) else []


def _convolution(
    layer: KerasLayer, channels: int, filters: int, kernel: tuple[int, int], groups: int, bias: bool
) -> nn.Conv2d:
    strides, dilation = layer.pair("strides", 1), layer.pair("dilation_rate", 1)
    spread = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    kind, padding = nn.Conv2d, (0, 0)
    if layer.choice("padding", ("valid", "same")) == "same":
        if strides == (1, 1) and not any(total % 2 for total in spread):
            padding = (spread[0] // 2, spread[1] // 2)
        else:
            kind = ours.SameConv2d
    return kind(channels, filters, kernel, strides, padding, dilation, groups, bias)


def _turned(*axes: int) -> Turn:
    return lambda kernel: kernel.permute(*axes)


def _depthwise_kernel(kernel: Tensor) -> Tensor:
    """Keras' `(h, w, C, M)` to `(C * M, 1, h, w)`."""
    return kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None]


@builds("Conv2D", "Convolution2D")
def _conv2d(layer: KerasLayer) -> nn.Module:
    kernel, *bias = layer.weights("kernel", *_bias(layer))
    size, filters, groups = layer.pair("kernel_size"), layer.whole("filters"), layer.whole("groups", 1)
    inside = layer.put("weight", kernel, (*size, None, filters), _turned(3, 2, 0, 1))[2]
    for array in bias:
        layer.put("bias", array, (filters,))
    return _convolution(layer, inside * groups, filters, size, groups, bool(bias))


@builds("DepthwiseConv2D")
def _depthwise(layer: KerasLayer) -> nn.Module:
    names = ["depthwise_kernel" if "depthwise_kernel" in layer.arrays else "kernel", *_bias(layer)]
    kernel, *bias = layer.weights(*names)
    size, multiplier = layer.pair("kernel_size"), layer.whole("depth_multiplier", 1)
    channels = layer.put("weight", kernel, (*size, None, multiplier), _depthwise_kernel)[2]
    for array in bias:
        layer.put("bias", array, (channels * multiplier,))
    return _convolution(layer, channels, channels * multiplier, size, channels, bool(bias))


@builds("SeparableConv2D", "SeparableConvolution2D")
def _separable(layer: KerasLayer) -> nn.Module:
    depthwise, pointwise, *bias = layer.weights("depthwise_kernel", "pointwise_kernel", *_bias(layer))
    size, multiplier = layer.pair("kernel_size"), layer.whole("depth_multiplier", 1)
    channels = layer.put("depthwise.weight", depthwise, (*size, None, multiplier), _depthwise_kernel)[2]
    inside, filters = channels * multiplier, layer.whole("filters")
    layer.put("pointwise.weight", pointwise, (1, 1, inside, filters), _turned(3, 2, 0, 1))
    for array in bias:
        layer.put("pointwise.bias", array, (filters,))
    first = _convolution(layer, channels, inside, size, channels, False)
    second = nn.Conv2d(inside, filters, 1, bias=bool(bias))
    return nn.Sequential(OrderedDict(depthwise=first, pointwise=second))


@builds("Conv2DTranspose", "Convolution2DTranspose")
def _transposed(layer: KerasLayer) -> nn.Module:
    kernel, *bias = layer.weights("kernel", *_bias(layer))
    size, filters = layer.pair("kernel_size"), layer.whole("filters")
    channels = layer.put("weight", kernel, (*size, filters, None), _turned(3, 2, 0, 1))[3]
    for array in bias:
        layer.put("bias", array, (filters,))
    strides, dilation = layer.pair("strides", 1), layer.pair("dilation_rate", 1)
    extra = (None, None) if layer.config.get("output_padding") is None else layer.pair("output_padding", least=0)
    same = layer.choice("padding", ("valid", "same")) == "same"
    crops: list[int] = []
    for k, step, spread, more in zip(size, strides, dilation, extra, strict=True):
        k = (k - 1) * spread + 1
        before, after = 0, -(max(step - k, 0) if more is None else more)
        if same:
            total = step + k - 2 if more is None else k + k % 2 - 2 + more
            left = min(total // 2 + total % 2, k - 1)
            before, after = k - 1 - left, k - 1 - (total - left)
        crops = [before, after, *crops]
    module = ours.CroppedConvTranspose2d(channels, filters, size, strides, bias=bool(bias), dilation=dilation)
    module.crops = tuple(crops)
    return module


@builds("Dense")
def _dense(layer: KerasLayer) -> nn.Module:
    kernel, *bias = layer.weights("kernel", *_bias(layer))
    inside, units = layer.put("weight", kernel, (None, layer.whole("units")), torch.t)
    for array in bias:
        layer.put("bias", array, (units,))
    return (ours.DenseOnMaps if layer.rank == 4 else nn.Linear)(inside, units, bool(bias))


# --- normalisation ------------------------------------------------------------------------------------------------


def _scale_and_center(layer: KerasLayer) -> list[str]:
    return ["gamma"] * layer.flag("scale", True) + ["beta"] * layer.flag("center", True)


def _put_affine(layer: KerasLayer, names: list[str], arrays: list[Any], shape: Sequence[int | None]) -> tuple[int, ...]:
    """Scale and centre of a normalisation: what the layer has not is 1 or 0. Gives the shape."""
    given = dict(zip(names, arrays, strict=True))
    sides = tuple(shape)
    for parameter, name in (("weight", "gamma"), ("bias", "beta")):
        if name in given:
            sides = layer.put(parameter, given[name], sides)
    known = tuple(int(side or 0) for side in sides)
    for parameter, name, fill in (("weight", "gamma", 1.0), ("bias", "beta", 0.0)):
        if name not in given:
            layer.constant(parameter, torch.full(known, fill, device="cpu"))
    return known


@builds("BatchNormalization", "SyncBatchNormalization", "BatchNormalizationV1")
def _batch_norm(layer: KerasLayer) -> nn.Module:
    layer.last_axis()
    if layer.rank == 3 or layer.training:
        layer.refuse("it is called with training=True" if layer.training else "normalising sequences is not known")
    affine = _scale_and_center(layer)
    *arrays, mean, variance = layer.weights(*affine, "moving_mean", "moving_variance")
    shape = layer.put("running_mean", mean, (layer.channels,))
    layer.put("running_var", variance, shape)
    _put_affine(layer, affine, arrays, shape)
    layer.constant("num_batches_tracked", torch.tensor(0, device="cpu"))
    kind = nn.BatchNorm2d if layer.rank == 4 else nn.BatchNorm1d
    return kind(shape[0], layer.number("epsilon", 1e-3), 1 - layer.number("momentum", 0.99))


@builds("LayerNormalization")
def _layer_norm(layer: KerasLayer) -> nn.Module:
    axis = layer.config.get("axis", -1)
    axes = axis if isinstance(axis, list) else [axis]
    places = sorted(layer.whole_number("axis", each, -layer.rank, layer.rank - 1) % layer.rank for each in axes)
    if places != list(range(layer.rank - len(places), layer.rank)) or layer.flag("rms_scaling", False):
        layer.refuse(f"it normalises the axes {axes!r:.80}, not the last ones, or scales by the root mean square")
    names = _scale_and_center(layer)
    sizes = [layer.shapes[0][ours.our_axis(place, layer.rank)] for place in places]
    shape = _put_affine(layer, names, layer.weights(*names) if names else [], sizes)
    kind = ours.LayerNormOnMaps if layer.rank == 4 else nn.LayerNorm
    return kind(list(shape), layer.number("epsilon", 1e-3))


@builds("GroupNormalization")
def _group_norm(layer: KerasLayer) -> nn.Module:
    layer.last_axis()
    names, groups = _scale_and_center(layer), layer.whole("groups", 32, least=-1)
    _put_affine(layer, names, layer.weights(*names) if names else [], (layer.channels,))
    return nn.GroupNorm(layer.channels if groups == -1 else groups, layer.channels, layer.number("epsilon", 1e-3))


def _by_axes(layer: KerasLayer, values: Any, axes: Sequence[int]) -> Tensor:
    """Numbers that a layer has along some of Keras' axes, or for all, as a tensor for its input in our order."""
    try:
        tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu")
        shape = [1] * layer.rank
        for place, side in zip(sorted(axes, reverse=True), reversed(tensor.shape), strict=False):
            shape[place] = side
        return ours.our_order(tensor.reshape(shape))
    except (TypeError, ValueError, RuntimeError, OverflowError, LookupError):
        layer.refuse("its numbers do not fit its input")


def _rescaled(layer: KerasLayer, scale: Tensor, offset: Tensor) -> nn.Module:
    layer.constant("scale", scale.float())
    layer.constant("offset", offset.float())
    return ours.Rescaling(scale.float(), offset.float())


@builds("Rescaling")
def _rescaling(layer: KerasLayer) -> nn.Module:
    values = (layer.config.get("scale"), layer.config.get("offset", 0.0))
    return _rescaled(layer, *(_by_axes(layer, value, [layer.rank - 1]) for value in values))


@builds("Normalization")
def _normalization(layer: KerasLayer) -> nn.Module:
    axis = layer.config.get("axis", -1)
    listed = [] if axis is None else axis if isinstance(axis, list) else [axis]
    axes = [layer.whole_number("axis", each, -layer.rank, layer.rank - 1) % layer.rank for each in listed]
    values: list[Any] = [layer.config.get("mean"), layer.config.get("variance")]
    if values[0] is None:
        arrays = layer.weights("mean", "variance") if "mean" in layer.arrays else layer.weights("mean", "variance", "n")
        shape = [layer.shapes[0][ours.our_axis(place, layer.rank)] for place in sorted(axes)]
        for name, array in zip(("mean", "variance"), arrays, strict=False):
            layer.put(name, array, shape)
        values = [layer.fills.pop(name)() for name in ("mean", "variance")]
    mean, variance = (_by_axes(layer, value, axes) for value in values)
    deviation = variance.sqrt().clamp(min=1e-7)
    if layer.flag("invert", False):
        return _rescaled(layer, deviation, mean)
    return _rescaled(layer, 1 / deviation, -mean / deviation)


@builds("LayerScale")
def _layer_scale(layer: KerasLayer) -> nn.Module:
    (gamma,) = layer.weights("gamma")
    layer.put("gamma", gamma, (layer.channels,))
    scale = _by_axes(layer, layer.fills.pop("gamma")(), [layer.rank - 1])
    return _rescaled(layer, scale, torch.zeros_like(scale))


# --- pooling, padding, sizes --------------------------------------------------------------------------------------


@builds("MaxPooling2D", "MaxPool2D", "AveragePooling2D", "AvgPool2D")
def _pooling(layer: KerasLayer) -> nn.Module:
    size = layer.pair("pool_size", 2)
    strides = size if layer.config.get("strides") is None else layer.pair("strides")
    same = layer.choice("padding", ("valid", "same"), "valid") == "same"
    if layer.class_name.startswith("Max"):
        return (ours.SameMaxPool2d if same else nn.MaxPool2d)(size, strides)
    return (ours.SameAvgPool2d if same else nn.AvgPool2d)(size, strides)


@builds("GlobalAveragePooling2D", "GlobalAvgPool2D", "GlobalMaxPooling2D", "GlobalMaxPool2D")
def _global_pooling(layer: KerasLayer) -> nn.Module:
    keep = layer.flag("keepdims", False)
    if "Max" in layer.class_name:
        return nn.AdaptiveMaxPool2d(1) if keep else ours.GlobalMaxPool2d()
    return nn.AdaptiveAvgPool2d(1) if keep else ours.GlobalAvgPool2d()


@builds("ZeroPadding2D", "Cropping2D")
def _padding(layer: KerasLayer) -> nn.Module:
    key = "padding" if layer.class_name == "ZeroPadding2D" else "cropping"
    value = layer.config.get(key)
    rows = [value, value] if type(value) is int else value
    if not isinstance(rows, list) or len(rows) != 2:
        layer.refuse(f"{key} is {value!r:.80}, not one whole number, two or two pairs")
    sides = [[each, each] if type(each) is int else each for each in rows]
    if not all(isinstance(each, list) and len(each) == 2 for each in sides):
        layer.refuse(f"{key} is {value!r:.80}, not one whole number, two or two pairs")
    (top, bottom), (left, right) = ([layer.whole_number(key, each, 0, MAX_SIDE) for each in pair] for pair in sides)
    sign = 1 if key == "padding" else -1
    return nn.ZeroPad2d((sign * left, sign * right, sign * top, sign * bottom))


_MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


@builds("UpSampling2D")
def _up_sampling(layer: KerasLayer) -> nn.Module:
    mode = layer.choice("interpolation", _MODES, "nearest")
    size = layer.pair("size", 2)
    factors = (float(size[0]), float(size[1]))
    return nn.Upsample(scale_factor=factors, mode=mode, align_corners=None if mode == "nearest" else False)


@builds("Resizing")
def _resizing(layer: KerasLayer) -> nn.Module:
    size = tuple(layer.whole_number(key, layer.config.get(key), 1, MAX_SIDE) for key in ("height", "width"))
    mode = _MODES[layer.choice("interpolation", _MODES, "bilinear")]
    if layer.flag("pad_to_aspect_ratio", False):
        layer.refuse("pad_to_aspect_ratio is not known")
    crop = layer.flag("crop_to_aspect_ratio", False)
    return ours.Resizing((size[0], size[1]), mode, layer.flag("antialias", False), crop)


# --- shapes and merges --------------------------------------------------------------------------------------------


@builds("Flatten")
def _flatten(layer: KerasLayer) -> nn.Module:
    return ours.Flatten() if layer.rank == 4 else nn.Flatten()


@builds("Reshape")
def _reshape(layer: KerasLayer) -> nn.Module:
    shape = layer.config.get("target_shape")
    if not isinstance(shape, list):
        layer.refuse(f"target_shape is {shape!r:.80}")
    return ours.Reshape([-1 if side is None else layer.whole_number("target_shape", side, -1) for side in shape])


@builds("Permute")
def _permute(layer: KerasLayer) -> nn.Module:
    dims = layer.config.get("dims")
    if not isinstance(dims, list):
        layer.refuse(f"dims is {dims!r:.80}")
    return ours.Permute([layer.whole_number("dims", each, 1, 4) for each in dims])


@builds("Concatenate", "Stack")
def _concatenate(layer: KerasLayer) -> nn.Module:
    axis = layer.whole_number("axis", layer.config.get("axis", -1), -5, 4)
    return ours.Concatenate(axis) if layer.class_name == "Concatenate" else ours.Stack(axis)


@builds("GetItem", "SlicingOpLambda")
def _get_item(layer: KerasLayer) -> nn.Module:
    key = layer.arguments[1] if len(layer.arguments) == 2 else None
    key = key if isinstance(key, tuple) else (key,)
    if not all(part is ... or part is None or type(part) in (int, slice) for part in key):
        layer.refuse(f"it takes the part {key!r:.80}, not a range")
    return ours.GetItem(key)


@builds("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Average", "Maximum", "Minimum")
def _merge(layer: KerasLayer) -> nn.Module:
    """A merge of layers, or an operation between results and constants."""
    return _merged(layer, layer.class_name.removeprefix("True"))


def _merged(layer: KerasLayer, operation: str) -> nn.Module:
    parts = layer.arguments[0] if isinstance(layer.arguments[0], tuple) else layer.arguments
    constants: dict[int, Tensor] = {}
    for place, part in enumerate(part for part in parts if not isinstance(part, str)):
        if not isinstance(part, Ref):
            value = _by_axes(layer, getattr(part, "values", part), range(layer.rank)).float()
            constants[place] = value
            layer.constant(f"constant_{place}", value)
    return ours.Merge(operation, constants)


@builds("CustomScaleLayer")
def _scaled_sum(layer: KerasLayer) -> nn.Module:
    """The residual sum of Keras' Inception-ResNet."""
    scale = _by_axes(layer, layer.number("scale"), ()).float()
    layer.constant("constant_2", scale)
    return ours.Merge("ScaledSum", {2: scale})


_FUNCTIONS = {
    **{"math.add": "Add", "__operators__.add": "Add", "nn.bias_add": "Add", "math.subtract": "Subtract"},
    **{"math.multiply": "Multiply", "math.truediv": "Divide", "math.divide": "Divide"},
}


@builds("TFOpLambda")
def _tensorflow_operation(layer: KerasLayer) -> nn.Module:
    """TensorFlow's arithmetic between layers, as Keras 2 writes it."""
    function = layer.config.get("function")
    if not isinstance(function, str) or function not in _FUNCTIONS:
        layer.refuse(f"the function {function!r:.80} of TensorFlow is not known")
    return _merged(layer, _FUNCTIONS[function])


# --- what does nothing to a photo that is explained ---------------------------------------------------------------


@builds("Dropout", "AlphaDropout")
def _dropout(layer: KerasLayer) -> nn.Module:
    kind = nn.Dropout if layer.class_name == "Dropout" else nn.AlphaDropout
    return kind(layer.number("rate", 0.5))


@builds("SpatialDropout2D")
def _spatial_dropout(layer: KerasLayer) -> nn.Module:
    return nn.Dropout2d(layer.number("rate", 0.5))


@builds(
    *("GaussianNoise", "GaussianDropout", "ActivityRegularization", "Identity", "RandomFlip", "RandomRotation"),
    *("RandomZoom", "RandomCrop", "RandomContrast", "RandomBrightness", "RandomTranslation", "RandomHeight"),
    *("RandomWidth", "RandomShear", "RandomSharpness", "RandomHue", "RandomSaturation", "RandomColorJitter"),
    *("RandomColorDegeneration", "RandomErasing", "RandomGaussianBlur", "RandomGrayscale", "RandomInvert"),
    *("RandomPerspective", "RandomPosterization", "RandomElasticTransform", "AugMix", "CutMix", "MixUp"),
    "RandAugment",
)
def _identity(layer: KerasLayer) -> nn.Module:
    return nn.Identity()
