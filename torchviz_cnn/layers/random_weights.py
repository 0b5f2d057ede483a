"""Networks that have learned nothing: a copy of a model whose weights are drawn anew, of all layers or of some."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, ModelError
from torchviz_cnn.core.names import named_layers
from torchviz_cnn.hooks.inputs import input_for
from torchviz_cnn.hooks.interrupts import FunctionMode
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, Network
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import input_channels

_IMAGES = 4
"""How many pictures of noise the statistics of normalisations are measured on."""
_PARAMETRIZED = ".parametrizations"


class RandomLayers:
    """A copy of a model, of which the layers that are asked for have random weights, and all others the model's.

    A layer is what has weights, with what follows it and has only a number or two for each channel, as normalisations
    have: convolution and BatchNorm become random together, as the statistics of one belong to the weights of the other.

    Args:
        model: a module or a Network; it is not changed.
        x: an input (1, C, H, W); the copy runs on it once, for the order of the layers.

    Raises ModelError for a model without weights.
    """

    def __init__(self, model: Model, x: Tensor) -> None:
        with untouched(model) as module:
            copy, self._original = _copied(module), layers_with_weights(module)
        self._copy = layers_with_weights(copy)
        self._groups = _with_normalisations(self._copy, _order(copy, input_for(copy, x), self._copy))
        self._module, self._shape = copy, tuple(x.shape[1:])
        self._drawn: set[tuple[int, str]] = set()
        self._done: set[Tensor] = set()
        self.model: Model = replace(model, model=copy) if isinstance(model, Network) else copy
        """The copy; a Network where the model is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The layers on which the output depends, in the order in which they run."""
        return tuple(self._groups)

    def draw(self, names: Iterable[str], seed: int) -> Model:
        """The copy, with random weights in these layers alone. The weights of a layer depend on (seed, layer) alone."""
        wanted = [(seed, part) for name in reversed(self.names) if name in set(names) for part in self._groups[name]]
        if not self._drawn <= set(wanted):  # those that are not wanted may share weights with others
            self._restore()
        for number, name in wanted:
            if (number, name) not in self._drawn:
                _redraw(self._copy[name], name, number, self._done)
        self._drawn = set(wanted)
        measure_statistics(self._module, [m for _, name in wanted for m in self._copy[name]], self._shape, seed)
        return self.model

    def _restore(self) -> None:
        for _, name in self._drawn:
            for module, original in zip(self._copy[name], self._original[name], strict=True):
                _copy_values(original, module)
        self._drawn.clear()
        self._done.clear()


def random_copy(model: Model, seed: int = 0, shape: tuple[int, int, int] | None = None) -> Model:
    """A copy of a model in evaluation mode, all of whose weights are random: a network that has learned nothing.

    Weights are those that the layers begin with (their own `reset_parameters`). What that does not change, as a
    parameter of a module without it, becomes normal numbers of its own mean and standard deviation. Running statistics
    of normalisations are measured anew, on noise: with the statistics of other weights, or with 0 and 1, nothing of
    an image would reach the output of a deep network.

    Args:
        model: a module or a Network, which is not changed; of a Network the copy is one, too.
        seed: seed of the weights, which are the same on every device.
        shape: (C, H, W) of the input; by default that of a Network. It is needed where there are running statistics.

    Raises:
        ModelError: for a model without weights.
        InputError: where the shape is needed.

    Adebayo et al., arXiv 1810.03292.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    >>> bool((random_copy(model)[0].weight == model[0].weight).any())
    False
    """
    checks.whole_number("seed", seed, 0)
    with untouched(model) as module:
        copy = _copied(module)
    layers = layers_with_weights(copy)
    normalisations = _with_statistics(module for modules in layers.values() for module in modules)
    if shape is None and isinstance(model, Network):
        shape = (input_channels(copy), *model.input_size)
    if shape is None and normalisations:
        raise InputError(f"{type(copy).__name__} has running statistics: say the shape (C, H, W) of its input")
    done: set[Tensor] = set()
    for name in reversed(layers):
        _redraw(layers[name], name, seed, done)
    if shape is not None:
        measure_statistics(copy, normalisations, shape, seed)
    return replace(model, model=copy) if isinstance(model, Network) else copy


def layers_with_weights(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules with parameters or running statistics of their own, by name, in the order of definition.

    What parametrizes a weight belongs to the layer whose weight it is. The model itself goes by the name of its class.
    Raises ModelError for a model without weights.
    """
    layers: dict[str, list[nn.Module]] = {}
    for name, module in {"": model, **named_layers(model)}.items():
        if any(p is not None for p in module._parameters.values()) or _with_statistics([module]):
            layers.setdefault(name.partition(_PARAMETRIZED)[0] or type(model).__name__, []).append(module)
    if not any(_parameters(modules) for modules in layers.values()):
        raise ModelError(f"{type(model).__name__} has no weights: there is nothing to make random")
    return layers


def _redraw(modules: list[nn.Module], name: str, seed: int, done: set[Tensor]) -> None:
    """Give the parameters of one layer new values in place. They are drawn on the CPU, the same for every device.

    Those in `done` have new values, which they share with a layer behind this one; the others are added to it.
    """
    with torch.no_grad(), _seeded(f"{seed} {name}"):
        for module in modules:
            fresh = _copied(module).cpu()
            if callable(reset := getattr(fresh, "reset_parameters", None)):
                reset()
            for key, parameter in module._parameters.items():
                if parameter is None or not parameter.is_floating_point() or parameter in done:
                    continue
                done.add(parameter)
                new: Tensor | None = fresh._parameters.get(key)
                if new is None or new.shape != parameter.shape or torch.equal(new.to(parameter), parameter):
                    own = parameter.float()
                    new = torch.randn(own.shape).to(own.device) * own.std(correction=0) + own.mean()
                parameter.copy_(new)


def measure_statistics(model: nn.Module, modules: Iterable[nn.Module], shape: tuple[int, ...], seed: int) -> None:
    """Set the running statistics of some modules to those that pictures of noise (C, H, W) have there."""
    normalisations = _with_statistics(modules)
    if not normalisations:
        return
    before = [(module, module.momentum) for module in normalisations]
    weight = next(p for p in model.parameters() if p.is_floating_point())
    try:
        for module in normalisations:
            module.reset_running_stats()
            module.training, module.momentum = True, None  # the mean of the batches, of which there is one
        with torch.no_grad(), _seeded(f"{seed} statistics"), HookManager(model) as hooks:
            hooks.run(noise(shape).to(weight), stop_early=False)
    finally:
        for module, momentum in before:
            module.training, module.momentum = False, momentum


def noise(shape: tuple[int, ...]) -> Tensor:
    """Pictures of noise with as much in coarse structures as in fine ones, as photos have it; mean 0, deviation 1."""
    channels, *sides = shape
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sides)]
    octaves = [max(1, min(sides) // 2**k) for k in range(8)]
    pictures = torch.zeros(_IMAGES, *shape)
    for side in dict.fromkeys(octaves):
        grid = torch.randn(_IMAGES, channels, *[max(1, side * length // min(sides)) for length in sides])
        pictures += F.interpolate(grid, tuple(sides), mode=mode, align_corners=False)
    return (pictures - pictures.mean()) / pictures.std()


def _with_statistics(modules: Iterable[nn.Module]) -> list[Any]:
    """The BatchNorms among these that keep running statistics."""
    norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [module for module in norms if module.running_mean is not None]


class _Copies(FunctionMode):
    """Lets `deepcopy` copy tensors with a graph, as a weight that `weight_norm` has computed, without their graph."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            memo: dict[int, Any] = args[1]
            return memo.setdefault(id(args[0]), args[0].detach().clone())
        return func(*args, **(kwargs or {}))


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a frozen model."""
    with _Copies():
        copy = deepcopy(module)
    return copy


def _copy_values(original: nn.Module, module: nn.Module) -> None:
    """Give one module the parameters and buffers of another."""
    with torch.no_grad():
        for its, mine in ((original._parameters, module._parameters), (original._buffers, module._buffers)):
            for key, value in its.items():
                if value is not None:
                    mine[key].copy_(value)  # type: ignore[union-attr]


def _parameters(modules: list[nn.Module]) -> list[Tensor]:
    return [p for module in modules for p in module._parameters.values() if p is not None]


def _order(model: nn.Module, x: Tensor, layers: dict[str, list[nn.Module]]) -> list[str]:
    """The layers on which the output depends, in the order in which they run.

    A layer with others inside runs before these. Layers whose weights another module uses, so that they do not run
    themselves, stand behind the one that was defined before them.
    """
    ran: dict[str, int] = {}
    inside = {name: [one for one in layers if one == name or one.startswith(f"{name}.")] for name in layers}
    known = [name for name in layers if name in named_layers(model)]

    def note(name: str, output: Any) -> None:
        ran.setdefault(name.partition("#")[0], len(ran))

    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.enable_grad(), HookManager(model) as hooks:
        hooks.on_forward([f"{name}#*" for name in known], note)
        output = hooks.run(x.clone(), stop_early=False)
        idle = [name for name in layers if not any(one in ran for one in inside[name])]
        used = _used(output, {name: _parameters(layers[name]) for name in idle})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    places: dict[str, int] = {}
    place = -1
    for name in layers:
        place = min((ran[one] for one in inside[name] if one in ran), default=place)
        if name not in idle or name in used:
            places[name] = place
    return sorted(places, key=lambda name: places[name])


def _used(output: Any, weights: dict[str, list[Tensor]]) -> set[str]:
    """The layers with weights to which a gradient of the output comes back."""
    every = [weight for several in weights.values() for weight in several if weight.requires_grad]
    numbers = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not every or not numbers:
        return set(weights)
    gradients = torch.autograd.grad([number.sum() for number in numbers], every, allow_unused=True)
    reached = {id(weight) for weight, gradient in zip(every, gradients, strict=True) if gradient is not None}
    return {name for name, several in weights.items() if any(id(weight) in reached for weight in several)}


def _with_normalisations(layers: dict[str, list[nn.Module]], order: list[str]) -> dict[str, list[str]]:
    """Layers in their order, each with those behind it that have no more than a number or two for each channel."""
    groups: dict[str, list[str]] = {}
    for name in order:
        small = all(weight.numel() == (len(weight) if weight.ndim else 1) for weight in _parameters(layers[name]))
        last = next(reversed(groups), None)
        if small and last is not None:
            groups[last].append(name)
        else:
            groups[name] = [name]
    return groups


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """Seed everything that a layer may draw its weights from, on the CPU, and put it back."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        random.seed(number)
        np.random.seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
