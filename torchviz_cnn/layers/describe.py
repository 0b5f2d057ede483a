"""`describe`: a table of the layers that a network runs, with shapes, sizes and receptive fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchviz_cnn.core import checks
from torchviz_cnn.core.names import named_layers, resolve
from torchviz_cnn.hooks.inputs import input_for, working_dtype
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import input_channels, run_with
from torchviz_cnn.layers.receptive_field import ReceptiveField, receptive_fields
from torchviz_cnn.media.notebook import tables

_HEAD = ("layer", "type", "output", "parameters", "field", "stride")


@dataclass(frozen=True)
class LayerInfo:
    """One row of `describe`: one call of one layer."""

    name: str
    type: str
    output_shape: tuple[int, ...]
    """Without the batch."""
    parameters: int
    """Counted once, at the layer's first call."""
    receptive_field: ReceptiveField | None
    """None where the output has no spatial dimensions, or they do not come from the input."""


@dataclass(frozen=True, eq=False)
class Description:
    """What `describe` measured: a row per layer in execution order. `print` shows it as a table."""

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerInfo, ...]
    parameters: int
    """How many the whole model has, whether they took part in this forward pass or not."""

    def __str__(self) -> str:
        rows = [_HEAD, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        lines = [
            "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        return "\n".join([self._title(), lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tables.table(self._title(), _HEAD, [_cells(layer) for layer in self.layers], left=3)

    def _title(self) -> str:
        shape = " x ".join(map(str, self.input_shape))
        return f"{self.model} on {shape}: {self.parameters:,} parameters"


def describe(model: Model, input_size: tuple[int, int] | Tensor, *, progress: bool = False) -> Description:
    """Tabulate the layers that a model runs: name, type, output shape, parameters, receptive field, stride.

    The model runs once for the shapes and the order, and once more with positive weights for the receptive fields, in
    pixels of the input: what one unit can see, `all` where that is everything, as after global pooling.

    Args:
        model: a module or a Network.
        input_size: (H, W) in pixels, or an input (1, C, H, W).
        progress: whether to show a bar (False): a network whose units see windows, as Swin's, takes seconds.

    Returns:
        A Description, which `print` shows as a table.

    Raises:
        InputError: for another size.
        ModelError: where the receptive fields cannot be measured.

    >>> print(describe(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), (8, 8)))
    Sequential on 1 x 8 x 8: 20 parameters
    layer  type       output     parameters  field  stride
    ------------------------------------------------------
    0      Conv2d     2 x 6 x 6          20      3       1
    1      MaxPool2d  2 x 3 x 3           0      4       2
    """
    with untouched(model) as module:
        x = input_for(module, _example(module, input_size))[:1]
        leaves = [name for name, layer in named_layers(module).items() if _is_leaf(name, layer)]
        shapes: dict[str, tuple[int, ...]] = {}

        def keep_shape(name: str, output: Any) -> None:
            shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        with torch.no_grad():
            run_with(module, x, leaves, keep_shape)
        fields = receptive_fields(module, x, list(shapes), progress)
        layers, rows = named_layers(module), []
        for name, shape in shapes.items():
            call = resolve(module, layers, name)
            layer = layers[call.name]
            count = 0 if call.index else sum(p.numel() for p in layer.parameters())
            kind = parametrize.type_before_parametrizations(layer).__name__
            rows.append(LayerInfo(name, kind, shape, count, fields.get(name)))
        total = sum(p.numel() for p in module.parameters())
        return Description(type(module).__name__, tuple(x.shape[1:]), tuple(rows), total)


def _is_leaf(name: str, layer: nn.Module) -> bool:
    """Whether a layer is one of its own: what computes the weights of another, as `weight_norm` does, is part of it."""
    inside = [child for child, _ in layer.named_children() if child != _WEIGHTS]
    return not inside and _WEIGHTS not in name.split(".")


_WEIGHTS = "parametrizations"
"""Where PyTorch keeps the modules that compute the weights of a parametrised layer."""


def _example(model: nn.Module, input_size: tuple[int, int] | Tensor) -> Tensor:
    if isinstance(input_size, Tensor):
        return input_size
    sides = checks.sides("input_size", input_size)
    return torch.zeros(1, input_channels(model), *sides, dtype=working_dtype(model))


def in_words(values: tuple[float, ...], times: str = " x ") -> str:
    """Sides in words: one number where all are the same.

    >>> in_words((3, 3)), in_words((3, 5))
    ('3', '3 x 5')
    """
    return str(values[0]) if len(set(values)) == 1 else times.join(map(str, values))


def _cells(layer: LayerInfo) -> tuple[str, ...]:
    field = layer.receptive_field
    seen = "" if field is None else "all" if field.whole else in_words(field.size)
    stride = "" if field is None else in_words(field.stride)
    return (layer.name, layer.type, " x ".join(map(str, layer.output_shape)), f"{layer.parameters:,}", seen, stride)
