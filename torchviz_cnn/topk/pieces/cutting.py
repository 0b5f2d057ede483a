"""How a dataset is cut: a piece of it, batches of a piece, and the share of each rank in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, counted
from torchviz_cnn.runs.ranks import Ranks


@dataclass(frozen=True)
class Piece:
    """The images from `start` up to, and without, `end`, of a dataset of `count` images."""

    start: int
    end: int
    count: int

    @classmethod
    def of(cls, start: Any, end: Any, count: int) -> Piece:
        """The piece that is asked for; an `end` of None is that of the dataset. Raises InputError where it has none."""
        start = checks.whole_number("start", start, 0)
        end = count if end is None else checks.whole_number("end", end, 1)
        if start >= count or end > count:
            name, value = ("start", start) if start >= count else ("end", end)
            raise InputError(f"{name}={value:,} is out of range: the dataset has {counted(count, 'image')}")
        if start >= end:
            raise InputError(f"a piece has at least one image, and start={start:,} is not below end={end:,}")
        return cls(start, end, count)

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def whole(self) -> bool:
        """Whether it is all of the dataset."""
        return len(self) == self.count

    def identity(self) -> dict[str, Any]:
        """What identifies it in a manifest: nothing where it is all of the dataset."""
        return {} if self.whole else {"piece": [self.start, self.end]}

    def __str__(self) -> str:
        return images(self.start, self.end) + ("" if self.whole else f" of {self.count:,}")


def images(start: int, end: int) -> str:
    """The images from `start` up to, and without, `end`, in words.

    >>> images(0, 5000), images(7, 8)
    ('images 0 to 4,999', 'image 7')
    """
    return f"image {start:,}" if end - start == 1 else f"images {start:,} to {end - 1:,}"


class Batches(Sequence[range]):
    """The places of the images of each batch, from `start` up to `end`; chunks of batches are what is saved at once.

    In each chunk a rank has batches that follow each other, so that it reads the dataset in its order.

    >>> batches = Batches(4, 30, size=5, chunk=4)
    >>> list(batches)
    [range(4, 9), range(9, 14), range(14, 19), range(19, 24), range(24, 29), range(29, 30)]
    >>> [[list(batches.share(chunk, Ranks(rank, 2))) for chunk in batches.chunks()] for rank in range(2)]
    [[[0, 1], [4]], [[2, 3], [5]]]
    >>> [list(batches.shares(Ranks(rank, 2))) for rank in range(2)]
    [[0, 1, 4], [2, 3, 5]]
    """

    def __init__(self, start: int, end: int, size: int, chunk: int) -> None:
        self.start, self.end, self.size, self.chunk = start, end, size, chunk

    def __len__(self) -> int:
        return len(range(self.start, self.end, self.size))

    @overload
    def __getitem__(self, number: int) -> range: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[range]: ...
    def __getitem__(self, number: int | slice) -> range | Sequence[range]:
        places = range(self.start, self.end, self.size)[number]
        if isinstance(places, range):
            return [range(at, min(at + self.size, self.end)) for at in places]
        return range(places, min(places + self.size, self.end))

    def chunks(self) -> Iterator[range]:
        """The numbers of the batches of each chunk."""
        return (range(first, min(first + self.chunk, len(self))) for first in range(0, len(self), self.chunk))

    @staticmethod
    def share(chunk: range, ranks: Ranks) -> range:
        """Which batches of a chunk a rank has: as many as each other one, or one more or less."""
        return chunk[len(chunk) * ranks.rank // ranks.count : len(chunk) * (ranks.rank + 1) // ranks.count]

    def shares(self, ranks: Ranks) -> Sequence[int]:
        """The numbers of all batches that a rank has, in their order."""
        return _Shares(self, ranks)


class _Shares(Sequence[int]):
    """See `Batches.shares`: computed when asked for, as there are hundreds of thousands of a large dataset."""

    def __init__(self, batches: Batches, ranks: Ranks) -> None:
        whole, rest = divmod(len(batches), batches.chunk)
        self.chunk = batches.chunk
        self.each = batches.share(range(batches.chunk), ranks)
        self.last = batches.share(range(whole * self.chunk, whole * self.chunk + rest), ranks)
        self.before = whole * len(self.each)

    def __len__(self) -> int:
        return self.before + len(self.last)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        place = range(len(self))[place]
        if place >= self.before:
            return self.last[place - self.before]
        number, offset = divmod(place, len(self.each))
        return number * self.chunk + self.each[offset]
