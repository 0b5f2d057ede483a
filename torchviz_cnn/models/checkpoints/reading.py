"""Checkpoint files as data: read without running anything in them."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.core.errors import CheckpointError, did_you_mean, kind_of

_HOLDERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
_DEPTH = 8
"""How many dicts in one another are looked through for a state_dict; some files' hold themselves."""
DAMAGE = (
    *(RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, struct.error, zlib.error, zipfile.BadZipFile),
)
"""What reading a damaged file raises, depending on where the damage is."""
_SAVE = "in the program that made it, save torch.save(model.state_dict(), path)"


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file by name.

    The file holds a state_dict, or a dict with one in it. Nothing in it is executed. Raises CheckpointError, with the
    file's name, for one that is missing, truncated, pickled code, or without weights.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint file")
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise CheckpointError(f"no checkpoint {path}{near}")
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    state = find_state_dict(content, path)
    empty = next((name for name, tensor in state.items() if tensor.is_meta), None)
    if empty is not None:
        raise CheckpointError(f"{path} has no values for {empty}: it was saved from a model on the meta device")
    return state


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `scripts/train.py` noted in a `.safetensors` file next to the weights; nothing for other files."""
    from safetensors import safe_open

    if Path(path).suffix.lower() != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return dict(metadata) if {"model", "categories", "input_size", "mean", "std"} <= metadata.keys() else {}


def find_state_dict(content: Any, path: Path, depth: int = _DEPTH) -> dict[str, Tensor]:
    """The state_dict in what a checkpoint file holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {kind_of(content)}, not a state_dict; {_SAVE}")
    inside = {key: value for key, value in content.items() if _is_state_dict(value)}
    for key in _HOLDERS:
        if isinstance(content.get(key), Mapping) and not inside and depth:
            return find_state_dict(content[key], path, depth - 1)
    named = next((inside[key] for key in _HOLDERS if key in inside), None)
    if named is None and len(inside) == 1 and not _is_state_dict(content):
        named = next(iter(inside.values()))
    chosen = content if named is None and (not inside or _is_state_dict(content)) else named or {}
    # There may be a few numbers next to the weights.
    tensors = {n: value for n, value in chosen.items() if isinstance(n, str) and isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(str(key)[:60] for key in list(content)[:8]) or "nothing"
        raise CheckpointError(f"{path} holds no state_dict: its keys are {keys}; {_SAVE}")
    return tensors


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(tensor, Tensor) for name, tensor in value.items() if name != "_metadata")
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *DAMAGE) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        _refuse_other_formats(path)
        with torch.serialization.safe_globals(_plain_data()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to load in another way, which may run code
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (a {name[1]})" if name else ", or is damaged"
        raise CheckpointError(
            f"{path} holds pickled Python objects{what}, which could run code when loaded, and was not read; {_SAVE}"
        ) from error
    except CheckpointError:
        raise
    except DAMAGE as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint, it may be truncated: {first}") from error


def _refuse_other_formats(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    if start[:1] == b"\x80":  # a pickle, as torch wrote them before 1.6
        return
    if start[:2] != b"PK":
        known = {b"": "empty", b"\x89HDF": "a Keras file", b"vers": "a pointer of Git LFS: git lfs pull fetches it"}
        what = known.get(start[:4], "not a PyTorch checkpoint")
        what = "a safetensors file: give it the suffix .safetensors" if start[8:] == b"{" else what
        raise CheckpointError(f"{path} is {what}")
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2] or name for name in archive.namelist()}
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a state_dict; if you trust it, "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth') makes one"
        )
    if "data.pkl" not in parts:
        what = "a Keras file" if "model.weights.h5" in parts else "a zip archive, but not one of torch.save"
        raise CheckpointError(f"{path} is {what}")


def _plain_data() -> list[Any]:
    """What training scripts leave in checkpoints, numpy's scalars and options: data, and nothing that runs."""
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)}
    return [scalar, np.dtype, argparse.Namespace, *kinds]
