"""Processes that read ahead: how many are started, and what is said of one that ends."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import pickle
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, WorkerError, counted

T = TypeVar("T")
_log = logging.getLogger("torchviz_cnn")


def from_workers(loader: DataLoader[T]) -> Iterator[T]:
    """What a loader gives.

    Raises InputError where its worker processes cannot be started, WorkerError for one that ends.
    """
    return _forked(loader) if not loader.num_workers or starts_by_fork() else _from_started(loader)


def _forked(loader: DataLoader[T]) -> Iterator[T]:
    """The batches, from copies of this process where there are workers.

    Such a copy must never free what is on a GPU, or pinned for one: CUDA does not work in it, and ends it. So it
    collects no garbage before all that it was given is kept for good, by `begin_worker`.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        batches = _begun(loader)
    finally:
        if collects:
            gc.enable()
    yield from batches


def _from_started(loader: DataLoader[T]) -> Iterator[T]:
    """The batches from processes that are started anew, or InputError where they cannot import and unpickle all."""
    try:
        batches = _begun(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"the dataset cannot be sent to worker processes ({error}): define it at the top of a module, or pass "
            "workers=0"
        ) from None
    except (RuntimeError, OSError) as error:  # as of a process that ended while it was started
        raise InputError(f"{_NOT_STARTED} ({' '.join(str(error).split())[:100]})") from None
    began = False
    try:
        for batch in batches:
            began = True
            yield batch
    except RuntimeError as error:
        if began or (not isinstance(error, WorkerError) and _how_it_ended(error) is None):
            raise
        raise InputError(f"{_NOT_STARTED} ({error})") from None


def _begun(loader: DataLoader[T]) -> Iterator[T]:
    """The batches of a loader whose workers, where there are any, are started."""
    others = multiprocessing.active_children()
    batches = iter(loader)
    workers = [one for one in multiprocessing.active_children() if one not in others]
    return _taken_over(batches, workers)


def _taken_over(batches: Iterator[T], workers: Sequence[multiprocessing.process.BaseProcess]) -> Iterator[T]:
    """The batches. Raises WorkerError where one of the workers ends: PyTorch has its number alone or, where its batch
    was just taken over, an error of the connection."""
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError) and _how_it_ended(error) is None:
            raise
        left = connection.wait([one.sentinel for one in workers], timeout=_DYING) if workers else []
        for one in workers:
            if one.sentinel in left:
                one.join(_DYING)  # what has let go of its files may not be gone yet
        ended = next((one for one in workers if one.exitcode), None)
        if ended is None or ended.exitcode is None:
            raise
        name = signal.strsignal(-ended.exitcode) if ended.exitcode < 0 else None
        raise WorkerError(_ended(str(ended.pid), name, str(ended.exitcode))) from error


@contextlib.contextmanager
def watching_workers(saved: Callable[[], int | None], count: int) -> Iterator[None]:
    """Say of a worker process that ends in the block what that means, where PyTorch names its number alone.

    It is noticed wherever this process is at that moment, also in the network.

    Args:
        saved: how many images are saved by then; None where nothing is.
        count: how many there are.
    """
    try:
        yield
    except RuntimeError as error:
        how, done = _how_it_ended(error), saved()
        if how is None:
            raise
        kept = "nothing is saved, as no out= is given"
        if done is not None:
            kept = f"{done:,} of {counted(count, 'image')} are saved, and the same call goes on with the next"
        raise WorkerError(f"{how}: {kept}; fewer workers take less memory, and workers=0 starts none") from error


_DYING = 5.0
"""Seconds that a process may take to end."""
_ENDED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)"
)
_REASONS = {
    "Killed": ", most likely by the system as memory ran out",
    "Bus error": ", most likely as shared memory (/dev/shm) ran out",
}


def _how_it_ended(error: BaseException) -> str | None:
    """What became of a worker process, in words; None for an error of something else."""
    if isinstance(error, WorkerError):
        return str(error)
    found = _ENDED.search(str(error))
    if found is None:
        return None
    if found[2] is None and error.__cause__ is not None:  # PyTorch's second message, which has less than its first
        found = _ENDED.search(str(error.__cause__)) or found
    code = re.search(r"exit code (\d+)", f"{error} {error.__cause__}")
    return _ended(found[1], found[2], None if code is None else code[1])


def _ended(number: str, name: str | None, code: str | None) -> str:
    """How a process ended, by the name of a signal or its exit code, where they are known."""
    if name is not None:
        how = f"was ended by the signal {name!r}{_REASONS.get(name, '')}"
    else:
        how = "ended, most likely as memory ran out" if code is None else f"ended with exit code {code}"
    return f"the process {number}, which reads photos, {how}"


_NOT_STARTED = (
    "torchviz_cnn's worker processes cannot be started: they import the script again, so that what it does belongs "
    'below `if __name__ == "__main__":`; or pass workers=0'
)


def starts_by_fork() -> bool:
    """Whether worker processes are copies of this one, rather than new ones that import the script again."""
    return (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork"


def checked_workers(workers: int | None, usual: int) -> int:
    """How many worker processes are started: those asked for, else the usual number where they can be.

    New processes run the script again, unless a guard says what is for the first only. We assume a script that names
    `__main__` has such a guard; notebooks and `python -m` need none. Raises InputError where workers are asked for and
    cannot be started.
    """
    count = usual if workers is None else checks.whole_number("workers", workers, 0)
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None) if getattr(main, "__spec__", None) is None else None
    if not count or script is None or starts_by_fork() or b"__main__" in _text(script):
        return count
    if workers is not None:
        raise InputError(_NOT_STARTED)
    _log.info("photos are read without worker processes: %s", _NOT_STARTED)
    return 0


def _text(script: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(script).read_bytes()
    return b"__main__"


def usual_workers() -> int:
    """How many processes decode photos where none are asked for: one less than there are processors, at most 8.

    Ranks on one machine share its processors.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(0, min(available // max(int(ranks) if ranks.isdigit() else 1, 1) - 1, 8))


def begin_worker(worker: int, collects: bool) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    if collects:
        gc.enable()
