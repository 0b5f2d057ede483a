"""Millions of names in a file that is mapped into memory, so that no process has a list of them."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import mmap
import operator
import os
import shutil
import struct
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from torchviz_cnn.core.errors import OutputError

IN_MEMORY = 100_000
"""How many names are sorted at a time; fewer are a plain list, and need no file."""
_BLOCK = 512
"""How many names are read from the file at a time where all are walked through."""
_MAPPED = 1 << 16
"""After how many names that were read the pages of the file no longer count as memory of this process."""
_ENCODING = ("utf-8", "surrogatepass")  # every str is its own again, also one with bytes that are no UTF-8
_INT = struct.Struct("<q")


class Names(Sequence[str]):
    """Names, in the order in which they were written to a file by `write`, read from it when asked for.

    The file is mapped into memory: all processes that have it share the system's one copy, forked or started anew (it
    is pickled as its path). It has the names in UTF-8, one after the other, where each of them begins and the last one
    ends as int64, and their number as int64.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._count: int = _INT.unpack_from(self._file, len(self._file) - _INT.size)[0]
        self._ends = len(self._file) - (self._count + 2) * _INT.size
        self._read = 0

    @staticmethod
    def write(path: str | os.PathLike[str], names: Iterable[str]) -> None:
        """Write names to a file, in their order, without having them all in memory.

        Raises OSError where it cannot be written, and leaves no file then.
        """
        try:
            with open(path, "wb") as file, tempfile.TemporaryFile(dir=Path(path).parent) as ends:
                end = 0
                ends.write(_INT.pack(end))
                for name in names:
                    end += file.write(name.encode(*_ENCODING))
                    ends.write(_INT.pack(end))
                count = ends.tell() // _INT.size - 1
                ends.seek(0)
                shutil.copyfileobj(ends, file)
                file.write(_INT.pack(count))
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise

    @classmethod
    def temporary(cls, names: Iterable[str]) -> Names:
        """Names in a file of the folder for temporary files, which is deleted with them, or when this process ends.

        Raises OutputError where that folder has no place for them.
        """
        place, path = tempfile.mkstemp(prefix="torchviz_cnn-", suffix=".names")
        os.close(place)
        try:
            cls.write(path, names)
        except OSError as error:
            where = f"{os.path.dirname(path)}, the folder for temporary files, which TMPDIR names"
            raise OutputError(f"the list of photos cannot be written to {where}: {error}") from error
        made = cls(path)
        weakref.finalize(made, _delete, made._file, path, os.getpid())
        return made

    def between(self, start: int, stop: int) -> Iterator[str]:
        """The names from one place to before another, read a few at a time."""
        stop = min(stop, self._count)
        for first in range(start, stop, _BLOCK):
            yield from self._names(first, min(first + _BLOCK, stop))

    def _names(self, start: int, stop: int) -> list[str]:
        at = self._ends + start * _INT.size
        ends = struct.unpack_from(f"<{stop - start + 1}q", self._file, at)
        text = self._file[ends[0] : ends[-1]]
        self._read += stop - start
        if self._read >= _MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return [text[a - ends[0] : b - ends[0]].decode(*_ENCODING) for a, b in itertools.pairwise(ends)]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(self._count)[index]
        if isinstance(places, int):
            return self._names(places, places + 1)[0]
        if places.step == 1:
            return list(self.between(places.start, places.stop))
        return [self[place] for place in places]

    def __iter__(self) -> Iterator[str]:
        return self.between(0, self._count)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Names, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"Names({str(self.path)!r}: {self._count:,})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Names:
        return self

    def __reduce__(self) -> tuple[type[Names], tuple[Path]]:
        return Names, (self.path,)


def _delete(file: mmap.mmap, path: str, owner: int) -> None:
    """Delete a temporary file in the process that made it, not in a copy of that process."""
    if os.getpid() == owner:
        file.close()  # a file that is mapped cannot be deleted on Windows
        with contextlib.suppress(OSError):
            os.unlink(path)


def in_order(names: Iterable[str]) -> Sequence[str]:
    """Names sorted by the parts of their paths: a list of few, `Names` in a temporary file of many.

    No more than `IN_MEMORY` names are in memory at once: runs of so many are sorted, and then merged.

    >>> in_order(["b/1.jpg", "b 2.jpg", "b.jpg", "a/10.jpg"])
    ['a/10.jpg', 'b/1.jpg', 'b 2.jpg', 'b.jpg']
    """
    names = iter(names)
    first = _run(names)
    if len(first) < IN_MEMORY:
        return first
    rest = iter(lambda: _run(names), [])
    runs = Names.temporary(itertools.chain(first, itertools.chain.from_iterable(rest)))
    del first
    parts = [runs.between(start, start + IN_MEMORY) for start in range(0, len(runs), IN_MEMORY)]
    return Names.temporary(heapq.merge(*parts, key=_parts))


def _run(names: Iterator[str]) -> list[str]:
    return sorted(itertools.islice(names, IN_MEMORY), key=_parts)


def _parts(name: str) -> str:
    """A key that sorts as `name.split("/")` does, and takes a fifth of its memory: no name has a character below it."""
    return name.replace("/", "\0")
