"""Keras' layers with weights, and those that normalise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.models.keras.layers import modules as ours
from torchviz_cnn.models.keras.layers.table import LayerPlan, Turn, builds


def _bias(layer: LayerPlan) -> list[str]:
    return ["bias"] if layer.flag("use_bias", True) else []


def _convolution(
    layer: LayerPlan, channels: int, filters: int, kernel: tuple[int, int], groups: int, bias: bool
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
def _conv2d(layer: LayerPlan) -> nn.Module:
    kernel, *bias = layer.weights("kernel", *_bias(layer))
    size, filters, groups = layer.pair("kernel_size"), layer.whole("filters"), layer.whole("groups", 1)
    inside = layer.put("weight", kernel, (*size, None, filters), _turned(3, 2, 0, 1))[2]
    for array in bias:
        layer.put("bias", array, (filters,))
    return _convolution(layer, inside * groups, filters, size, groups, bool(bias))


@builds("DepthwiseConv2D")
def _depthwise(layer: LayerPlan) -> nn.Module:
    names = ["depthwise_kernel" if "depthwise_kernel" in layer.arrays else "kernel", *_bias(layer)]
    kernel, *bias = layer.weights(*names)
    size, multiplier = layer.pair("kernel_size"), layer.whole("depth_multiplier", 1)
    channels = layer.put("weight", kernel, (*size, None, multiplier), _depthwise_kernel)[2]
    for array in bias:
        layer.put("bias", array, (channels * multiplier,))
    return _convolution(layer, channels, channels * multiplier, size, channels, bool(bias))


@builds("SeparableConv2D", "SeparableConvolution2D")
def _separable(layer: LayerPlan) -> nn.Module:
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
def _transposed(layer: LayerPlan) -> nn.Module:
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
def _dense(layer: LayerPlan) -> nn.Module:
    kernel, *bias = layer.weights("kernel", *_bias(layer))
    inside, units = layer.put("weight", kernel, (None, layer.whole("units")), torch.t)
    for array in bias:
        layer.put("bias", array, (units,))
    return (ours.DenseOnMaps if layer.rank == 4 else nn.Linear)(inside, units, bool(bias))


# --- normalisation ------------------------------------------------------------------------------------------------


def _scale_and_center(layer: LayerPlan) -> list[str]:
    return ["gamma"] * layer.flag("scale", True) + ["beta"] * layer.flag("center", True)


def _put_affine(layer: LayerPlan, names: list[str], arrays: list[Any], shape: Sequence[int | None]) -> tuple[int, ...]:
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
def _batch_norm(layer: LayerPlan) -> nn.Module:
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
    return kind(shape[0], layer.number("epsilon", 1e-3), round(1 - layer.number("momentum", 0.99), 9))


@builds("LayerNormalization")
def _layer_norm(layer: LayerPlan) -> nn.Module:
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
def _group_norm(layer: LayerPlan) -> nn.Module:
    layer.last_axis()
    names, groups = _scale_and_center(layer), layer.whole("groups", 32, least=-1)
    _put_affine(layer, names, layer.weights(*names) if names else [], (layer.channels,))
    return nn.GroupNorm(layer.channels if groups == -1 else groups, layer.channels, layer.number("epsilon", 1e-3))


def _rescaled(layer: LayerPlan, scale: Tensor, offset: Tensor) -> nn.Module:
    layer.constant("scale", scale.float())
    layer.constant("offset", offset.float())
    return ours.Rescaling(scale.float(), offset.float())


@builds("Rescaling")
def _rescaling(layer: LayerPlan) -> nn.Module:
    values = (layer.config.get("scale"), layer.config.get("offset", 0.0))
    return _rescaled(layer, *(layer.by_axes(value, [layer.rank - 1]) for value in values))


@builds("Normalization")
def _normalization(layer: LayerPlan) -> nn.Module:
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
    mean, variance = (layer.by_axes(value, axes) for value in values)
    deviation = variance.sqrt().clamp(min=1e-7)
    if layer.flag("invert", False):
        return _rescaled(layer, deviation, mean)
    return _rescaled(layer, 1 / deviation, -mean / deviation)


@builds("LayerScale")
def _layer_scale(layer: LayerPlan) -> nn.Module:
    (gamma,) = layer.weights("gamma")
    layer.put("gamma", gamma, (layer.channels,))
    scale = layer.by_axes(layer.fills.pop("gamma")(), [layer.rank - 1])
    return _rescaled(layer, scale, torch.zeros_like(scale))
