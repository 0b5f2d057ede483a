"""Checkpoints fitted to networks: by the names of their tensors, whatever stands before them, their shapes, and the
number of classes."""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.interrupts import FunctionMode

_log = logging.getLogger("torchviz_cnn")
_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What DataParallel, AveragedModel, torch.compile, Lightning Fabric and others put into names."""
_COPIES = ("teacher", "ema", "momentum", "target")
_COUNTERS = ("num_batches_tracked", "n_averaged")
"""Evaluation does not use them, and older checkpoints lack them."""
_OLD_NAMES = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"(\bdenselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),  # torchvision's DenseNets, as published
        (r"\bmlp\.linear_1\.", "mlp.0."),  # torchvision's vision transformers, as published
        (r"\bmlp\.linear_2\.", "mlp.3."),
        (r"\bweight_g$", "parametrizations.weight.original0"),  # weight_norm before it was a parametrisation
        (r"\bweight_v$", "parametrizations.weight.original1"),
        (r"^_conv_(stem|head)\.", r"\1.conv."),  # EfficientNet-Lite, as published for PyTorch
        (r"^_blocks\.(\d+)\._(\w+)_conv\.", r"blocks.\1.\2.conv."),
        (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.bn."),
        (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.bn."),
        (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.bn."),
        (r"^_bn0\.", "stem.bn."),
        (r"^_bn1\.", "head.bn."),
        (r"^_fc\.", "classifier."),
    )
)
Head = Literal["none"]
_CLASS_OPTIONS = ("num_classes", "n_classes", "classes", "num_labels")


def renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's tensors under the names of a network whose own tensors are given, as far as they are clear, and
    the names of those that it does not have, such as the weights of a loss."""
    known, names = _unwrapped_names(own), _unwrapped_names(state)
    prefix = _prefix(state, names, own, known)
    tops = {_family(name) for name in known}
    tensors: dict[str, Tensor] = {}
    other: list[str] = []
    for name, full in names.items():
        inner = _current(name.removeprefix(prefix), known)
        if inner not in known and _is_counter(full):
            continue
        if name.startswith(prefix) and (inner in known or _family(inner) in tops):
            tensors[known.get(inner, inner)] = state[full]
        else:
            other.append(full)
    return tensors, other


class NoHead(nn.Module):
    """Stands where a network's head was: it gives scores of no classes, (B, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :0]


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, head: Head | None = None) -> None:
    """Put tensors into a model by name. Raises CheckpointError, with the model unchanged, unless all its own fit.

    With the head `"none"` its last modules, of which the checkpoint has no tensor, give place to a `NoHead`.
    """
    absent = [] if head is None else _head(model, state)
    if head is not None and not absent:
        raise CheckpointError(f"head={head!r} is for a checkpoint without the head, and {source} is not one")
    whole = model.state_dict()
    whole = {name: value for name, value in whole.items() if not _lies_in(name, absent)} if absent else whole
    own = {name: value for name, value in whole.items() if isinstance(value, Tensor)}
    tensors, other = renamed(state, own)
    shared = {n: _like(tensors[n], own[n]) for n in own if n in tensors}
    shared = {n: value for n, value in shared.items() if _fits(value, own[n]) or not _is_counter(n)}
    odd = [n for n in shared if _kind(shared[n]) != _kind(own[n])]
    shapes = [n for n in shared if n not in odd and shared[n].shape != own[n].shape]
    missing = [n for n in own if n not in tensors and not _is_counter(n)]
    unexpected = [n for n in tensors if n not in own]
    if missing or unexpected or shapes or odd:
        fit = len(shared) - len(odd) - len(shapes)
        wrong = {
            "missing": missing,
            "unexpected": unexpected + other,
            "other shape:": [f"{n} is {tuple(shared[n].shape)}, not {tuple(own[n].shape)}" for n in shapes],
            "other kind:": [f"{n} is {_kind(shared[n])}, not {_kind(own[n])}" for n in odd],
        }
        parts = [f"{source} does not fit {type(model).__name__}: {fit} of its {len(own)} tensors match"]
        parts += [f"{what} {_few(names)}" for what, names in wrong.items() if names]
        left_out = _head(model, state) if missing and not (unexpected or shapes or odd) else []
        if left_out and all(_lies_in(name, left_out) for name in missing):
            parts.append(f"it has no head ({_few(left_out)}): head='none' loads the rest")
        raise CheckpointError("; ".join(parts))
    whole.update((n, value.to(own[n].dtype)) for n, value in shared.items())
    for name in absent:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, NoHead())
    model.load_state_dict(whole)  # with the model's own versions of formats, as the names and shapes are its own
    if other:
        warn(f"{source} has tensors besides {type(model).__name__}'s, not used: {_few(other)}", CheckpointWarning)
    unusable = [n for n in shared if not bool(whole[n].isfinite().all())]
    if unusable:
        warn(f"{source} has values that are not finite in {_few(unusable)}", CheckpointWarning)


def _head(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The modules after the last of which a checkpoint has a tensor, if those have any: the outermost of each."""
    own = {n: value for n, value in model.state_dict().items() if isinstance(value, Tensor) and not _is_counter(n)}
    tensors, _ = renamed(state, own)
    names = list(own)
    given = [place for place, name in enumerate(names, start=1) if name in tensors]
    last = max(given, default=len(names))
    kept = {module for name in names[:last] for module in _modules_of(name)}
    outermost = [next((m for m in _modules_of(name) if m not in kept), None) for name in names[last:]]
    return [] if None in outermost else [name for name in dict.fromkeys(outermost) if name]


def _lies_in(name: str, modules: list[str]) -> bool:
    return any(module in modules for module in _modules_of(name))


def _modules_of(name: str) -> list[str]:
    """The modules that a tensor lies in, from the outermost."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def sketch(factory: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A network whose weights have shapes and no values, where the factory allows it."""
    try:
        with _WithoutValues():
            return factory(**options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _log.info("%r needs values to make its network, so a whole one is made: %s", factory, error)
        return factory(**options)


def class_options(factory: Callable[..., nn.Module], state: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of classes of a checkpoint, as the option of a factory that takes one.

    Whichever tensors change shape with the number of classes are the head; what size they have in the checkpoint is
    the number. Auxiliary heads come before the main one, which decides.
    """
    try:
        accepted = inspect.signature(factory).parameters
        free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        option = next((name for name in _CLASS_OPTIONS if name in accepted), "num_classes" if free else None)
        if not state or option is None:
            return {}
        one, two = (sketch(factory, **{option: number}).state_dict() for number in (11, 13))
    except Exception as error:  # a factory of the user's may raise anything where it is tried out like this
        _log.info("the number of classes is the factory's own, as it cannot be tried out with others: %r", error)
        return {}
    tensors, _ = renamed(state, one)
    number = None
    for name, value in one.items():
        changing = [i for i, side in enumerate(value.shape) if side == 11 and two[name].shape[i] == 13]
        if changing and name in tensors and _kind(tensors[name]) == _kind(value) and tensors[name].ndim == value.ndim:
            number = tensors[name].shape[changing[0]]
    return {} if number is None else {option: number}


class _WithoutValues(FunctionMode):
    """Makes new tensors without memory; those that a constructor computes from (`arange`, `linspace`) have values."""

    _MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._MAKERS and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers, to the names as they are; unchanged where two would become one."""
    names = list(names)
    plain = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _prefix(
    state: Mapping[str, Tensor], names: Mapping[str, str], own: Mapping[str, Tensor], known: Mapping[str, str]
) -> str:
    """What stands before a model's own names in most of a checkpoint's; of a model and its copy, before the model's."""
    scores: Counter[str] = Counter()
    for name, full in names.items():
        parts = name.split(".", 8)
        for start in range(len(parts)):
            inner = _current(".".join(parts[start:]), known)
            if inner in known:
                before = "".join(f"{part}." for part in parts[:start])
                scores[before] += 1 + _fits(state[full], own[known[inner]])
    return max(scores, key=lambda p: (scores[p], not any(word in p for word in _COPIES)), default="")


def _current(name: str, known: Mapping[str, str]) -> str:
    """Today's name for an old one, where the model has that."""
    if name not in known:
        for old, new in _OLD_NAMES:
            if (today := old.sub(new, name)) in known:
                return today
    return name


def _family(name: str) -> str:
    """The outermost module of a name without its number: a module of the same family belongs to the model."""
    return re.sub(r"\d+", "", name.partition(".")[0])


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _like(value: Tensor, own: Tensor) -> Tensor:
    """Whole numbers again, where all of a checkpoint was stored in half precision."""
    if (_kind(value), _kind(own)) == ("floating point", "whole numbers"):
        double = value.double()
        if bool((double.isfinite() & (double == double.round())).all()):
            return double.to(own.dtype)
    return value


def _fits(value: Tensor, own: Tensor) -> bool:
    return _kind(value) == _kind(own) and value.shape == own.shape


def _kind(tensor: Tensor) -> str:
    """What must agree for a tensor to be the values of another: its layout, and whether it has whole numbers."""
    if tensor.is_nested or tensor.is_quantized:
        return "nested" if tensor.is_nested else "quantised"
    if tensor.layout is not torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return "floating point" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole numbers"


def _few(names: list[str]) -> str:
    return ", ".join(name[:200] for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
