"""Weights of Keras models for PyTorch networks."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning
from torchviz_cnn.core.warn import warn
from torchviz_cnn.models.keras_files import KerasLayer, keras_layers

Model = TypeVar("Model", bound=nn.Module)
Shapes = tuple[tuple[int, ...], ...]


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


def load_keras_weights(model: Model, path: str | os.PathLike[str]) -> Model:
    """Fill a network with the weights of a Keras file.

    Layers are paired by name where both sides use the same one (`block3_sepconv1` of Xception), otherwise in the order
    of the model, kind by kind: convolutions, depthwise and separable ones, dense layers, BatchNorm (with its
    statistics and its epsilon: the file's, or Keras' default 0.001). This fits torchvision's VGGs, the networks of
    this package and other plain chains of such layers. Kernels are transposed; the first dense layer after a flatten
    is reordered from Keras' (H, W, C) to (C, H, W), the map being square. The Keras model's final softmax or sigmoid
    is no part of the result, which gives logits.

    Args:
        model: the network; it is changed in place, or not at all.
        path: a legacy `.h5` model or weight file, a `.weights.h5` or a `.keras`, written by any Keras. A file without
            any dense layer ("notop") fills the rest of the network.

    Returns:
        The same model.

    Raises:
        CheckpointError: for a file that cannot be read, and with all that is missing, unexpected or of another shape.
        ImportError: where h5py is not installed.

    Warns:
        CheckpointWarning: where dense layers keep their values, and where a nested model's order had to be guessed.
    """
    path = Path(path)
    slots = _slots(model)
    elements = sum(t.numel() for t in model.state_dict().values())
    # Room for double precision, two optimiser moments of each, and HDF5's own bookkeeping.
    with keras_layers(path, max_bytes=64 * 2**20 + 24 * elements) as layers:
        matching = _match(layers, slots)
        headless = _is_headless(layers, matching)
        if (matching.missing and not headless) or matching.unexpected or matching.misshapen:
            raise CheckpointError(_complaint(path, model, matching))
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


def _slots(model: nn.Module) -> list[Slot]:
    """The layers of `model` that take weights, as defined."""
    slots = list(_walk(model, "", [0]))
    taken = {id(tensor) for slot in slots for tensor in slot.tensors}
    others = [name for name, parameter in model.named_parameters() if id(parameter) not in taken]
    if others:
        raise CheckpointError(
            f"{type(model).__name__} has weights that Keras files are not read for: {', '.join(others[:8])}"
            f"{' ...' if len(others) > 8 else ''}; only convolutions, dense layers and BatchNorm are"
        )
    return slots


def _walk(module: nn.Module, name: str, channels: list[int]) -> Iterator[Slot]:
    """`channels` holds the width of the last convolution: a wider dense layer comes after a flatten."""
    children = dict(module.named_children())
    if list(children) == ["depthwise", "pointwise"]:
        depthwise, pointwise = children["depthwise"], children["pointwise"]
        if isinstance(depthwise, nn.Conv2d) and isinstance(pointwise, nn.Conv2d) and depthwise.bias is None:
            channels[0] = pointwise.out_channels
            yield _separable(name, depthwise, pointwise)
            return
    if isinstance(module, nn.Conv2d):
        channels[0] = module.out_channels
        yield _convolution(name, module)
    elif isinstance(module, nn.Linear):
        yield _dense(name, module, channels[0])
        channels[0] = module.out_features
    elif isinstance(module, nn.BatchNorm2d) and module.affine and module.running_mean is not None:
        yield _batch_norm(name, module)
    for child_name, child in children.items():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, channels)


def _with_bias(shape: tuple[int, ...], bias: Tensor | None) -> Shapes:
    return (shape,) if bias is None else (shape, tuple(bias.shape))


def _tensors(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)


def _depthwise_kernel(kernel: Tensor) -> Tensor:
    """Keras' `(h, w, C, M)` to `(C * M, 1, h, w)`."""
    return kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None]


def _convolution(name: str, conv: nn.Conv2d) -> Slot:
    rows, columns = conv.kernel_size
    inside = conv.in_channels // conv.groups
    if conv.groups > 1 and inside == 1:
        shape = (rows, columns, conv.in_channels, conv.out_channels // conv.in_channels)
        return Slot(
            name,
            "depthwise",
            _with_bias(shape, conv.bias),
            _tensors(conv.weight, conv.bias),
            lambda arrays: [_depthwise_kernel(arrays[0]), *arrays[1:]],
        )
    return Slot(
        name,
        "conv",
        _with_bias((rows, columns, inside, conv.out_channels), conv.bias),
        _tensors(conv.weight, conv.bias),
        lambda arrays: [arrays[0].permute(3, 2, 0, 1), *arrays[1:]],
    )


def _separable(name: str, depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> Slot:
    rows, columns = depthwise.kernel_size
    multiplier = depthwise.out_channels // depthwise.in_channels
    across = _with_bias((1, 1, pointwise.in_channels, pointwise.out_channels), pointwise.bias)
    return Slot(
        name,
        "separable",
        ((rows, columns, depthwise.in_channels, multiplier), *across),
        _tensors(depthwise.weight, pointwise.weight, pointwise.bias),
        lambda arrays: [_depthwise_kernel(arrays[0]), arrays[1].permute(3, 2, 0, 1), *arrays[2:]],
    )


def _dense(name: str, dense: nn.Linear, channels: int) -> Slot:
    side = 1
    if channels and dense.in_features % channels == 0:
        side = math.isqrt(dense.in_features // channels)
    flattened = side > 1 and side * side * channels == dense.in_features

    def fill(arrays: list[Tensor]) -> list[Tensor]:
        kernel = arrays[0].T
        if flattened:
            kernel = kernel.reshape(-1, side, side, channels).permute(0, 3, 1, 2).flatten(1)
        return [kernel, *arrays[1:]]

    shapes = _with_bias((dense.in_features, dense.out_features), dense.bias)
    return Slot(name, "dense", shapes, _tensors(dense.weight, dense.bias), fill)


def _batch_norm(name: str, norm: nn.BatchNorm2d) -> Slot:
    tensors = _tensors(norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return Slot(name, "batchnorm", ((norm.num_features,),) * 4, tensors, lambda arrays: arrays, norm)


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
            both = min(stop - start, own_stop - own_start)
            pairs += zip(theirs[start : start + both], own[own_start : own_start + both], strict=True)
            unexpected += theirs[start + both : stop]
            missing += own[own_start + both : own_stop]
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
    def shapes(of: Shapes) -> str:
        return ", ".join(map(str, of))

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
