"""Keras' layers: `build` makes the PyTorch module of one. See `table` for how one is added."""

from __future__ import annotations

import torch
from torch import nn

from torchviz_cnn.core.errors import did_you_mean
from torchviz_cnn.models.keras.layers import maps, weighted
from torchviz_cnn.models.keras.layers.activations import activation
from torchviz_cnn.models.keras.layers.table import BUILDERS, LayerPlan

__all__ = ["build", "maps", "weighted"]


def build(layer: LayerPlan) -> tuple[nn.Module, nn.Module | None]:
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
        return module, activation(layer, inner)
