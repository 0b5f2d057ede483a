"""Checkpoint files as data: read without running anything, fitted to a network by name and shape."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning, did_you_mean
from torchviz_cnn.core.warn import warn

_HOLDERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
_DAMAGE = (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What reading a damaged file raises, depending on where the damage is."""
_WRAPPERS = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file by name, wrappers' prefixes taken off.

    The file holds a state_dict, or a dict with one in it. Nothing in it is executed. Raises CheckpointError, with the
    file's name, for one that is missing, truncated, pickled code, or without weights.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint file")
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise CheckpointError(f"no checkpoint {path}{near}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return without_wrappers(find_state_dict(content, path))


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `scripts/train.py` noted in a `.safetensors` file beside the weights; nothing for other files."""
    from safetensors import safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    return dict(about) if {"model", "categories", "input_size", "mean", "std"} <= about.keys() else {}


def find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict in what a checkpoint file holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict; save model.state_dict()")
    inside = {key: value for key, value in content.items() if _is_state_dict(value)}
    for key in _HOLDERS:
        if isinstance(content.get(key), Mapping) and not inside:
            return find_state_dict(content[key], path)
    for key in _HOLDERS:
        if key in inside:
            return dict(inside[key])
    if _is_state_dict(content):
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if len(inside) == 1:
        return dict(next(iter(inside.values())))
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors and not inside:  # weights, and a few numbers beside them
        return tensors
    keys = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise CheckpointError(f"{path} holds no state_dict: its keys are {keys}")


def without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that DataParallel, DistributedDataParallel and torch.compile put before them."""
    for wrapper in _WRAPPERS * 2:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return {name.replace("._orig_mod.", "."): value for name, value in state.items()}


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put tensors into a model by name. Raises CheckpointError, with the model unchanged, unless all of them fit."""
    own = model.state_dict()
    state = _without_common_prefix(state, own)
    both = [name for name in own if name in state]
    odd = [f"{n} is {_kind(state[n])}, not {_kind(own[n])}" for n in both if _kind(state[n]) != _kind(own[n])]
    shapes = [
        f"{n} is {tuple(state[n].shape)}, not {tuple(own[n].shape)}" for n in both if state[n].shape != own[n].shape
    ]
    # Older checkpoints lack the counters of batches, which evaluation does not use.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected or shapes or odd:
        fit = sum(state[n].shape == own[n].shape and _kind(state[n]) == _kind(own[n]) for n in both)
        parts = [f"{source} does not fit {type(model).__name__}: {fit} of its {len(own)} tensors match"]
        wrong = {"missing": missing, "unexpected": unexpected, "other shape:": shapes, "other kind:": odd}
        parts += [f"{what} {_few(names)}" for what, names in wrong.items() if names]
        raise CheckpointError("; ".join(parts))
    model.load_state_dict(state, strict=False)
    unusable = [name for name in both if not bool(state[name].isfinite().all())]
    if unusable:
        warn(f"{source} has values that are not finite in {_few(unusable)}", CheckpointWarning)


def _kind(tensor: Tensor) -> str:
    """What must agree for a tensor to be the values of another: its layout, and whether it has whole numbers."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
    return "floating point" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole numbers"


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(tensor, Tensor) for name, tensor in value.items() if name != "_metadata")
    )


def _without_common_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A training framework's own prefix (`model.`, `net.`) off all names, if that makes the names the model's."""
    first = next(iter(state), "")
    prefix = first.partition(".")[0] + "."
    if "." in first and all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own):
        stripped = {name.removeprefix(prefix): value for name, value in state.items()}
        if any(name in own for name in stripped):
            return stripped
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] != b"\x80" and start != b"PK":
        raise CheckpointError(f"{path} is {'empty' if not start else 'not a PyTorch checkpoint'}")
    try:
        with _numpy_numbers():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).partition("\n")[0]
        named = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), first)
        raise CheckpointError(
            f"{path} holds pickled Python objects, which could run code when loaded, and was not read "
            f"({named.split(' was not')[0]}); save model.state_dict() instead"
        ) from error
    except _DAMAGE as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint, it may be truncated: {first}") from error


def _numpy_numbers() -> contextlib.AbstractContextManager[Any]:
    """Allow numpy's scalars, which training scripts leave in checkpoints: data, and nothing that runs."""
    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        return contextlib.nullcontext()
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)}
    return torch.serialization.safe_globals([scalar, np.dtype, *kinds])


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
