"""Images of a dataset in batches, the same however many processes share them, read while the network computes."""

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
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, WorkerError, counted
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.decoding import Jpeg, Jpegs, stream_apart
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.runs.ranks import Ranks

_log = logging.getLogger("torchviz_cnn")


@dataclass(eq=False)
class Batch:
    """Images that could be read, stacked, and what became of the others."""

    number: int
    """Its place among the batches of the whole dataset."""
    images: Tensor
    """The places in the dataset of those that were read: (B,)."""
    labels: list[int | None]
    x: Tensor | None
    """(B, C, H, W): inputs, or with `scaling` photos in 8 bits; None where none was read."""
    skipped: dict[int, str] = field(default_factory=dict)
    """What was wrong with those that were not, by place."""
    error: str | None = None
    """What is wrong with the dataset as a whole."""
    files: Jpegs | None = None
    """Those of its photos that the device decodes."""
    scaling: Preprocess | None = None
    """What makes inputs of photos in 8 bits, which are a quarter of the bytes on the way to the device."""

    def stack(self, images: list[Tensor], scaling: Preprocess | None) -> None:
        """Take images of one size as those that were read; `scaling` is for those in 8 bits."""
        if all(x.dtype == torch.uint8 for x in images):
            self.scaling = scaling
        elif scaling is not None:  # some items are photos, others inputs
            images = [scaling.scaled(x) if x.dtype == torch.uint8 else x for x in images]
        sizes = {tuple(x.shape) for x in images}
        if len(sizes) > 1:
            shapes = " and ".join(" x ".join(map(str, size)) for size in sorted(sizes)[:2])
            self.error = f"images of {shapes} cannot share a batch: resize them to one size, or use batch_size=1"
        elif images:
            self.x = torch.stack(images)

    def decode(self, source: ImageSource, device: torch.device) -> int:
        """Decode its files on a device and return how many; those that its decoder refuses are read as ever."""
        if self.files is None or self.scaling is None:
            return 0
        with stream_apart(device):
            answers: dict[int, Any] = dict(self.files.prepared_on(device, self.scaling))
            decoded = sum(answer is not None for answer in answers.values())
            others = iter(() if self.x is None else self.x.to(device, non_blocking=True))
            alone = ImageSource(source.dataset, source.preprocess)
            for row, place in enumerate(self.images.tolist()):
                if row not in answers:
                    answers[row] = next(others)
                elif answers[row] is None:
                    (answer,) = alone.items([place])
                    if isinstance(answer, Exception):
                        self.skipped[place] = skip_reason(source.name(place), answer)
                        del answers[row]
                    else:
                        answers[row] = answer[0].to(device)  # type: ignore[union-attr]  # without decode no Jpeg
            kept = sorted(answers)
            if len(kept) < len(self.labels):
                self.images, self.labels = self.images[kept], [self.labels[row] for row in kept]
            self.x, self.files = torch.stack([answers[row] for row in kept]) if kept else None, None
        return decoded

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The inputs on a device, in a type of floating point. There must be some."""
        if self.x is None:
            raise InputError(f"batch {self.number} has no image that could be read")
        if self.scaling is None:
            return self.x.to(device, dtype, non_blocking=True)
        return self.scaling.scaled(self.x.to(device, non_blocking=True)).to(dtype)

    def pin_memory(self, device: object = None) -> Batch:
        """Called by the DataLoader: makes the copy to a CUDA device run during the computation."""
        self.x = None if self.x is None else self.x.pin_memory()
        self.images = self.images.pin_memory()
        return self


class _Items:
    """A dataset of whole batches, as one index of the DataLoader stands for one batch."""

    def __init__(self, source: ImageSource, image_indices: Sequence[Sequence[int]], numbers: Sequence[int]) -> None:
        self.source = source
        self.image_indices = image_indices
        self.numbers = numbers

    def __getitem__(self, number: int) -> Batch:
        places, scaling = self.image_indices[number], self.source.scaling
        batch = Batch(number, torch.empty(0, dtype=torch.long), [], None)
        try:
            answers = self.source.items(places, self._next(number))
        except InputError as error:
            batch.error = str(error)
            return batch
        read = list[tuple[int, Tensor | Jpeg, int | None]]()
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, Exception):
                batch.skipped[place] = skip_reason(self.source.name(place), answer)
            else:
                read.append((place, *answer))
        batch.images = torch.tensor([place for place, _, _ in read], dtype=torch.long)
        batch.labels = [label for _, _, label in read]
        files = {row: x for row, (_, x, _) in enumerate(read) if isinstance(x, Jpeg)}
        batch.files = Jpegs.of(files) if files else None
        batch.stack([x for _, x, _ in read if isinstance(x, Tensor)], scaling)
        return batch

    def _next(self, number: int) -> Sequence[int]:
        """The images of the batch that this process is asked for after one: workers take turns."""
        info = get_worker_info()
        after = bisect_left(self.numbers, number) + (1 if info is None else info.num_workers)
        return self.image_indices[self.numbers[after]] if after < len(self.numbers) else ()


def prepare_once(
    source: ImageSource, out: str | os.PathLike[str] | None, kind: str, ranks: Ranks, progress: bool = False
) -> None:
    """Get a dataset ready on all ranks: the first one's work is enough where they share its files.

    What is kept for that goes to the folder of results, of this kind. Raises what `Photos.prepare` raises, on all
    ranks, and OutputError where something else is in the folder.
    """

    def prepared() -> Path | None:
        if out is not None:
            ResultFolder.require_own(checks.path("out", out), kind)
        return source.prepare(out, progress=progress and ranks.first)

    place = ranks.gather(ranks.once(prepared))[0]
    with ranks.agreeing():
        if place is not None and not ranks.first:
            source.prepare(place if place.is_dir() else None)  # on another machine it may be none


def skip_reason(name: str, error: Exception) -> str:
    """What was wrong with an image, in one line that names it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if " ".join(name.split()) in text else f"{name}: {text}"


def read_batches(
    source: ImageSource,
    numbers: Sequence[int],
    image_indices: Sequence[Sequence[int]],
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """The batches of these numbers, which rise; `image_indices[number]` are the images of one.

    A single image that cannot be read is left out and noted. Raises InputError for a dataset that cannot work.
    """
    loader: DataLoader[Batch] = DataLoader(
        _Items(source, image_indices, numbers),  # type: ignore[arg-type]
        batch_size=None,
        sampler=numbers,
        num_workers=workers if len(numbers) > 1 else 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global random state is not drawn from
        worker_init_fn=partial(_begin_worker, collects=gc.isenabled()),
    )
    batches = _without_errors(_forked(loader) if not loader.num_workers or starts_by_fork() else _from_started(loader))
    yield from batches if source.decode == "cpu" else _decoded(batches, source, device)


def _without_errors(batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if batch.error is not None:
            raise InputError(batch.error)
        yield batch


def _decoded(batches: Iterable[Batch], source: ImageSource, device: torch.device) -> Iterator[Batch]:
    """Batches with their files decoded on a device, each by a thread while the one before it is used."""
    read = on_device = 0
    before: tuple[Batch, Future[int]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in chain(batches, [None]):
            following = None if batch is None else (batch, pool.submit(batch.decode, source, device))
            if before is not None:
                ready, count = before
                on_device += count.result()
                read += len(ready.images)
                if ready.x is not None and ready.x.is_cuda:
                    ready.x.record_stream(torch.cuda.current_stream(device))
                yield ready
            before = following
    if read > on_device:
        _log.info("%d of %d photos were decoded on the CPU, as they are no plain JPEG", read - on_device, read)


def _forked(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches, from copies of this process where there are workers.

    Such a copy must never free what is on a GPU, or pinned for one: CUDA does not work in it, and ends it. So it
    collects no garbage before all that it was given is kept for good, by `_begin_worker`.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        batches = _begun(loader)
    finally:
        if collects:
            gc.enable()
    yield from batches


def _from_started(loader: DataLoader[Batch]) -> Iterator[Batch]:
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


def _begun(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches of a loader whose workers, where there are any, are started."""
    others = multiprocessing.active_children()
    batches = iter(loader)
    workers = [one for one in multiprocessing.active_children() if one not in others]
    return _taken_over(batches, workers)


def _taken_over(batches: Iterator[Batch], workers: Sequence[multiprocessing.process.BaseProcess]) -> Iterator[Batch]:
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


def _begin_worker(worker: int, collects: bool) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    if collects:
        gc.enable()
