"""Keras weight files as a flat list of layers: legacy `.h5` (models and weights), `.weights.h5` and `.keras`.

Files are not trusted. Only numbers are read from them: no layer is rebuilt, no code or lambda inside is looked at,
links to other files are refused, and a number is read only after its shape is known to fit.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning, TorchvizError, did_you_mean
from torchviz_cnn.core.warn import warn
from torchviz_cnn.models.checkpoints.reading import DAMAGE

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
KERAS_EPSILON = 1e-3
MAX_CONFIG_BYTES = 64 << 20
MAX_SIDE = 4096
_LAYERS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense", "BatchNormalization")
_MODELS = ("Functional", "Sequential", "Model")


@dataclass(frozen=True, eq=False)
class KerasLayer:
    """One layer with weights: `kind` is conv, depthwise, separable, dense, batchnorm or unsupported.

    `shapes` are Keras' own (`(kh, kw, in, out)` for a kernel), `arrays` the HDF5 datasets, not read yet.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    arrays: tuple[Any, ...]
    epsilon: float = KERAS_EPSILON


@dataclass(frozen=True)
class LayerConfig:
    """What the model's description says about a layer, where the file has one."""

    class_name: str = ""
    epsilon: float = KERAS_EPSILON
    scale: bool = True
    center: bool = True


@dataclass(frozen=True)
class KerasFile:
    """The layers with weights, in the order of the model; `input_shape` (C, H, W) where the file says all of it."""

    layers: list[KerasLayer]
    input_shape: tuple[int, int, int] | None


@contextmanager
def keras_file(path: Path, max_bytes: int) -> Iterator[KerasFile]:
    """What a Keras file says of a model; it stays open inside the `with`.

    `max_bytes` bounds what is unpacked from a `.keras` archive. Raises `CheckpointError`, which names the file, where
    it is missing, truncated, neither HDF5 nor a Keras archive, or has no weights.
    """
    with opened(path, max_bytes) as (file, metadata):
        yield _read(file, metadata.get("config"), path)


@contextmanager
def opened(path: Path, max_bytes: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The HDF5 file in a Keras file, and the texts beside it: `config` (JSON) and `version` (of Keras), where known.

    Raises as `keras_file`.
    """
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError("reading Keras files needs h5py: pip install h5py") from error
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a Keras file")
    if not path.is_file():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"no Keras file {path}{did_you_mean(path.name, names)}")
    try:
        archive = _open_archive(path, max_bytes) if zipfile.is_zipfile(path) else None
        with h5py.File(path if archive is None else archive[0], "r") as file:
            if archive is None:
                config, version = (file.attrs.get(name) for name in ("model_config", "keras_version"))
                yield file, {"config": config, "version": version}
            else:
                yield file, archive[1]
    except TorchvizError:
        raise
    except DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read as a Keras file: {error}") from error


def _open_archive(path: Path, max_bytes: int) -> tuple[io.BytesIO, dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        if "model.weights.h5" not in sizes:
            raise CheckpointError(f"{path} is an archive without model.weights.h5: no .keras file")
        if sizes["model.weights.h5"] > max_bytes:
            raise CheckpointError(
                f"{path} unpacks to {sizes['model.weights.h5']:,} bytes of weights; at most {max_bytes:,} are read"
            )
        texts = {
            key: archive.read(name)
            for key, name in (("config", "config.json"), ("metadata", "metadata.json"))
            if sizes.get(name, MAX_CONFIG_BYTES) < MAX_CONFIG_BYTES
        }
        version = re.search(rb'"keras_version": *"([^"]+)"', texts.get("metadata", b""))
        beside = {"config": texts.get("config"), "version": version and version[1]}
        return io.BytesIO(archive.read("model.weights.h5")), beside


def _read(file: Any, config_text: Any, path: Path) -> KerasFile:
    nodes = _nodes(config_text)
    configs = _configs(nodes)
    root = file["model_weights"] if has_own(file, "model_weights", path) else file
    groups = attribute(root, "layer_names")
    if groups is None:
        layers = [_layer(name, arrays, configs) for name, arrays in _vars(file, "", path, set())]
    else:
        layers = [layer for name in groups for layer in _legacy_group(root, name, configs, path)]
    if not layers:
        raise CheckpointError(f"{path} is an HDF5 file without Keras weights: it has {sorted(file)[:8]}")
    return KerasFile(_in_model_order(layers, configs), _input_shape(nodes))


def _legacy_group(root: Any, name: str, configs: dict[str, LayerConfig], path: Path) -> list[KerasLayer]:
    """The layers of one top-level group, whose weights an attribute lists; a nested model has many."""
    group = child(root, name, path)
    weights: dict[str, list[str]] = {}
    for weight in attribute(group, "weight_names") or ():
        weights.setdefault(weight.rpartition("/")[0], []).append(weight)
    # A nested model lists trainable layers before frozen ones; their names (block1_conv1, conv2d_7) are numbered in
    # order.
    parents = sorted(weights, key=natural)
    if len(parents) > 1 and not configs:
        warn(
            f"{path} does not describe its nested model {name!r}: its layers are taken in the order of their names, "
            "which is that of their making; compare some outputs with Keras', or save the model as .keras",
            CheckpointWarning,
        )
    return [
        _layer(
            name if len(parents) == 1 else parent.rpartition("/")[2],
            [child(group, weight, path) for weight in weights[parent]],
            configs,
            hint=" ".join(weights[parent]),
        )
        for parent in parents
    ]


def _vars(group: Any, where: str, path: Path, visited: set[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Keras 3: a `vars` group of numbered arrays for each layer, nested as the model is."""
    if group in visited:
        raise CheckpointError(f"{path}: the group {where!r} is in two places, as in no file that Keras wrote")
    visited.add(group)
    if has_own(group, "vars", path):
        numbered = child(group, "vars", path)
        arrays = [child(numbered, key, path) for key in sorted(numbered, key=natural)]
        # A random layer's seed is an integer.
        arrays = [array for array in arrays if hasattr(array, "dtype") and array.dtype.kind == "f"]
        if arrays:
            stored = numbered.attrs.get("name")
            yield text_of(stored) if stored is not None else where.rpartition("/")[2], arrays
    skipped = ("vars", "seed_generator") if where else ("vars", "optimizer", "metrics", "compile_metrics")
    children = [(key, child(group, key, path)) for key in sorted(group, key=natural) if key not in skipped]
    groups = [(key, part) for key, part in children if hasattr(part, "keys")]
    # Without a description nothing says where a nested model stands among its neighbours: it is taken for the base
    # below the head, which is how nested models are used.
    for key, part in sorted(groups, key=lambda item: "layers" not in item[1]):
        yield from _vars(part, f"{where}/{key}", path, visited)


def _layer(name: str, arrays: Sequence[Any], configs: dict[str, LayerConfig], hint: str = "") -> KerasLayer:
    config = configs.get(name, LayerConfig())
    shapes = tuple(tuple(int(side) for side in array.shape) for array in arrays)
    ranks = tuple(len(shape) for shape in shapes)
    floats = all(array.dtype.kind == "f" for array in arrays)
    if config.class_name and config.class_name not in (*_LAYERS, *_MODELS):
        kind = "unsupported"  # as a Conv2DTranspose, whose kernel has the rank of a convolution's
    elif ranks in ((4, 4), (4, 4, 1)):
        kind = "separable"
    elif ranks in ((4,), (4, 1)):
        # A depthwise kernel (h, w, C, 1) has the shape of a convolution to one channel: only its name tells.
        depthwise = "depthwise" in f"{config.class_name} {name} {hint}".lower()
        kind = "depthwise" if depthwise else "conv"
    elif ranks in ((2,), (2, 1)):
        kind = "dense"
    elif set(ranks) == {1} and len(set(shapes)) == 1 and _is_batch_norm(len(ranks), f"{name} {hint}", config):
        kind = "batchnorm"
        arrays = _with_scale_and_center(arrays, name, hint, config)
        shapes = shapes[:1] * 4
    else:
        kind = "unsupported"
    return KerasLayer(name, kind if floats else "unsupported", shapes, tuple(arrays), config.epsilon)


def _is_batch_norm(count: int, names: str, config: LayerConfig) -> bool:
    """Two vectors of one length may be another layer's (LayerNormalization's), unless something says what they are."""
    text = f"{config.class_name} {names}".lower()
    return count == 4 or (
        count in (2, 3) and any(word in text for word in ("batchnorm", "batch_norm", "moving_", "bn"))
    )


def _with_scale_and_center(arrays: Sequence[Any], name: str, hint: str, config: LayerConfig) -> list[Any]:
    """Gamma, beta, mean and variance; ones and zeros for what a layer without `scale` or `center` has not."""
    one, zero = (np.broadcast_to(np.float32(value), arrays[0].shape) for value in (1, 0))
    if len(arrays) == 4:
        return list(arrays)
    if len(arrays) == 2:
        return [one, zero, *arrays]
    if not config.center or "gamma" in hint:
        return [arrays[0], zero, *arrays[1:]]
    if config.scale and "beta" not in hint:
        warn(
            f"{name!r} has three arrays and is taken for a BatchNorm without scale, as the file does not say which; "
            "one without center would be wrong, so save the model as .keras",
            CheckpointWarning,
        )
    return [one, *arrays]


def _in_model_order(layers: list[KerasLayer], configs: dict[str, LayerConfig]) -> list[KerasLayer]:
    """By the description where it knows every name; otherwise as they stand (Keras numbers layers in that order)."""
    position = {name: index for index, name in enumerate(configs)}
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names) or not all(name in position for name in names):
        return layers
    return sorted(layers, key=lambda layer: position[layer.name])


def _nodes(text: Any) -> list[tuple[str, dict[str, Any]]]:
    """Class and configuration of every layer of a model's description, in order; empty where there is none."""
    try:
        waiting = [] if text is None else [json.loads(text)]
    except (ValueError, RecursionError):
        waiting = []
    nodes: list[tuple[str, dict[str, Any]]] = []
    while waiting:
        node = waiting.pop()
        config = node.get("config") if isinstance(node, dict) else None
        if isinstance(config, list):  # Keras 1 and early Keras 2 wrote a Sequential's layers without a name around them
            config = {"layers": config}
        if isinstance(config, dict):
            nodes.append((str(node.get("class_name", "")), config))
            nested = config.get("layers")
            waiting.extend(reversed(nested) if isinstance(nested, list) else ())
    return nodes


def _configs(nodes: list[tuple[str, dict[str, Any]]]) -> dict[str, LayerConfig]:
    """Layers' names to what their description says."""
    configs: dict[str, LayerConfig] = {}
    for class_name, config in nodes:
        epsilon = config.get("epsilon")
        epsilon = float(epsilon) if isinstance(epsilon, (int, float)) else KERAS_EPSILON
        flags = (config.get(flag) is not False for flag in ("scale", "center"))
        if isinstance(config.get("name"), str):
            configs.setdefault(config["name"], LayerConfig(class_name, epsilon, *flags))
    return configs


def _input_shape(nodes: list[tuple[str, dict[str, Any]]]) -> tuple[int, int, int] | None:
    first = any(config.get("data_format") == "channels_first" for _, config in nodes)
    for _, config in nodes:
        shape = config.get("batch_shape", config.get("batch_input_shape"))
        if isinstance(shape, list) and len(shape) == 4:
            channels, height, width = shape[1:] if first else (shape[3], *shape[1:3])
            if all(type(side) is int and 0 < side <= MAX_SIDE for side in shape[1:]):
                return channels, height, width
    return None


def attribute(group: Any, name: str) -> list[str] | None:
    """A list of strings; Keras cuts one that is too long for HDF5 into `name0`, `name1`, ..."""
    parts = itertools.takewhile(group.attrs.__contains__, (f"{name}{part}" for part in itertools.count()))
    names = [name] if name in group.attrs else list(parts)
    return [text_of(value) for part in names for value in group.attrs[part]] if names else None


def text_of(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def natural(name: str) -> list[tuple[int, str]]:
    """`conv2d`, `conv2d_2`, `conv2d_10` in this order."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def has_own(group: Any, name: str, path: Path) -> bool:
    """Whether `group` holds `name`, itself and not as a link elsewhere."""
    link = group.get(name, getlink=True)
    if link is not None and type(link).__name__ != "HardLink":
        raise CheckpointError(f"{path}: {name!r} is a link to another place, which is not followed")
    return link is not None


def child(group: Any, name: str, path: Path) -> Any:
    """A group or dataset inside this very file."""
    for part in name.split("/"):
        if not has_own(group, part, path):
            raise CheckpointError(f"{path}: {name!r} is listed but not there")
        group = group[part]
    if getattr(group, "external", None) or getattr(group, "is_virtual", False):
        raise CheckpointError(f"{path}: the numbers of {name!r} are kept in another file, which is not followed")
    return group
