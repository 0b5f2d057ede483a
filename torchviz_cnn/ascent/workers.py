"""Independent jobs on one network, side by side: a core each, on copies of the network that share its weights.

A core by itself does the same arithmetic on every machine. Several cores on one image do not: how they share a sum out
changes its last bits. So what is made here is the same whatever the number of cores, and there is no waiting in step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

Job = TypeVar("Job")
Result = TypeVar("Result")


class Cancelled(BaseException):
    """Ends a job because another failed, or the user interrupted."""


def side_by_side(
    models: Sequence[nn.Module],
    jobs: Sequence[Job],
    work: Callable[[nn.Module, Job, Callable[[], None]], Result],
    done: Callable[[int, Result], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Call `work(model, job, check)` for each job, a thread for each model, each on one core; `done` as they end.

    `check` is to be called now and then: it raises where all are to stop. `done(index, result)`, and `meanwhile` about ten
    times a second, run in the calling thread. The first exception, Ctrl-C among them, stops all and is raised once they have.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for index in range(len(jobs)):
        waiting.put(index)

    def check() -> None:
        if stop.is_set():
            raise Cancelled

    def run(model: nn.Module) -> None:
        torch.set_num_threads(1)  # of this thread
        while not stop.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((index, work(model, jobs[index], check), None))
            except BaseException as error:
                ended.put((index, None, error))
                return

    threads = [threading.Thread(target=run, args=(model,), daemon=True) for model in models]
    before = torch.get_num_threads()
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            index, result, error = _next(ended, meanwhile)
            if error is not None:
                raise error
            done(index, result)
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        torch.set_num_threads(before)  # what a thread sets is what new threads start with


def _next(
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]], meanwhile: Callable[[], None]
) -> tuple[int, Any, BaseException | None]:
    while True:
        meanwhile()
        try:
            return ended.get(timeout=0.1)  # in short waits, so that Ctrl-C comes through everywhere
        except queue.Empty:
            continue
