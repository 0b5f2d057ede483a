"""Calls by the hundred: memory, tensors, threads and open files stay what they are after the first ones."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import psutil
import pytest
import torch

from tests import networks
from tests.networks import images
from tests.test_host import CALLS

CALLS_IN_CI = 10
MAIN = [
    "capture",
    "compare",
    "deconvnet",
    "describe",
    "filter_patterns",
    "grad_cam",
    "guided_grad_cam",
    "integrated_gradients",
    "maximize",
    "occlusion",
    "predict",
    "report",
    "saliency",
    "smooth_grad",
    "top_activations",
]
MEGABYTES = 24
"""What memory may vary by, as the allocator keeps what it was given back."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning"),
]


def counts() -> tuple[int, int, int, int]:
    """Tensors, threads of Python, threads of the process and open files."""
    gc.collect()
    process = psutil.Process()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return tensors, threading.active_count(), process.num_threads(), process.num_fds()


@pytest.mark.parametrize("name", MAIN)
def test_nothing_grows(name: str, tmp_path: Path) -> None:
    calls = int(os.environ.get("ENDURANCE_CALLS", CALLS_IN_CI))
    model, x = networks.residual(), images(2)

    def call() -> None:
        CALLS[name](model, x, "layer1", tmp_path)

    for _ in range(8):
        call()
    before, memory = counts(), psutil.Process().memory_info().rss
    for _ in range(calls):
        call()
    assert all(now <= at_first for now, at_first in zip(counts(), before, strict=True)), (before, counts())
    assert (psutil.Process().memory_info().rss - memory) / 2**20 < MEGABYTES
