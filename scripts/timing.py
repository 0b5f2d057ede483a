"""How speed and memory are measured: contenders take turns in one run, and medians are compared.

A machine's noise then meets all alike. A ratio is the median of the ratios of each round, so that work of others that
lasts longer than a round falls out of it. On a GPU, each measurement ends when the device is done.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]
_clock = [time.perf_counter]


@dataclass(frozen=True)
class Lap:
    """What a run gives that tells its own time, as it does things before or after that do not count."""

    seconds: float
    result: object = None


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the rounds took no longer."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """The shortest time."""
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the rounds lie between these."""
        if len(self.seconds) == 1:
            return self.seconds * 2
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    def over(self, other: Timing) -> float:
        """How many times as long as another it took: the median over the rounds that both took part in."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def now() -> float:
    """Seconds of the clock by which everything is measured."""
    return _clock[0]()


def by_processor_time() -> None:
    """Measure the processor's time of this process from now on, which other processes hardly change."""
    _clock[0] = time.process_time


def finish() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(
    contenders: Mapping[str, Run],
    rounds: int = 5,
    warmup: int = 1,
    *,
    limit: float = float("inf"),
    least: int = 1,
    clock: Callable[[], float] = now,
) -> dict[str, Timing]:
    """Time each contender once a round, in turns, every other round in reverse; `warmup` rounds before do not count.

    Args:
        contenders: what is run, by name. A run that gives a `Lap` tells its own time.
        rounds: how many rounds count.
        warmup: how many rounds before these do not.
        limit: seconds after which no further round begins, once there are `least`.
        least: rounds that are run whatever they take.
        clock: gives seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    begun = clock()
    for number in range(-warmup, rounds):
        if number >= least and clock() - begun > limit:
            break
        for name in list(contenders) if number % 2 == 0 else reversed(list(contenders)):
            taken = timed(contenders[name], clock)
            if number >= 0:
                seconds[name].append(taken)
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


def timed(run: Run, clock: Callable[[], float] = now) -> float:
    """The seconds that a run takes, or says that it took."""
    finish()
    start = clock()
    result = run()
    finish()
    return result.seconds if isinstance(result, Lap) else clock() - start


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


def process_peak(run: Run) -> int:
    """The most bytes that this process had in memory during a call, beyond what it had before.

    It is looked at every two milliseconds. Memory that was freed before stays with the process and hides what the call
    takes: begin a process for it.
    """
    import psutil

    process, ended = psutil.Process(), threading.Event()
    before = peak = int(process.memory_info().rss)

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, int(process.memory_info().rss))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        ended.set()
        watcher.join()
    return max(peak, int(process.memory_info().rss)) - before
