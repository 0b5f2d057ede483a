"""Whatever a checkpoint or a Keras file holds, and however it is damaged: a network within limits, or our own error."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.conftest import within_limits
from tests.models.keras.files import archive, small

pytestmark = pytest.mark.slow
EVERY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
DTYPES = [torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]
NAMES = ["0.weight", "0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked", "3.weight", "3.bias"]
TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1.0, -3.0, float("nan"), float("inf")]),
)
KEYS = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES).map("module.{}".format),
    st.sampled_from(["state_dict", "model", "epoch", "", "."]),
    st.text(max_size=4),
    st.integers(),
    st.tuples(st.integers(), st.text(max_size=2)),
)
CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=10,
)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@cache
def whole(kind: str) -> bytes:
    """A checkpoint of `network` as a file of this kind."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = network().state_dict()
    if kind == "safetensors":
        return save(state)
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A checkpoint in which some bytes are others, cut off somewhere or longer than it was."""
    data = bytearray(whole(draw(st.sampled_from(["safetensors", "zip", "legacy"]))))
    early = st.integers(0, 400) | st.integers(0, len(data) - 1)  # where names, sizes and types stand
    for place, value in draw(st.lists(st.tuples(early, st.integers(0, 255)), max_size=6)):
        data[place] = value
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data) + draw(st.binary(max_size=9))


def load(path: Path) -> None:
    """Load a file; a network that is refused its weights keeps its own."""
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with within_limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tvc.load_model(model, path)
        except tvc.CheckpointError:
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@EVERY
@given(data=damaged() | st.binary(max_size=200), suffix=st.sampled_from([".pth", ".safetensors", ".h5", ".keras", ""]))
def test_damaged_files(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    load(path)


@EVERY
@given(content=CONTENT | st.dictionaries(st.sampled_from(NAMES), TENSORS))
def test_any_content(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with contextlib.suppress(UnicodeEncodeError):  # a name that no file holds
        torch.save(content, path)
        load(path)


# --- descriptions in Keras files ----------------------------------------------------------------------------------

WORDS = ("in", "conv", "nested", "Add", "Sequential", "Functional", "Lambda", "Reshape", "same", "relu", "-1", "", "\0")
SIDES = (-(10**9), -1, 0, 1, 2, 3, 10**9, 10**30)
JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from(SIDES) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: the list or dict, and the index or key in it."""
    if not isinstance(value, (list, dict)):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@st.composite
def descriptions(draw: st.DrawFn) -> Any:
    """The description of a network in which some values are others, gone, or those of another place."""
    description = small()[0]
    for _ in range(draw(st.integers(1, 4))):
        there = places(description)
        container, key = draw(st.sampled_from(there))
        change = draw(st.sampled_from(["other", "moved", "gone"]))
        if change == "gone":
            del container[key]
        else:
            source, name = draw(st.sampled_from(there))
            container[key] = draw(JSON) if change == "other" else copy.deepcopy(source[name])
    return description


@EVERY
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), end=st.floats(0, 1))
def test_damaged_keras_files(places: list[tuple[float, int]], end: float, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.keras", *small())
    data = bytearray(path.read_bytes())
    for place, value in places:
        data[int(place * (len(data) - 1))] = value
    path.write_bytes(data[: int(end * len(data))] if end < 0.5 else data)
    with within_limits(), contextlib.suppress(tvc.ModelError, tvc.CheckpointError):
        tvc.load_model(path)


@EVERY
@given(description=descriptions() | JSON)
def test_descriptions_of_keras_files(description: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    with contextlib.suppress(UnicodeEncodeError):
        archive(path, description, small()[1])
    with within_limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(tvc.ModelError, tvc.CheckpointError):
            net = tvc.load_model(path)
            if net.model.training or any(tensor.is_meta for tensor in net.model.state_dict().values()):
                raise AssertionError("a network that is not whole")
