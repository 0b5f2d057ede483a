"""How the benchmark scripts measure: contenders take turns in one run, and medians are compared.

A machine's noise then meets all alike. On a GPU, each measurement ends when the device is done.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender."""

    median: float
    fastest: float
    slowest: float


def finish() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(contenders: Mapping[str, Run], rounds: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Time each contender once a round, in turns; the first `warmup` rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(warmup + rounds):
        for name, run in contenders.items():
            finish()
            start = time.perf_counter()
            run()
            finish()
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(all_), min(all_), max(all_)) for name, all_ in seconds.items()}


def peak_bytes(run: Run) -> int:
    """The most bytes that tensors took at one time during a call, beyond what was there before."""
    gc.collect()
    if torch.cuda.is_available():
        finish()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        finish()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: int(e.start_ns()))
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak
