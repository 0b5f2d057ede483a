"""The PyTorch network of a Keras file: built from what the file says of itself, and filled with its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning, ModelError, TorchvizError, counted
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.models.checkpoints.reading import DAMAGE
from torchviz_cnn.models.keras.config import Call, Graph, Ref, read_graph
from torchviz_cnn.models.keras.files import MAX_SIDE, opened, text_of
from torchviz_cnn.models.keras.layers import build
from torchviz_cnn.models.keras.layers.table import LayerPlan
from torchviz_cnn.models.keras.preparation import preparation
from torchviz_cnn.models.keras.stored import Arrays, stored_arrays

_MOST_VALUES = 2**31
"""How many values a map may have, for one photo."""


@dataclass(frozen=True)
class Step:
    """One call: the modules that run one after the other, what they take, and what is not needed afterwards."""

    modules: tuple[str, ...]
    sources: tuple[Ref, ...]
    result: Ref
    done: tuple[Ref, ...]


class KerasNetwork(nn.Module):
    """A network read from a Keras file; its modules have the Keras layers' names, `<layer>_act` is what is inside one.

    Takes (B, C, H, W), and gives logits where the Keras network ends in a softmax, or in a sigmoid of one output.
    """

    def __init__(self, modules: Mapping[str, nn.Module], steps: Sequence[Step], graph: Graph) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps, self.inputs, self.outputs = tuple(steps), graph.inputs, graph.outputs

    def forward(self, *inputs: Tensor) -> Any:
        results: dict[Ref, Any] = dict(zip(self.inputs, inputs, strict=True))
        for step in self.steps:
            result: Any = tuple(results[source] for source in step.sources)
            for place, name in enumerate(step.modules):
                module = self._modules[name]
                assert module is not None
                result = module(result) if place else module(*result)
            _keep(results, step.result, result)
            for source in step.done:
                results.pop(source, None)
        outputs = tuple(results[output] for output in self.outputs)
        return outputs if len(outputs) > 1 else outputs[0]


def keras_network(path: str | Path, *, reverse: bool = True) -> Network:
    """The network of a `.keras`, `.h5` or `.hdf5` file that holds its own description, with its weights.

    Its module is in evaluation mode and gives logits: a final softmax, or sigmoid of one output, is left out. One that
    is taken to want blue, green, red (VGG, ResNet) takes red, green, blue with `reverse`: its first kernels are
    reversed. Raises CheckpointError and ModelError, which name the file.
    """
    path = Path(path)
    size = path.stat().st_size if path.is_file() else 0
    with opened(path, max_bytes=64 * 2**20 + 16 * size) as (file, beside):
        if beside["config"] is None:
            raise CheckpointError(
                f"{path} has weights and no description of its network: name the network that they are for, "
                "load_model('xception', weights=path), or build it and call load_keras_weights(model, path)"
            )
        try:
            graph = read_graph(beside["config"])
            shape = _input_shape(graph)
            preprocess, guessed, bgr = preparation(graph, shape)
            keras2 = text_of(beside["version"] or "3").startswith(("1.", "2."))
            builder = _Builder(keras2)
            image = torch.empty(1, shape[0], *preprocess.size, device="meta")
            network, _ = builder.network(graph, stored_arrays(file, graph, path), [image], "", final=True)
            _fill(network, builder.fills, 2**20 + 4 * max(size, file.id.get_filesize()))
            if bgr and reverse:
                first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
                first.weight = nn.Parameter(first.weight.detach().flip(1))
        except (ModelError, CheckpointError) as error:
            raise type(error)(f"{path} cannot be built: {error}" if str(path) not in str(error) else error) from error
    if not all(bool(tensor.sum().isfinite()) for tensor in network.state_dict().values()):
        warn(f"{path} has weights that are not finite numbers", CheckpointWarning)
    return Network(network, preprocess, None, path.name, str(path), guessed)


def _input_shape(graph: Graph) -> tuple[int, int | None, int | None]:
    """(C, H, W) of the only input; sides that the file leaves open are None."""
    if len(graph.inputs) > 1 or len(graph.outputs) > 1:
        counts = " and ".join(
            counted(len(refs), what) for refs, what in ((graph.inputs, "input"), (graph.outputs, "output"))
        )
        raise ModelError(f"it has {counts}: only networks of one photo and one output are read")
    shape = graph.input_shape()
    sides = shape[1:] if shape is not None and len(shape) == 4 else None
    if sides is None or not all(side is None or (type(side) is int and 0 < side <= MAX_SIDE) for side in sides):
        raise ModelError(f"its input is {shape!r:.80}, not photos (None, height, width, channels)")
    if any(layer.config.get("data_format") == "channels_first" for layer in graph.every_layer()):
        raise ModelError("it has layers whose data_format is 'channels_first'; only channels_last is read")
    height, width, channels = sides
    if channels is None or channels > 16:
        own = counted(channels, "channel") if channels else "any number of channels"
        raise ModelError(f"its input has {own}; photos have up to 16")
    return channels, height, width


def _fill(network: nn.Module, fills: Mapping[str, Any], most: int) -> None:
    """Put the numbers of the file into a network on the meta device. Raises CheckpointError for more than there are."""
    stored = [fill.args[0].nbytes for fill in fills.values() if hasattr(fill, "args")]
    if sum(stored) > most:
        raise CheckpointError(f"its arrays are said to have {sum(stored):,} bytes, more than the file itself")
    network.load_state_dict({name: fill() for name, fill in fills.items()}, assign=True)


class _Builder:
    """Makes networks on the meta device, and runs each layer there once: what does not fit shows, and costs nothing."""

    def __init__(self, keras2: bool) -> None:
        self.keras2 = keras2
        self.fills: dict[str, Any] = {}
        """What gives the values of parameters and buffers, by their full name."""

    def network(
        self, graph: Graph, arrays: Arrays, inputs: Sequence[Tensor], prefix: str, final: bool
    ) -> tuple[KerasNetwork, Any]:
        """The network of a graph, and what it gives for these inputs; with `final`, without its last activation."""
        if len(inputs) != len(graph.inputs):
            count = len(graph.inputs)
            raise ModelError(f"its model {graph.name!r} has {count} inputs, and is called with {len(inputs)}")
        names = _module_names(graph)
        modules: dict[str, nn.Module] = {}
        built: dict[str, tuple[str, ...]] = {}
        results: dict[Ref, Any] = dict(zip(graph.inputs, inputs, strict=True))
        steps: list[Step] = []
        end = _end(graph) if final else None
        for call in graph.calls:
            layer = call.result.layer
            taken = tuple(_result(results, source) for source in call.sources)
            last = call.result == end
            if layer in built:
                own = [modules[name] for name in built[layer]]
                given = _run(own, taken, call)
            else:
                own, given = self._modules(graph, call, arrays, taken, f"{prefix}{names[layer]}.", last)
            if last and _gives_probabilities(own[-1], given):
                own.pop()
            if layer not in built:
                built[layer] = _register(own, layer, names, modules)
            _keep(results, call.result, given)
            steps.append(Step(built[layer], tuple(call.sources), call.result, ()))
        outputs = tuple(_result(results, ref) for ref in graph.outputs)
        network = KerasNetwork(modules, _released(steps, graph), graph).eval()
        return network, outputs if len(outputs) > 1 else outputs[0]

    def _modules(
        self, graph: Graph, call: Call, arrays: Arrays, taken: tuple[Tensor, ...], prefix: str, last: bool
    ) -> tuple[list[nn.Module], Any]:
        """The module of a layer that is called for the first time, that of the activation in it, and what they give."""
        layer = graph.layers[call.result.layer]
        if layer.graph is not None:
            inside = arrays.inside.get(layer.name, Arrays())
            network, given = self.network(layer.graph, inside, taken, prefix, last)
            return [network], given
        own = arrays.own.get(layer.name, {})
        shapes = [tuple(tensor.shape) for tensor in taken]
        described = LayerPlan(
            layer.name, layer.class_name, layer.config, own, shapes, call.arguments, call.training, self.keras2
        )
        try:
            modules = [module.to("meta") for module in build(described) if module is not None]
        except TorchvizError:
            raise
        except DAMAGE as error:
            described.refuse(f"it cannot be built: {_first_line(error)}")
        self.fills |= {f"{prefix}{parameter}": fill for parameter, fill in described.fills.items()}
        return modules, _run(modules, taken, call)


def _run(modules: Sequence[nn.Module], taken: tuple[Tensor, ...], call: Call) -> Any:
    """What the modules of a layer give, on the meta device. Raises ModelError where they do not fit."""
    result: Any = taken
    try:
        for place, module in enumerate(modules):
            result = module.eval()(result) if place else module.eval()(*result)
    except DAMAGE as error:
        shapes = " and ".join(" x ".join(map(str, tensor.shape[1:])) for tensor in taken)
        raise ModelError(f"its layer {call.result.layer!r} does not run on {shapes}: {_first_line(error)}") from error
    parts = result if isinstance(result, tuple) else (result,)
    if any(part.numel() > _MOST_VALUES for part in parts):
        raise ModelError(f"its layer {call.result.layer!r} gives more than {_MOST_VALUES:,} values for one photo")
    return result


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _result(results: Mapping[Ref, Any], ref: Ref) -> Tensor:
    if not isinstance(results.get(ref), Tensor):
        raise ModelError(f"its layer {ref.layer!r} gives no output number {ref.output}")
    tensor: Tensor = results[ref]
    return tensor


def _keep(results: dict[Ref, Any], result: Ref, given: Any) -> None:
    parts = given if isinstance(given, tuple) else (given,)
    results.update((Ref(result.layer, result.call, place), part) for place, part in enumerate(parts))


def _end(graph: Graph) -> Ref | None:
    """The output of a graph, where it is the only result of a layer, and no other layer takes it."""
    layer = graph.outputs[0].layer
    calls = sum(call.result.layer == layer for call in graph.calls)
    used = any(source.layer == layer for call in graph.calls for source in call.sources)
    return graph.outputs[0] if len(graph.outputs) == calls == 1 and not used else None


def _gives_probabilities(module: nn.Module, output: Any) -> bool:
    """Whether this is a softmax of classes or the sigmoid of a single output, which the scores apply themselves."""
    if not isinstance(output, Tensor) or output.ndim != 2:
        return False
    return isinstance(module, nn.Softmax if output.shape[1] > 1 else nn.Sigmoid)


def _module_names(graph: Graph) -> dict[str, str]:
    """A name for the module of each layer: Keras' own, without what PyTorch does not take."""
    names, taken = dict[str, str](), set[str]()
    for layer in graph.layers:
        names[layer] = _unique(re.sub(r"[./#*?\[\]\s]", "_", layer) or "layer", taken)
        taken.add(names[layer])
    return names


def _unique(name: str, taken: set[str]) -> str:
    """The name, or, where another module has it or every module an attribute of that name, with a number behind it."""
    chosen, number = name, 1
    while chosen in taken or hasattr(KerasNetwork, chosen) or chosen in _ATTRIBUTES:
        chosen, number = f"{name}_{number}", number + 1
    return chosen


_ATTRIBUTES = {*vars(nn.Module()), "steps", "inputs", "outputs"}


def _register(
    own: Sequence[nn.Module], layer: str, names: Mapping[str, str], modules: dict[str, nn.Module]
) -> tuple[str, ...]:
    """Add the modules of a layer under its name and, for what is inside it, `<name>_act`. Gives the names."""
    chosen: list[str] = []
    for place, module in enumerate(own):
        name = _unique(f"{names[layer]}_act", {*names.values(), *modules}) if place else names[layer]
        modules[name] = module
        chosen.append(name)
    return tuple(chosen)


def _released(steps: Sequence[Step], graph: Graph) -> list[Step]:
    """The steps, each with the results that no later one takes: they need not be kept."""
    seen, released = set(graph.outputs), list[Step]()
    for step in reversed(steps):
        done = tuple(dict.fromkeys(source for source in step.sources if source not in seen))
        seen.update(done)
        released.append(Step(step.modules, step.sources, step.result, done))
    return released[::-1]
