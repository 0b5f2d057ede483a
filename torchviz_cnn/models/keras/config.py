"""What a Keras file says of its network, as data: layers, and in which order which of them takes which results.

Nothing is built and nothing executed here. Both ways of writing a graph are read, Keras 2's and Keras 3's.
"""

from __future__ import annotations

import graphlib
import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torchviz_cnn.core.errors import ModelError

MAX_CALLS = 5_000
"""How many calls of layers a network may have; nested models that call one another twice would double it each time."""
_MAX_DEPTH = 30
_MODELS = ("Functional", "Sequential", "Model")


@dataclass(frozen=True, order=True)
class Ref:
    """One result: of which call of which layer, and which of its outputs."""

    layer: str
    call: int = 0
    output: int = 0


@dataclass(frozen=True)
class Constant:
    """Numbers that stand in the description in place of a result."""

    values: Any


@dataclass(frozen=True)
class Call:
    """One call of a layer: its result, and its arguments: references, constants, numbers, slices, lists of these."""

    result: Ref
    arguments: tuple[Any, ...]
    training: bool = False

    @property
    def sources(self) -> list[Ref]:
        return [part for part in _flat(self.arguments) if isinstance(part, Ref)]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its class, its options, and, if it is a model itself, the graph inside."""

    name: str
    class_name: str
    config: Mapping[str, Any]
    graph: Graph | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: its layers as the file lists them, and the calls that its outputs need, in an order that works."""

    name: str
    layers: Mapping[str, Layer]
    calls: tuple[Call, ...]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]

    def every_layer(self) -> Iterator[Layer]:
        """All layers, those of nested models after their model."""
        for layer in self.layers.values():
            yield layer
            if layer.graph is not None:
                yield from layer.graph.every_layer()

    def input_shape(self) -> list[Any] | None:
        """What the file says of the input: (batch, height, width, channels), unknown sides as None."""
        layer = self.layers[self.inputs[0].layer]
        shape = layer.config.get("batch_shape", layer.config.get("batch_input_shape"))
        if not isinstance(shape, list) and self.calls:
            inside = self.layers[self.calls[0].result.layer].graph
            shape = inside.input_shape() if inside else None
        return shape if isinstance(shape, list) else None


def read_graph(text: str | bytes) -> Graph:
    """The network that a JSON description says. Raises ModelError, without the file's name, for what is none."""
    try:
        graph = _graph(json.loads(text), 0)
    except RecursionError:
        raise ModelError("its description is nested too deeply") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"its description is not one that Keras writes: {error!r}") from error
    if (count := _count(graph)) > MAX_CALLS:
        raise ModelError(f"it has {count:,} calls of layers; at most {MAX_CALLS:,} are built")
    return graph


def _count(graph: Graph) -> int:
    inside = {name: _count(layer.graph) if layer.graph else 1 for name, layer in graph.layers.items()}
    return sum(inside[call.result.layer] for call in graph.calls)


def _graph(node: Any, depth: int) -> Graph:
    if depth > _MAX_DEPTH:
        raise ModelError(f"its models are nested more than {_MAX_DEPTH} deep")
    class_name, config = str(node["class_name"]), node["config"]
    if class_name not in _MODELS:
        raise ModelError(
            f"it is of the class {class_name!r}, whose code is not in the file; only Sequential and Functional are read"
        )
    if isinstance(config, list):  # Keras 1 and early Keras 2 wrote a Sequential's layers without a name around them
        config = {"layers": config}
    layers: dict[str, Layer] = {}
    for entry in config["layers"]:
        options = entry["config"] if isinstance(entry["config"], dict) else {}
        name = str(entry.get("name") or options.get("name") or f"layer_{len(layers)}")
        if name in layers:
            raise ModelError(f"it has two layers of the name {name!r}")
        kind = str(entry["class_name"])
        layers[name] = Layer(name, kind, options, _graph(entry, depth + 1) if kind in _MODELS else None)
    name = str(config.get("name") or node.get("name") or class_name.lower())
    return _chain(name, layers, config) if class_name == "Sequential" else _network(name, layers, config)


def _chain(name: str, layers: dict[str, Layer], config: dict[str, Any]) -> Graph:
    """A Sequential: each layer takes what the one before it gives."""
    if not layers:
        raise ModelError(f"its model {name!r} has no layers")
    first = next(iter(layers.values()))
    if first.class_name != "InputLayer":
        shape = first.config.get("batch_input_shape", config.get("build_input_shape"))
        given = Layer("the input", "InputLayer", {"batch_shape": shape})
        layers = {given.name: given, **layers}
    names = list(layers)
    calls = tuple(Call(Ref(b), (Ref(a),)) for a, b in itertools.pairwise(names))
    return Graph(name, layers, calls, (Ref(names[0]),), (Ref(names[-1]),))


def _network(name: str, layers: dict[str, Layer], config: dict[str, Any]) -> Graph:
    """A Functional: every call says whose results it takes."""
    calls: dict[Ref, Call] = {}
    for entry, layer in zip(config["layers"], layers.values(), strict=True):
        for number, node in enumerate(entry.get("inbound_nodes") or ()):
            result = Ref(layer.name, number)
            calls[result] = _call(result, node)
    inputs, outputs = (_refs(config[key]) for key in ("input_layers", "output_layers"))
    # In Keras 2 the first call of a nested model may have the number 1: 0 is how it was made.
    count = {layer.name: sum(ref.layer == layer.name for ref in calls) for layer in layers.values() if layer.graph}
    mentioned = {(ref.layer, ref.call) for call in calls.values() for ref in call.sources}
    mentioned |= {(ref.layer, ref.call) for ref in outputs}
    shifted = {layer for layer, number in count.items() if (layer, number) in mentioned}
    calls = {ref: replace(call, arguments=_shifted(call.arguments, shifted)) for ref, call in calls.items()}
    outputs = _shifted(outputs, shifted)
    if not inputs or not outputs:
        raise ModelError(f"its model {name!r} has no {'outputs' if inputs else 'inputs'}")
    return Graph(name, layers, tuple(_in_order(name, calls, layers, inputs, outputs)), inputs, outputs)


def _in_order(
    name: str, calls: dict[Ref, Call], layers: Mapping[str, Layer], inputs: Iterable[Ref], outputs: Iterable[Ref]
) -> Iterator[Call]:
    """The calls that the outputs need, each after those whose results it takes, else as the file lists them."""
    needs: dict[Ref, list[Ref]] = {}
    waiting, given = list(outputs), {Ref(ref.layer, ref.call) for ref in inputs}
    while waiting:
        result = Ref(waiting[-1].layer, waiting.pop().call)
        if result in needs or result in given:
            continue
        if result not in calls:
            what = f"no layer {result.layer!r}" if result.layer not in layers else f"no such call of {result.layer!r}"
            raise ModelError(f"in its model {name!r} the result of {result.layer!r} is taken, but there is {what}")
        needs[result] = [Ref(ref.layer, ref.call) for ref in calls[result].sources]
        waiting += needs[result]
    sorter = graphlib.TopologicalSorter({result: set(taken) - given for result, taken in needs.items()})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(ref.layer for ref in reversed(error.args[1]))
        raise ModelError(f"in its model {name!r} layers wait for one another: {cycle}") from None
    position = {result: place for place, result in enumerate(calls)}
    ready: list[tuple[int, Ref]] = []
    while sorter.is_active():
        for result in sorter.get_ready():
            heapq.heappush(ready, (position[result], result))
        result = heapq.heappop(ready)[1]
        yield calls[result]
        sorter.done(result)


def _call(result: Ref, node: Any) -> Call:
    if isinstance(node, dict):  # Keras 3
        arguments, options = node["args"], node["kwargs"]
    else:  # Keras 2: [name, call, output, options], or a list of these
        parts = [node] if _is_ref(node) else node
        arguments = [part[:3] for part in parts]
        options = {key: value for part in parts if len(part) > 3 for key, value in part[3].items()}
    named = [value for key, value in options.items() if key not in ("training", "mask", "name") and value is not None]
    values = tuple(_value(part) for part in [*arguments, *named])
    return Call(result, values, options.get("training") is True)


def _value(part: Any) -> Any:
    """An argument of a call. Raises ModelError for what is neither a result nor numbers."""
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if _is_ref(part):
        return Ref(str(part[0]), int(part[1]), int(part[2]))
    if isinstance(part, list):
        return tuple(map(_value, part))
    kind, config = part.get("class_name"), part.get("config", {})
    if kind == "__keras_tensor__":
        return _value(config["keras_history"])
    if kind in ("__tensor__", "__numpy__"):
        return Constant(config["value"])
    if kind == "__ellipsis__":
        return ...
    if kind == "__tuple__":
        return tuple(map(_value, part["items"]))
    if kind == "__slice__" or {"start", "stop", "step"} == part.keys():
        bounds = [(config or part).get(key) for key in ("start", "stop", "step")]
        if all(bound is None or type(bound) is int for bound in bounds):
            return slice(*bounds)
    raise ModelError(f"a layer is called with a {kind!r}, which is neither a result nor numbers")


def _is_ref(part: Any) -> bool:
    plain = isinstance(part, list) and len(part) in (3, 4) and isinstance(part[0], str)
    return plain and type(part[1]) is int and type(part[2]) is int


def _refs(part: Any) -> tuple[Ref, ...]:
    """The references in what `input_layers` or `output_layers` says: one, a list, or a dict of them."""
    if isinstance(part, dict):
        part = list(part.values())
    value = _value(part)
    refs = list(_flat((value,)))
    if not all(isinstance(ref, Ref) for ref in refs):
        raise ModelError(f"its inputs or outputs are not results of layers: {part!r:.80}")
    return tuple(refs)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _shifted(value: Any, layers: set[str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_shifted(part, layers) for part in value)
    return replace(value, call=value.call - 1) if isinstance(value, Ref) and value.layer in layers else value
