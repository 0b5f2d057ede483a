"""Where the arrays of every layer of a Keras network are in its file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchviz_cnn.models.keras.config import Graph
from torchviz_cnn.models.keras.files import attribute, child, has_own, natural

_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True)
class Arrays:
    """What a file has for the layers of a network: arrays by the layer's name and their own, not read yet.

    Keras 3 numbers a layer's arrays, `0`, `1`, ...; older files name them, `kernel`, `bias`, ...
    """

    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    inside: Mapping[str, Arrays] = field(default_factory=dict)
    """Those of nested models."""


def stored_arrays(file: Any, graph: Graph, path: Path) -> Arrays:
    """The arrays of a network's layers in an open HDF5 file. Raises CheckpointError for links out of the file."""
    root = child(file, "model_weights", path) if has_own(file, "model_weights", path) else file
    if attribute(root, "layer_names") is None:
        return _numbered(root, graph, path)
    return _named(root, graph, path)


def _numbered(group: Any, graph: Graph, path: Path) -> Arrays:
    """Keras 3: the groups of layers are called by their class and counted, whatever the layers' names are."""
    container = next((name for name in _CONTAINERS if has_own(group, name, path)), None)
    layers = child(group, container, path) if container else {}
    counts: Counter[str] = Counter()
    own: dict[str, Mapping[str, Any]] = {}
    inside: dict[str, Arrays] = {}
    for name, layer in graph.layers.items():
        kind = _snake_case(layer.class_name)
        key = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        part = child(layers, key, path) if layers and has_own(layers, key, path) else {}
        if layer.graph is not None:
            inside[name] = _numbered(part, layer.graph, path) if part else Arrays()
        elif part and has_own(part, "vars", path):
            arrays = child(part, "vars", path)
            own[name] = {number: child(arrays, number, path) for number in sorted(arrays, key=natural)}
    return Arrays(own, inside)


def _snake_case(name: str) -> str:
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _named(root: Any, graph: Graph, path: Path) -> Arrays:
    """Older files: a group for each layer at the top, in which an attribute lists the arrays' names."""
    own: dict[str, Mapping[str, Any]] = {}
    inside: dict[str, Arrays] = {}
    for name, layer in graph.layers.items():
        group = child(root, name, path) if has_own(root, name, path) else None
        weights = attribute(group, "weight_names") if group is not None else None
        listed = {weight: child(group, weight, path) for weight in weights or ()}
        if layer.graph is None:
            own[name] = {_leaf(weight): array for weight, array in listed.items()}
        else:
            names = {nested.name for nested in layer.graph.every_layer()}
            groups = _by_layer(listed)
            inside[name] = _distributed(layer.graph, groups, _index(groups, names))
    return Arrays(own, inside)


def _by_layer(listed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for weight, array in listed.items():
        groups[weight.rpartition("/")[0]][_leaf(weight)] = array
    return groups


def _index(groups: Mapping[str, Any], names: Set[str]) -> Mapping[str, list[str]]:
    """The paths of groups by the layer's name that they end in, which may have slashes.

    Last those that an old TensorFlow made unique with a number, `name_1`, where no layer is called so.
    """
    index: defaultdict[str, list[str]] = defaultdict(list)
    parts = {path: path.split("/") for path in groups}
    for path, words in parts.items():
        for count in range(1, min(len(words), 4) + 1):
            index["/".join(words[-count:])].append(path)
    for path, words in parts.items():
        if words[-1] not in names:
            index[re.sub(r"_\d+$", "", words[-1])].append(path)
    return index


def _distributed(graph: Graph, groups: dict[str, dict[str, Any]], index: Mapping[str, list[str]]) -> Arrays:
    """A nested model's arrays, which are listed without its structure: each layer takes the first of its name."""
    own: dict[str, Mapping[str, Any]] = {}
    inside: dict[str, Arrays] = {}
    for name, layer in graph.layers.items():
        if layer.graph is not None:
            inside[name] = _distributed(layer.graph, groups, index)
        elif (path := next((each for each in index.get(name, ()) if each in groups), None)) is not None:
            own[name] = groups.pop(path)
    return Arrays(own, inside)


def _leaf(weight: str) -> str:
    return weight.rpartition("/")[2].partition(":")[0]
