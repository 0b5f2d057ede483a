"""What all tests share: the data folder, and the proof that a model is given back exactly as it was."""

from __future__ import annotations

import importlib
import io
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# Most networks here are tiny, and two processes share the tests: more threads would only take turns.
torch.set_num_threads(1)
# Without a deadline of hypothesis, which counts the time that other processes take: see `within_limits`.
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, database=None)
settings.register_profile("endurance", max_examples=2000, deadline=None)
settings.load_profile("ci")
importlib.import_module("sympy")  # as PyTorch does with its first dispatch mode; it adds a warning filter


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """Scripts are importable by their bare names, as when they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of shared photos and checkpoints; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TORCHVIZ_CNN_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set TORCHVIZ_CNN_DATA")
    return folder


LONG = (
    "tests/docs/test_gallery.py::test_a_picture_is_what_its_lines_give[trust]",
    "tests/docs/test_blocks.py::test_the_blocks_of_a_page_run[docs/trust.md]",
    "tests/surveys/test_planted.py",
    "tests/test_benchmark.py::test_all_sections_run_and_peers_agree",
)
"""Tests that take the most time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first, so that of several processes none waits for one of them in the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


SECONDS = 5
"""How much of the processor's time one example of a fuzz test may take,"""
BYTES = 1_500_000_000
"""and how much memory."""


@contextmanager
def within_limits() -> Iterator[None]:
    """Assert that a block takes no more time and memory than one example may."""
    start, before, peak = time.process_time(), psutil.Process().memory_info().rss, _peak_memory()
    yield
    seconds, after = time.process_time() - start, _peak_memory()
    assert seconds < SECONDS, f"it took {seconds:.1f} s"
    assert after == peak or after - before < BYTES, f"it took {(after - before) / 1e6:.0f} MB"


def _peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Terminal(io.StringIO):
    """Stands for a terminal: `with contextlib.redirect_stderr(Terminal()) as terminal`."""

    def isatty(self) -> bool:
        return True


@contextmanager
def unchanged(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Assert that the block, even if it ends in an exception, leaves no trace on the model, tensors or global state.

    That is: training flags, parameters and buffers (identity, values, `.grad`, `requires_grad`), hooks, tensors and
    other attributes of the modules, the random states of torch, numpy and Python, grad, inference and other modes,
    signal handlers, warning filters, hooks on saved tensors, threads.
    """
    before = Snapshot.of(model, *tensors)
    try:
        yield
    finally:
        before.check(Snapshot.of(model, *tensors))


@dataclass
class Snapshot:
    """Everything about a model and the process that a method could hurt, in two kinds.

    `values` are compared by equality, `things` by identity (and kept alive, so that an address cannot return).
    """

    values: dict[str, Any] = field(default_factory=dict)
    things: dict[str, Any] = field(default_factory=dict)
    threads: set[threading.Thread] = field(default_factory=lambda: set(threading.enumerate()))

    @classmethod
    def of(cls, model: nn.Module, *tensors: Tensor) -> Snapshot:
        self = cls()
        for name, module in model.named_modules(remove_duplicate=False):
            self._module(name or "model", module)
        for i, tensor in enumerate(tensors):
            self._tensor(f"tensor {i}", tensor)
        self._process()
        return self

    def check(self, after: Snapshot) -> None:
        assert list(after.values) == list(self.values)
        assert list(after.things) == list(self.things)
        wrong = [key for key, value in self.values.items() if not _equal(value, after.values[key])]
        moved = [key for key, thing in self.things.items() if thing is not after.things[key]]
        assert not wrong, f"changed: {wrong}"
        assert not moved, f"replaced: {moved}"
        started = after.threads - self.threads
        for thread in started:
            thread.join(10)  # one that is ending has the time to
        assert not [thread for thread in started if thread.is_alive()], f"still running: {started}"

    def _module(self, name: str, module: nn.Module) -> None:
        self.things[name] = module
        for attribute, value in vars(module).items():
            if "hooks" in attribute and isinstance(value, dict):
                self.values[f"{name}.{attribute}"] = [(key, id(hook)) for key, hook in value.items()]
            elif isinstance(value, Tensor):  # as the weights that `weight_norm` computes
                self._tensor(f"{name}.{attribute}", value)
            elif not isinstance(value, dict):
                self.things[f"{name}.{attribute}"] = value
        self.values[f"{name}.training"] = module.training
        self.values[f"{name} parameters"] = list(module._parameters)
        self.values[f"{name} buffers"] = list(module._buffers)
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                self.things[f"{name}.{key}"] = None
            else:
                self._tensor(f"{name}.{key}", tensor)

    def _tensor(self, name: str, tensor: Tensor) -> None:
        self.things[name] = tensor
        self.values[f"{name} values"] = tensor.detach().clone()
        self.values[f"{name} address"] = tensor.data_ptr()
        if tensor.is_inference():
            return
        self.values[f"{name}.requires_grad"] = tensor.requires_grad
        self.values[f"{name} hooks"] = len(tensor._backward_hooks or {})
        if tensor.is_leaf:
            self.things[f"{name}.grad"] = tensor.grad
            self.values[f"{name}.grad values"] = None if tensor.grad is None else tensor.grad.clone()

    def _process(self) -> None:
        self.values["torch random state"] = torch.get_rng_state()
        self.values["numpy random state"] = np.random.get_state()
        self.values["Python random state"] = random.getstate()
        self.values["grad enabled"] = torch.is_grad_enabled()
        self.values["inference mode"] = torch.is_inference_mode_enabled()
        self.values["anomaly mode"] = torch.is_anomaly_enabled()
        self.values["deterministic"] = torch.are_deterministic_algorithms_enabled()
        self.values["default dtype"] = torch.get_default_dtype()
        self.values["threads of torch"] = torch.get_num_threads()
        functions = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        self.values["function modes"] = list(map(id, functions))
        self.values["dispatch modes"] = list(map(id, _get_current_dispatch_mode_stack()))
        top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # not in torch 2.4
        self.values["hooks on saved tensors"] = top(True) if top is not None else None
        self.values["warning filters"] = list(warnings.filters)
        self.values["signal handlers"] = {number.name: signal.getsignal(number) for number in signal.Signals}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.device == b.device
        return same and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and bool(a == b)
