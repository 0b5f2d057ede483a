"""Images of a dataset in batches, the same however many processes share them, read while the network computes."""

from __future__ import annotations

import gc
import logging
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.decoding import Jpeg, Jpegs, stream_apart
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.media.render import Box
from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.runs.workers import begin_worker, from_workers

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
    frames: dict[int, tuple[tuple[int, int], Box]] = field(default_factory=dict)
    """By place, how large photos are and what part of them the network sees, where that was asked for."""
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
            for row, place in enumerate(self.images.tolist()):
                if row not in answers:
                    answers[row] = next(others)
                elif answers[row] is None:
                    (answer,) = ImageSource(source.dataset, source.preprocess).items([place])
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

    def __init__(
        self,
        source: ImageSource,
        image_indices: Sequence[Sequence[int]],
        numbers: Sequence[int],
        frames: bool = False,
    ) -> None:
        self.source = source
        self.image_indices = image_indices
        self.numbers = numbers
        self.frames = frames

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
        if self.frames and batch.error is None:
            size = (0, 0) if batch.x is None else (batch.x.shape[2], batch.x.shape[3])  # of files nobody asks for it
            batch.frames = {place: self.source.frame(place, size) for place, _, _ in read}
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
    frames: bool = False,
) -> Iterator[Batch]:
    """The batches of these numbers, which rise; `image_indices[number]` are the images of one.

    With `frames` they tell how large photos are, so that nobody reads them again for that.
    A single image that cannot be read is left out and noted. Raises InputError for a dataset that cannot work.
    """
    loader: DataLoader[Batch] = DataLoader(
        _Items(source, image_indices, numbers, frames),  # type: ignore[arg-type]
        batch_size=None,
        sampler=numbers,
        num_workers=workers if len(numbers) > 1 else 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global random state is not drawn from
        worker_init_fn=partial(begin_worker, collects=gc.isenabled()),
    )
    batches = _without_errors(from_workers(loader))
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
