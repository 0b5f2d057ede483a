"""What layers a model has: their names, the order they run in, and a table of shapes, sizes and receptive fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import InputError, LayerError, ModelError
from torchviz_cnn.core.names import named_layers, resolve, unwrap
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.untouched import lend_input, untouched
from torchviz_cnn.layers.receptive_field import PositiveNetwork, ReceptiveField

CONVOLUTIONS: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
POOLINGS: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.LPPool1d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d,
)  # fmt: skip
LayerTypes = type[nn.Module] | tuple[type[nn.Module], ...]


def layer_names(
    model: nn.Module, images: Tensor | None = None, *, types: LayerTypes = (*CONVOLUTIONS, *POOLINGS)
) -> list[str]:
    """Names of the convolution and pooling layers, as defined; given images (B, C, H, W), in execution order.

    With images, the model runs once: layers that it does not reach are left out, and a layer that runs several
    times is listed as `pool`, `pool#1`, ... `types=torch.nn.Module` lists every layer there is.

    >>> layer_names(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)))
    ['0', '2']
    """
    if not isinstance(model, nn.Module):
        with untouched(model):  # raises the error that names what was given
            pass
    names = [name for name, module in named_layers(model).items() if isinstance(module, types)]
    if images is None:
        return names
    ran: list[str] = []
    _run(model, images, names, lambda name, output: ran.append(name))
    return ran


def convolutions(model: nn.Module, x: Tensor, *, first: bool = False) -> list[str]:
    """Names of the convolutions in the order in which an input (1, C, H, W) meets them, each once.

    With `first`, only the first at each size of the map, the largest first: VGG16's first of each block.
    """
    names = [name for name, module in named_layers(model).items() if isinstance(module, CONVOLUTIONS)]
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        sizes.setdefault(name.partition("#")[0], tuple(output.shape[2:]))

    try:
        _run(model, x, names, note)
    except RuntimeError as error:
        sides = " x ".join(map(str, x.shape[1:]))
        raise ModelError(f"{type(unwrap(model)).__name__} does not run on an image of {sides}: {error}") from error
    if not sizes:
        raise LayerError(f"{type(unwrap(model)).__name__} runs no convolution on this input; name a layer")
    if not first:
        return list(sizes)
    return list({size: name for name, size in reversed(sizes.items())}.values())[::-1]


def last_spatial_layer(model: nn.Module, x: Tensor, *, pooled: bool = False) -> str:
    """The last layer that still has the resolution of the last convolution, under its outermost name.

    That is what Grad-CAM explains by default: the map of the last convolution larger than one pixel, after the
    normalisation, the sums or concatenations and the activation that follow it, and before any pooling:
    `features.29` in VGG16, `layer4` in a ResNet, `features` in a DenseNet. With `pooled`, the last layer with a map
    larger than one pixel, whatever gives it. Runs the model on `x` once. Raises LayerError where there is none.
    """
    last = LastMap(model, pooled=pooled)
    _run(model, x, last.layers, last.follow)
    return last.require()


class LastMap:
    """Follows a forward pass, as a hook on all `layers`, to the one that `last_spatial_layer` names."""

    def __init__(self, model: nn.Module, *, pooled: bool = False) -> None:
        self.layers = named_layers(model)
        self.name: str | None = None
        """The layer, as far as the pass has come,"""
        self.output: Tensor | None = None
        """and what it gave."""
        self._model, self._pooled = model, pooled
        self._size: tuple[int, ...] = ()
        self._version = 0

    def follow(self, name: str, output: Any) -> None:
        """The hook, for each call of each layer."""
        module = self.layers[resolve(self._model, self.layers, name).name]
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2:] == (1, 1):
            return
        size = tuple(output.shape[2:])
        same = size == self._size and not isinstance(module, POOLINGS)
        if self._pooled or same or isinstance(module, CONVOLUTIONS):
            self.name, self.output, self._size, self._version = name, output, size, _version(output)

    @property
    def overwritten(self) -> bool:
        """Whether something may have written into the output since."""
        return self.output is None or self._version == -1 or self._version != _version(self.output)

    def require(self) -> str:
        """The layer; raises LayerError where there was none."""
        if self.name is None:
            raise LayerError(
                f"{type(unwrap(self._model)).__name__} has no layer with a spatial map on this input; name a layer"
            )
        return self.name


def _version(output: Tensor) -> int:
    return -1 if output.is_inference() else output._version


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
    """Of the whole model, whether they took part in this forward pass or not."""

    def __str__(self) -> str:
        head = ("layer", "type", "output", "parameters", "field", "stride")
        rows = [head, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        shape = " x ".join(map(str, self.input_shape))
        title = f"{self.model} on {shape}: {self.parameters:,} parameters"
        return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__


def describe(model: nn.Module, input_size: tuple[int, int] | Tensor) -> Description:
    """A table of the layers that a model runs: name, type, output shape, parameters, receptive field, stride.

    `input_size` is (H, W) in pixels, or an input (1, C, H, W). The model runs once for the shapes and order, and
    once more with positive weights for the receptive fields, in pixels of the input: what one unit can see, `all`
    where that is everything, as after global pooling. Raises InputError for another size.

    >>> print(describe(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), (8, 8)))
    Sequential on 1 x 8 x 8: 20 parameters
    layer  type       output     parameters  field  stride
    ------------------------------------------------------
    0      Conv2d     2 x 6 x 6          20      3       1
    1      MaxPool2d  2 x 3 x 3           0      4       2
    """
    with untouched(model) as lent:
        x = lend_input(lent, _example(lent, input_size))[:1]
        leaves = [name for name, module in named_layers(lent).items() if not list(module.children())]
        shapes: dict[str, tuple[int, ...]] = {}

        def keep_shape(name: str, output: Any) -> None:
            shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        with torch.no_grad():
            _run(lent, x, leaves, keep_shape)
        fields = receptive_fields(lent, x, list(shapes))
        modules, rows = named_layers(lent), []
        for name, shape in shapes.items():
            call = resolve(lent, modules, name)
            module = modules[call.name]
            count = 0 if call.index else sum(p.numel() for p in module.parameters())
            rows.append(LayerInfo(name, type(module).__name__, shape, count, fields.get(name)))
        total = sum(p.numel() for p in lent.parameters())
        return Description(type(lent).__name__, tuple(x.shape[1:]), tuple(rows), total)


def input_channels(model: nn.Module) -> int:
    """How many channels the first convolution takes; 3 where there is none."""
    convolutions = (m for m in named_layers(model).values() if isinstance(m, CONVOLUTIONS))
    first = next(convolutions, None)
    return int(first.in_channels) if first is not None else 3  # type: ignore[arg-type]


def _run(model: nn.Module, x: Tensor, names: Iterable[str], hook: Callable[[str, Any], None]) -> None:
    with untouched(model) as lent, torch.no_grad(), HookManager(lent) as hooks:
        hooks.on_forward([f"{name}#*" for name in names], hook)
        hooks.run(lend_input(lent, x), stop_early=False)


def receptive_fields(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, ReceptiveField | None]:
    """What the units of each call of these layers see of an input like x, for a lent model; None without dimensions.

    Raises ModelError where it cannot be measured.
    """
    fields: dict[str, ReceptiveField | None] = {}
    network = PositiveNetwork(x)

    def measure(name: str, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        replacement = network.cut(output)
        fields[name] = network.field(replacement)  # known by now, where it could be cut
        return replacement

    with HookManager(model) as hooks:
        layers = named_layers(model)
        hooks.on_forward(dict.fromkeys(f"{resolve(model, layers, name).name}#*" for name in names), measure)
        try:
            with network:
                hooks.run(network.x.clone(), stop_early=False)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"the receptive fields of {type(model).__name__} cannot be measured: {error}") from error
    return fields


def _example(model: nn.Module, input_size: tuple[int, int] | Tensor) -> Tensor:
    if isinstance(input_size, Tensor):
        return input_size
    try:
        height, width = (int(side) for side in input_size)
    except (TypeError, ValueError):
        raise InputError(f"input_size is (height, width) in pixels or an input tensor, not {input_size!r}") from None
    if height < 1 or width < 1:
        raise InputError(f"input_size is (height, width) of at least 1 pixel, not {input_size!r}")
    return torch.zeros(1, input_channels(model), height, width)


def _cells(layer: LayerInfo) -> tuple[str, ...]:
    field = layer.receptive_field
    seen = "" if field is None else "all" if field.whole else _sides(field.size)
    stride = "" if field is None else _sides(field.stride)
    return (layer.name, layer.type, " x ".join(map(str, layer.output_shape)), f"{layer.parameters:,}", seen, stride)


def _sides(sides: tuple[float, ...]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else " x ".join(map(str, sides))
