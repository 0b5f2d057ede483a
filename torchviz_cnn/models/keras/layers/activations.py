"""Keras' activations: functions by name, and the layers that are one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from torchviz_cnn.core.errors import did_you_mean
from torchviz_cnn.models.keras.layers import modules as ours
from torchviz_cnn.models.keras.layers.table import BUILDERS, LayerPlan, builds

_PLAIN: dict[str, Callable[[], nn.Module]] = {
    **{"relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "elu": nn.ELU, "selu": nn.SELU},
    **{"celu": nn.CELU, "gelu": nn.GELU, "silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "softplus": nn.Softplus},
    **{"softsign": nn.Softsign, "hard_sigmoid": nn.Hardsigmoid, "hard_silu": nn.Hardswish, "hard_swish": nn.Hardswish},
    **{"leaky_relu": partial(nn.LeakyReLU, 0.2), "hard_tanh": nn.Hardtanh, "log_sigmoid": nn.LogSigmoid},
    **{"tanh_shrink": nn.Tanhshrink, "hard_shrink": nn.Hardshrink, "soft_shrink": nn.Softshrink},
    **{"exponential": ours.Exponential, "linear": nn.Identity},
}
"""Activations by Keras' names, with its defaults; `softmax` and `log_softmax` need an axis."""


def activation(layer: LayerPlan, value: Any) -> nn.Module | None:
    """The module of an activation that an option names; None for the identity."""
    if value is None or value == "linear":
        return None
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config")
        if kind in ("ReLU", "LeakyReLU", "ELU", "Softmax") and isinstance(config, dict):
            return BUILDERS[kind](LayerPlan(layer.name, kind, config, {}, layer.shapes, keras2=layer.keras2))
        value = config if kind == "function" else kind
    if value in ("softmax", "log_softmax"):
        dim = ours.our_axis(-1, layer.rank)
        return nn.Softmax(dim) if value == "softmax" else nn.LogSoftmax(dim)
    if not isinstance(value, str) or value not in _PLAIN:
        near = did_you_mean(value, _PLAIN) if isinstance(value, str) else ""
        layer.refuse(f"the activation {value!r:.80} is not one of Keras' own{near}")
    return ours.HardSigmoidOfKeras2() if value == "hard_sigmoid" and layer.keras2 else _PLAIN[value]()


@builds("Activation")
def _activation_layer(layer: LayerPlan) -> nn.Module:
    return activation(layer, layer.config.get("activation")) or nn.Identity()


@builds("ReLU")
def _relu(layer: LayerPlan) -> nn.Module:
    top = layer.config.get("max_value")
    slope, threshold = layer.number("negative_slope", 0), layer.number("threshold", 0)
    if threshold == 0 and top is None:
        return nn.LeakyReLU(slope) if slope else nn.ReLU()
    top = math.inf if top is None else layer.number("max_value")
    if threshold == 0 == slope:
        return nn.ReLU6() if top == 6 else nn.Hardtanh(0, top) if top > 0 else ours.BoundedReLU(top, 0, 0)
    return ours.BoundedReLU(top, slope, threshold)


@builds("LeakyReLU")
def _leaky_relu(layer: LayerPlan) -> nn.Module:
    return nn.LeakyReLU(layer.number("negative_slope" if "negative_slope" in layer.config else "alpha", 0.3))


@builds("ELU")
def _elu(layer: LayerPlan) -> nn.Module:
    return nn.ELU(layer.number("alpha", 1))


@builds("Softmax")
def _softmax(layer: LayerPlan) -> nn.Module:
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    return nn.Softmax(ours.our_axis(layer.whole_number("axis", axis, -4, 3), layer.rank))


@builds("PReLU")
def _prelu(layer: LayerPlan) -> nn.Module:
    (alpha,) = layer.weights("alpha")
    shape = layer.put("weight", alpha, (None,) * (layer.rank - 1), lambda slope: ours.our_order(slope[None])[0])
    if math.prod(shape) in (1, shape[-1]) and shape[-1] in (1, layer.channels):  # one for all, or one for each channel
        layer.put("weight", alpha, shape, torch.flatten)
        return nn.PReLU(shape[-1])
    return ours.PReLUOfPlaces((shape[2], *shape[:2]) if len(shape) == 3 else shape)
