"""Several processes sharing one run, as `torchrun` starts them: who is who, and what they tell each other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from torchviz_cnn.core.errors import InputError, RankError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""How long the processes wait for one that does not answer, and is not known to be dead."""


@dataclass(frozen=True)
class Ranks:
    """One process of a run that `count` of them share. A run that is not shared has one rank, the first."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    """Where this process computes: `cuda:1` for the second one of a machine with several GPUs."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and shows how far the run is."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank; all of them must call it. Values are pickled.

        Raises RankError where another rank died or does not answer.
        """
        return [value] if self.count == 1 else self._gathered(value)

    def _gathered(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.count
        # Under nccl, in a group of the caller's, values go by way of the device that is the current one.
        on_cuda = self.device.partition(":")[0] == "cuda"
        own: AbstractContextManager[Any] = torch.cuda.device(self.device) if on_cuda else nullcontext()
        with _answering(self), own:
            distributed.all_gather_object(values, value)
        return values

    def once(self, action: Callable[[], T]) -> T | None:
        """Let the first rank alone do something: what it gives there, None on the others.

        An error of the first rank is raised on all of them, so that none goes on or waits.
        """
        value = None
        with self.agreeing():
            if self.first:
                value = action()
        return value

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Run a block in which each rank does its share: at its end, an error of any is raised on all (see `agree`)."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:  # raised below, on all ranks alike
            problem = error
        self.agree(problem)

    def agree(self, error: Exception | None) -> None:
        """Raise the error of any rank on all of them: its own where there is one, else the first other's."""
        wrong = [other for other in self.gather(_picklable(error) if self.count > 1 else error) if other is not None]
        if error is not None:
            raise error
        if wrong:
            raise wrong[0]


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, for the length of the block; without it there is one rank.

    On CUDA each process of a machine gets a device of its own. They talk over gloo there too: what they tell each other
    is on the CPU, and under nccl the others would wait half an hour for one that died. A process group that the caller
    has made, of any kind, is used, and left as it is. Raises InputError where a machine has fewer devices than
    processes, RankError where the others cannot be reached.

    >>> with joined() as ranks:
    ...     ranks.rank, ranks.count, ranks.gather("here")
    (0, 1, ['here'])
    """
    shared = distributed.is_available()
    if shared and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), str(device))
        return
    count = _whole_number("WORLD_SIZE", 1)
    if count == 1 or not shared:
        yield Ranks(device=str(device))
        return
    rank, local = _whole_number("RANK", None), _whole_number("LOCAL_RANK", 0)
    own: AbstractContextManager[Any] = nullcontext()
    device = str(device)
    if device.partition(":")[0] == "cuda":
        if local >= torch.cuda.device_count():
            devices = torch.cuda.device_count()
            raise InputError(
                f"process {local} of this machine has no CUDA device of its own: there are {devices}; "
                "start as many processes (torchrun --nproc-per-node) as there are devices"
            )
        device = f"cuda:{local}"
        own = torch.cuda.device(device)
    ranks = Ranks(rank, count, device)
    # Imported once there is a group, as PyTorch does with its first dispatch mode, this module keeps the group as a
    # default of its functions. Its threads then live on after its end, and could abort the process as it ends.
    importlib.import_module("torch.distributed.nn")
    with _answering(ranks):
        distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        with own:
            yield ranks
    finally:
        distributed.destroy_process_group()


def this_rank() -> int:
    """The rank of this process, which joins no others for that: that of its group or, without one, as torchrun says.

    >>> this_rank()
    0
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return _whole_number("RANK", 0)


@contextmanager
def _answering(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise RankError(
            f"rank {ranks.rank} of {ranks.count} cannot reach the others, of which one has ended or does not answer "
            f"({reason}); what was finished before is kept"
        ) from error


def _picklable(error: Exception | None) -> Exception | None:
    """The error, or where it cannot be sent to another process, one of the same words."""
    import pickle

    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # whatever the error's own code raises
        return RankError(f"{type(error).__name__}: {error}")


def _whole_number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise InputError(
            f"the environment variable {name} is {text!r}, not a number; start the processes with torchrun"
        )
    return int(text)
