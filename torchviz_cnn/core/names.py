"""Names of layers: unwrapping a model, its dotted names, `name#k` for the k-th call, patterns, did-you-mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from torchviz_cnn.core.errors import LayerError, did_you_mean, kind_of

EVERY_CALL = "*"
LayerName = str | nn.Module
"""What names one layer: its dotted name, or the module itself."""
LayerPattern = LayerName | type[nn.Module]

_COMPILED = "_orig_mod"
_CALL = re.compile(r"^(?P<name>.*)#(?P<call>\d+|\*)$")


@dataclass(frozen=True)
class Call:
    """One call of a layer within one forward pass: its `index`-th, or every call where `index` is None."""

    name: str
    index: int | None

    def __str__(self) -> str:
        return call_name(self.name, self.index)


def call_name(name: str, index: int | None) -> str:
    """The name of a layer's `index`-th call: the first is the bare name.

    >>> call_name("relu", 0), call_name("relu", 1)
    ('relu', 'relu#1')
    """
    if index is None:
        return f"{name}#{EVERY_CALL}"
    return name if index == 0 else f"{name}#{index}"


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside `DataParallel`, `DistributedDataParallel`, `AveragedModel` and `torch.compile` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif is_compiled(model):
            model = model.get_submodule(_COMPILED)
        else:
            return model


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is the wrapper that `torch.compile` puts around another."""
    return len(module._modules) == 1 and _COMPILED in module._modules


def all_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by dotted name, the model itself first: as `named_modules`, in half of its time."""
    modules: dict[str, nn.Module] = {}
    waiting, seen = [("", model)], set[nn.Module]()
    while waiting:
        name, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        modules[name] = module
        children = module._modules
        if children:
            start = f"{name}." if name else ""
            for own, child in reversed(list(children.items())):
                if child is not None:
                    waiting.append((start + own, child))
    return modules


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every module below the model's root by dotted name, in the order of definition, wrappers left out."""
    layers: dict[str, nn.Module] = {}
    for name, module in all_modules(unwrap(model)).items():
        if _COMPILED in name:
            name = ".".join(part for part in name.split(".") if part != _COMPILED)
        if name and not is_compiled(module):
            layers[name] = module
    return layers


def one_or_several(layers: Any) -> list[Any]:
    """What was given for a layer or several, as a list; a module that holds others is one layer."""
    several = isinstance(layers, Iterable) and not isinstance(layers, (str, type, nn.Module))
    return list(layers) if several else [layers]


def resolve(model: nn.Module, layers: dict[str, nn.Module], name: LayerName) -> Call:
    """The call that a layer's name means: `"relu"` its first, `"relu#1"` its second, `"relu#*"` every one.

    A module of the model stands for its name. Raises LayerError for a name that the model does not have, with the
    nearest one that it has.
    """
    if isinstance(name, nn.Module):
        name = _name_of(model, layers, name)
    if not isinstance(name, str):
        raise LayerError(f"a layer is asked for as a module or by its dotted name, not by {kind_of(name)}")
    if name in layers:
        return Call(name, 0)
    call = _CALL.match(name)
    if call and call["name"] in layers:
        return Call(call["name"], None if call["call"] == EVERY_CALL else int(call["call"]))
    raise LayerError(_unknown(model, layers, call["name"] if call else name))


def one_call(model: nn.Module, layer: LayerName) -> str:
    """The name of one call of a layer; raises LayerError for a layer that is not there, and for every call of one."""
    call = resolve(model, named_layers(model), layer)
    if call.index is None:
        raise LayerError(f"{layer!r} is every call of {call.name!r}: name one, as {call.name!r} or '{call.name}#1'")
    return str(call)


def expand(model: nn.Module, layers: dict[str, nn.Module], patterns: Sequence[LayerPattern]) -> list[Call]:
    """The calls that names, globs and module types ask for; a glob or a type asks for every call.

    Raises LayerError for a name that does not exist and for a pattern that matches nothing.
    """
    calls: list[Call] = []
    for pattern in patterns:
        if isinstance(pattern, nn.Module) or (isinstance(pattern, str) and not _is_glob(pattern, layers)):
            calls.append(resolve(model, layers, pattern))
            continue
        if isinstance(pattern, str):
            glob = pattern.removesuffix(f"#{EVERY_CALL}")
            matches = [name for name in layers if fnmatchcase(name, glob)]
        elif isinstance(pattern, type) and issubclass(pattern, nn.Module):
            matches = [name for name, module in layers.items() if isinstance(module, pattern)]
        else:
            raise LayerError(f"layers are modules, names, glob patterns or module types, not {pattern!r}")
        if not matches:
            asked = repr(pattern) if isinstance(pattern, str) else pattern.__name__
            raise LayerError(f"no layer of {type(unwrap(model)).__name__} matches {asked}; {_all(layers)}")
        calls.extend(Call(name, None) for name in matches)
    return list(dict.fromkeys(calls))


def _is_glob(pattern: str, layers: dict[str, nn.Module]) -> bool:
    return pattern not in layers and re.search(r"[*?\[]", pattern) is not None


def _name_of(model: nn.Module, layers: dict[str, nn.Module], module: nn.Module) -> str:
    inside = unwrap(module)
    for name, layer in layers.items():
        if layer is module or layer is inside:
            return name
    what = "the whole model" if inside is unwrap(model) else f"not a layer of {type(unwrap(model)).__name__}"
    raise LayerError(f"this {type(inside).__name__} is {what}: give one of its layers; {_all(layers)}")


def _unknown(model: nn.Module, layers: dict[str, nn.Module], name: str) -> str:
    root = unwrap(model)
    try:
        asked = root.get_submodule(name) if name else None
    except AttributeError:
        asked = None
    for known, module in layers.items():
        if module is asked:
            return (
                f"{name!r} in {type(root).__name__} is the same module as {known!r}; "
                f"its calls are {known!r}, '{known}#1', ..."
            )
    near = did_you_mean(name, layers)
    return f"no layer {name!r} in {type(root).__name__}{near or ';'} {_all(layers)}"


def _all(layers: Iterable[str]) -> str:
    return f"layer_names(model, types=torch.nn.Module) lists all {len(list(layers))}."
