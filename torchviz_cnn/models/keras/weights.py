"""Weights of Keras models for PyTorch networks."""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning, counted
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.interrupts import FunctionMode
from torchviz_cnn.hooks.network import Network, module_of
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import input_channels
from torchviz_cnn.models.keras.files import KerasLayer, keras_file

_log = logging.getLogger("torchviz_cnn")
Target = TypeVar("Target", bound=nn.Module | Network)
Shapes = tuple[tuple[int, ...], ...]
Map = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A PyTorch layer that takes the weights of one Keras layer.

    `shapes` are the shapes it expects there, `fill` turns those arrays into the values of `tensors`, one for one.
    """

    name: str
    kind: str
    shapes: Shapes
    tensors: tuple[Tensor, ...]
    fill: Callable[[list[Tensor]], list[Tensor]]
    batch_norm: nn.BatchNorm2d | None = None


@dataclass(frozen=True, eq=False)
class Matching:
    """Which Keras layer goes into which slot, and what is left over."""

    pairs: tuple[tuple[KerasLayer, Slot], ...]
    missing: tuple[Slot, ...]
    unexpected: tuple[KerasLayer, ...]
    misshapen: tuple[tuple[KerasLayer, Slot], ...]


def load_keras_weights(
    model: Target, path: str | os.PathLike[str], *, input_size: int | tuple[int, int] | None = None
) -> Target:
    """Fill a network with the weights of a Keras file.

    Layers are paired by name where both sides use the same one (`block3_sepconv1` of Xception), otherwise in the order
    of the model, kind by kind: convolutions, depthwise and separable ones, dense layers, BatchNorm (with its
    statistics and its epsilon: the file's, or Keras' default 0.001). This fits torchvision's VGGs, the networks of
    this package and other plain chains of such layers. Kernels are transposed; the first dense layer after a flatten
    is reordered from Keras' (H, W, C) to (C, H, W), for the map that the network has there. A BatchNorm without scale
    or center has ones or zeros. The Keras model's final softmax or sigmoid is not part of the result, which gives
    logits.

    Args:
        model: a module or a Network; it is changed in place, or not at all.
        path: a legacy `.h5` model or weight file, a `.weights.h5` or a `.keras`, written by any Keras. A file without
            any dense layer ("notop") fills the rest of the network.
        input_size: a side, or (height, width), in pixels, for a file that does not say for which input its flattened
            map was; by default the map is taken for a square.

    Returns:
        The same module or Network.

    Raises:
        CheckpointError: for a file that cannot be read, and with all that is missing, unexpected or of another shape.
        ImportError: where h5py is not installed.

    Warns:
        CheckpointWarning: where dense layers keep their values, and where the order in a nested model, the shape of a
            flattened map or what a BatchNorm lacks had to be guessed.
    """
    path = checks.path("path", path)
    size = None if input_size is None else checks.sides("input_size", input_size)
    module = module_of(model)
    elements = sum(t.numel() for t in module.state_dict().values())
    # Room for double precision, two optimiser moments of each, and HDF5's own bookkeeping.
    with keras_file(path, max_bytes=64 * 2**20 + 24 * elements) as file:
        given = None if size is None else (input_channels(module) or 3, *size)
        slots = _slots(module, cache(partial(_flattened_maps, module, file.input_shape or given)))
        matching = _match(file.layers, slots)
        headless = _is_headless(file.layers, matching)
        if (matching.missing and not headless) or matching.unexpected or matching.misshapen:
            raise CheckpointError(_complaint(path, module, matching))
        values = [(slot, layer.epsilon, slot.fill(_arrays(layer))) for layer, slot in matching.pairs]
    with torch.no_grad():
        for slot, epsilon, tensors in values:
            for tensor, value in zip(slot.tensors, tensors, strict=True):
                tensor.copy_(value)
            if slot.batch_norm is not None:
                slot.batch_norm.eps = epsilon
    if matching.missing:
        names = ", ".join(slot.name for slot in matching.missing)
        warn(f"{path} has no dense layers: {names} keep their values", CheckpointWarning)
    return model


def _arrays(layer: KerasLayer) -> list[Tensor]:
    return [torch.from_numpy(array[()].astype("float32")) for array in layer.arrays]


class _Flattenings(FunctionMode):
    """Notes the shape of every map that is flattened, by the length of what it becomes."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: dict[int, Map] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        shapes = [value.shape for value in (*args[:1], out) if isinstance(value, Tensor)]
        if len(shapes) == 2 and len(shapes[0]) == 4 > len(shapes[1]) and shapes[0].numel() == shapes[1].numel():
            channels, height, width = shapes[0][1:]
            self.maps[channels * height * width] = (channels, height, width)
        return out


def _flattened_maps(model: nn.Module, shape: Map | None) -> dict[int, Map] | None:
    """The maps that a network flattens for an input of this shape; None where that is not known."""
    if shape is None:
        return None
    with untouched(model) as frozen, torch.no_grad(), _Flattenings() as flattenings:
        try:
            frozen(next(frozen.parameters()).new_zeros(1, *shape))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:  # as for an input of another size than it takes
            _log.info("the flattened maps are taken for squares, as the network does not run for %s: %s", shape, error)
            return None
    maps: dict[int, Map] = flattenings.maps
    return maps


Maps = Callable[[], dict[int, Map] | None]


class _Walk:
    """Slots for the layers of a network, in the order of its definition, and what is known of the map at each."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.channels = 0
        """Width of the last convolution: a wider dense layer comes after a flatten."""
        self.pooled: tuple[int, int] | None = None
        """Height and width of the map, where adaptive pooling fixes them."""

    def slots(self, module: nn.Module, name: str = "") -> Iterator[Slot]:
        children = dict(module.named_children())
        if list(children) == ["depthwise", "pointwise"]:
            depthwise, pointwise = children["depthwise"], children["pointwise"]
            if isinstance(depthwise, nn.Conv2d) and isinstance(pointwise, nn.Conv2d) and depthwise.bias is None:
                self.channels, self.pooled = pointwise.out_channels, None
                yield _separable(name, depthwise, pointwise)
                return
        if isinstance(module, nn.Conv2d):
            self.channels, self.pooled = module.out_channels, None
            yield _convolution(name, module)
        elif isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            size = module.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            self.pooled = None if rows is None or columns is None else (rows, columns)
        elif isinstance(module, nn.Linear):
            yield _dense(name, module, partial(_flattened, name, module, self.channels, self.pooled, self.maps))
            self.channels = module.out_features
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            yield _batch_norm(name, module)
        for child_name, child in children.items():
            yield from self.slots(child, f"{name}.{child_name}" if name else child_name)


def _slots(model: nn.Module, maps: Maps) -> list[Slot]:
    """The layers of `model` that take weights, as defined."""
    slots = list(_Walk(maps).slots(model))
    taken = {id(tensor) for slot in slots for tensor in slot.tensors}
    others = [name for name, parameter in model.named_parameters() if id(parameter) not in taken]
    if others:
        raise CheckpointError(
            f"{type(model).__name__} has weights that Keras files are not read for: {', '.join(others[:8])}"
            f"{' ...' if len(others) > 8 else ''}; only convolutions, dense layers and BatchNorm are"
        )
    return slots


def _with_bias(shape: tuple[int, ...], bias: Tensor | None) -> Shapes:
    return (shape,) if bias is None else (shape, tuple(bias.shape))


def _tensors(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)


def _depthwise_kernel(kernel: Tensor) -> Tensor:
    """Keras' `(h, w, C, M)` to `(C * M, 1, h, w)`."""
    return kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None]


def _kernel(kernel: Tensor) -> Tensor:
    """Keras' `(h, w, in, out)` to `(out, in, h, w)`."""
    return kernel.permute(3, 2, 0, 1)


def _slot(
    name: str, kind: str, shape: tuple[int, ...], layer: nn.Conv2d | nn.Linear, turned: Callable[[Tensor], Tensor]
) -> Slot:
    """The slot of a layer of one kernel, of which `turned` makes the weight."""
    shapes, tensors = _with_bias(shape, layer.bias), _tensors(layer.weight, layer.bias)
    return Slot(name, kind, shapes, tensors, lambda arrays: [turned(arrays[0]), *arrays[1:]])


def _convolution(name: str, conv: nn.Conv2d) -> Slot:
    inside = conv.in_channels // conv.groups
    if conv.groups > 1 and inside == 1:
        multiplier = conv.out_channels // conv.in_channels
        return _slot(name, "depthwise", (*conv.kernel_size, conv.in_channels, multiplier), conv, _depthwise_kernel)
    return _slot(name, "conv", (*conv.kernel_size, inside, conv.out_channels), conv, _kernel)


def _separable(name: str, depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> Slot:
    first, second = _convolution(name, depthwise), _convolution(name, pointwise)
    return Slot(
        name,
        "separable",
        first.shapes + second.shapes,
        first.tensors + second.tensors,
        lambda arrays: [*first.fill(arrays[:1]), *second.fill(arrays[1:])],
    )


def _dense(name: str, dense: nn.Linear, flattened: Callable[[], Map | None]) -> Slot:
    def turned(kernel: Tensor) -> Tensor:
        if (shape := flattened()) is None:
            return kernel.T
        channels, height, width = shape
        return kernel.T.reshape(-1, height, width, channels).permute(0, 3, 1, 2).flatten(1)

    return _slot(name, "dense", (dense.in_features, dense.out_features), dense, turned)


def _flattened(name: str, dense: nn.Linear, channels: int, pooled: tuple[int, int] | None, maps: Maps) -> Map | None:
    """The map that a dense layer takes flattened, if it takes one."""
    if dense.in_features == channels:
        return None
    if pooled is not None and dense.in_features == channels * math.prod(pooled):
        return (channels, *pooled)
    known = maps()
    if known is not None:
        return known.get(dense.in_features)
    if not channels:  # no convolution before it
        if dense.in_features % 3 == 0:
            warn(
                f"{name} is taken for a layer of values without colour, as the file does not say its input's size; "
                "if it takes photos of three channels flattened, say input_size=(height, width)",
                CheckpointWarning,
            )
        return None
    side = math.isqrt(dense.in_features // channels)
    if side * side * channels != dense.in_features:
        raise CheckpointError(
            f"{name} takes {dense.in_features} values, which are not a square map of {counted(channels, 'channel')}, "
            "and Keras flattens in another order: say for which photos the network is, input_size=(height, width)"
        )
    warn(
        f"{name} is taken to follow a map of {side} x {side}, as the file does not say its input's size; "
        "if photos are not square, say input_size=(height, width)",
        CheckpointWarning,
    )
    return channels, side, side


def _batch_norm(name: str, norm: nn.BatchNorm2d) -> Slot:
    def fill(arrays: list[Tensor]) -> list[Tensor]:
        if norm.affine:
            return arrays
        if not bool((arrays[0] == 1).all() and (arrays[1] == 0).all()):
            raise CheckpointError(f"{name} has no weight and bias (affine=False), and the file has values for them")
        return arrays[2:]

    tensors = _tensors(norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return Slot(name, "batchnorm", ((norm.num_features,),) * 4, tensors, fill, norm)


def _match(layers: list[KerasLayer], slots: list[Slot]) -> Matching:
    pairs: list[tuple[KerasLayer, Slot]] = []
    missing: list[Slot] = []
    unexpected = [layer for layer in layers if layer.kind == "unsupported"]
    for kind in ("conv", "depthwise", "separable", "dense", "batchnorm"):
        own = [slot for slot in slots if slot.kind == kind]
        theirs = [layer for layer in layers if layer.kind == kind]
        shared = {slot.name for slot in own} & {layer.name for layer in theirs}
        by_name = {layer.name: layer for layer in theirs}
        if len(by_name) < len(theirs):
            shared = set()
        pairs += [(by_name[slot.name], slot) for slot in own if slot.name in shared]
        own = [slot for slot in own if slot.name not in shared]
        theirs = [layer for layer in theirs if layer.name not in shared]
        if len(own) == len(theirs):
            pairs += zip(theirs, own, strict=True)
            continue
        # The alignment that keeps most shapes says which layers are too many or too few.
        blocks = difflib.SequenceMatcher(None, [x.shapes for x in theirs], [x.shapes for x in own], autojunk=False)
        for _, start, stop, own_start, own_stop in blocks.get_opcodes():
            count = min(stop - start, own_stop - own_start)
            pairs += zip(theirs[start : start + count], own[own_start : own_start + count], strict=True)
            unexpected += theirs[start + count : stop]
            missing += own[own_start + count : own_stop]
    misshapen = tuple((layer, slot) for layer, slot in pairs if layer.shapes != slot.shapes)
    return Matching(tuple(pairs), tuple(missing), tuple(unexpected), misshapen)


def _is_headless(layers: list[KerasLayer], matching: Matching) -> bool:
    """A notop file: nothing is missing but the dense layers, and the file has none at all."""
    return bool(
        matching.pairs
        and all(slot.kind == "dense" for slot in matching.missing)
        and not any(layer.kind == "dense" for layer in layers)
    )


def _complaint(path: Path, model: nn.Module, matching: Matching) -> str:
    def shapes(each: Shapes) -> str:
        return ", ".join(map(str, each))

    lines = [f"{path} does not fit {type(model).__name__} (shapes as in Keras):"]
    lines += [f"  missing from the file: {slot.name} ({slot.kind} {shapes(slot.shapes)})" for slot in matching.missing]
    lines += [
        f"  unexpected in the file: {layer.name} ({layer.kind} {shapes(layer.shapes)})" for layer in matching.unexpected
    ]
    lines += [
        f"  another shape: {layer.name} has {shapes(layer.shapes)}, {slot.name} takes {shapes(slot.shapes)}"
        for layer, slot in matching.misshapen
    ]
    return "\n".join(lines)
