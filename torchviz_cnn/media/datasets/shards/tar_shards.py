"""Photos in tar files as a dataset: the WebDataset format, where every photo has its place."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, ShardError, SkippedWarning, counted
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.core.warn import warn
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.datasets.shards.index import INDEX, Index, MemberNames, stamp
from torchviz_cnn.media.datasets.shards.patterns import Shards, absolute, may_have_key, named, shard_paths, short_names
from torchviz_cnn.media.datasets.shards.ranges import Files, Range
from torchviz_cnn.media.datasets.shards.scan import HEADER, Samples, require_photos, scan
from torchviz_cnn.media.images import read_stored_bytes, size_of_bytes

_GAP = 1 << 20
"""Photos of a shard with fewer bytes between them are read together, with what is between them."""
_LONGEST = 1 << 23
"""Bytes after which photos that lie together are asked for in another request, which runs beside the first."""
_HEAD = 1 << 16
"""Bytes of a photo's file in which its size stands, nearly always."""
_SCANNED_AT_ONCE = 16


class TarShards(Photos):
    """Photos in tar files, in the order in which they lie there: a map-style dataset of `(input, label)`.

    The files are of the WebDataset format: members whose names are the same up to the first dot of the last part belong
    together, `n01/7.jpg` and `n01/7.cls`. The label is the number or the text in the `.cls`, or under `label`, `cls` or
    `class` in the `.json`; texts become `categories`; without a label it is -1. Where a member is broken, that photo
    alone is left out.

    Headers are read once, when the dataset is first asked for something. Where every photo lies is then in a file that
    is mapped into memory. Photos are read by byte ranges, those of a batch together, also over HTTP and from object
    stores. Files that have changed since are refused.

    Args:
        shards: paths or addresses: one, a list, a pattern as `train-{000000..000999}.tar` or `{a,b}.tar`, or a glob of
            files of this system. Whatever fsspec reaches: `s3://` needs s3fs, `http://` the extra `remote`.
        preprocess: what turns photos into inputs; by default items are photos.
        index: a folder to keep the index in; by default the folder of results of the run that needs it, and for others
            a temporary one.
        image: the ending of the photos, where samples have several, as `left.jpg`; by default that of any format.
        filesystem: a file system of fsspec; by default that of the addresses.
        storage_options: what that is made with: keys, end points. They are never saved.
        timeout: seconds that a request may take (60).
        retries: how many times a request that failed is made again, with growing waits between (5: 16 s in all).

    Raises:
        InputError: for a pattern that cannot be understood, or an address for which a package is missing.
        ShardError: an InputError, when the dataset is first asked for something: for shards that are missing, cut off,
            broken, have no photos, or are others than those that were indexed; and for a server that does not answer.

    >>> import io, tarfile
    >>> place = Path(tempfile.mkdtemp())
    >>> with tarfile.open(place / "train-0.tar", "w") as tar:
    ...     for name, content in (("a.png", io.BytesIO()), ("a.cls", io.BytesIO(b"3"))):
    ...         if name == "a.png": Image.new("RGB", (4, 2)).save(content, "PNG")
    ...         member = tarfile.TarInfo(name)
    ...         member.size = len(content.getvalue())
    ...         tar.addfile(member, io.BytesIO(content.getvalue()))
    >>> shards = TarShards(place / "train-{0..0}.tar")
    >>> len(shards), list(shards.names), shards[0][0].size, shards[0][1]
    (1, ['train-0.tar/a.png'], (4, 2), 3)
    """

    def __init__(
        self,
        shards: Shards,
        *,
        preprocess: Callable[[Image.Image], Tensor] | None = None,
        index: str | os.PathLike[str] | None = None,
        image: str | None = None,
        filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self.preprocess = preprocess
        self.image = _ending(image)
        self.given = named(shards)
        self.given = [one if "://" in one or filesystem is not None else absolute(one) for one in self.given]
        """The pattern or the list, with paths of this system as absolute ones."""
        self.reachable_again = filesystem is None and not storage_options and not any(map(may_have_key, self.given))
        """Whether the pattern alone tells where the shards are, and may be saved."""
        paths = shard_paths(self.given, None if filesystem is None else False)
        checks.number("timeout", timeout, 0.001), checks.whole_number("retries", retries, 0)
        self._files = Files(paths, filesystem, storage_options, timeout, retries)
        self.shard_names = short_names(self._files.paths)
        self._kept_in = None if index is None else checks.path("index", index)
        self._folder: Path | None = None
        self._temporary = False
        self._index: Index | None = None
        self._compared = False
        """Whether the shards are known to be those of the index."""
        self._names: MemberNames | None = None
        self._content: dict[int, bytes] = {}
        self._ahead: _Ahead | None = None

    def prepare(self, folder: Path | None = None, *, progress: bool = False) -> Path:
        """Read the headers of all shards, or the index in a folder that has one, which is checked against the shards.

        Args:
            folder: where the index is kept; that of `index=` goes before.
            progress: whether to show how many shards are read.

        Returns:
            The folder that has the index: other processes may be given it.

        Raises:
            InputError: for an index of other shards.
            ShardError: for shards that cannot be used, or have changed.
            OutputError: where the index cannot be written, or is broken.
        """
        place = self._kept_in or folder
        if self._folder is not None and not (self._temporary and place is not None):
            self._require_unchanged()
            return self._folder
        if place is not None and os.path.lexists(place / INDEX):
            self._take(place)
            self._require_unchanged()
            return place
        made = self._index or self._scanned(self._files.about(), progress)
        self._temporary = place is None
        if place is None:
            place = Path(tempfile.mkdtemp(prefix="torchviz_cnn-"))
            weakref.finalize(self, _remove, place, os.getpid())
        index = Index.mapped(made.write(place), check=False)
        self._index, self._folder, self._names, self._compared = index, place, None, True
        return place

    def open(self, folder: Path) -> None:
        """Take the index that a folder has, without a server: names and labels are known then.

        Shards on a server are compared with it before the first photo is read, or by `prepare`; files of this system
        at once. Raises as `prepare`.
        """
        self._take(folder)
        if self._files.local:
            self._require_unchanged()

    def _take(self, folder: Path) -> None:
        index = Index.mapped(folder / INDEX)
        index.require_of(folder / INDEX, self.shard_names, self.image)
        self._index, self._folder, self._names = index, folder, None
        self._temporary = self._compared = False

    def _require_unchanged(self) -> None:
        """Raise ShardError where shards have changed since they were indexed. Their server is asked once."""
        if not self._compared and self._folder is not None:
            self.index.require_unchanged(self._folder / INDEX, self._files.about())
            self._compared = True

    @property
    def kept_in(self) -> str | None:
        """The folder of `index=`, as an absolute path."""
        return None if self._kept_in is None else os.path.abspath(self._kept_in)

    @property
    def index(self) -> Index:
        """Where each photo lies."""
        if self._index is None and self._folder is not None:  # in a process that was started anew
            self._index = Index.mapped(self._folder / INDEX, check=False)
        if self._index is None:
            self.prepare()
        assert self._index is not None
        return self._index

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """What each photo is called: the name of its shard and its path in it."""
        if self._names is None:
            self._names = MemberNames(self.index)
        return self._names

    @property
    def labels(self) -> Any:  # type: ignore[override]
        """The label of each photo (n,), an index into `categories` where there are; -1 for one without."""
        return self.index.arrays["label"]

    @property
    def categories(self) -> tuple[str, ...]:  # type: ignore[override]
        """The text labels that there are, sorted; empty where labels are numbers."""
        return tuple(self.index.about["categories"])

    def __len__(self) -> int:
        return len(self.index.arrays["start"])

    def stored(self, index: int) -> Pixels:
        """The photo with the depth and the bands of its file."""
        return read_stored_bytes(self.encoded(index), self.names[index])

    def encoded(self, index: int) -> bytes:
        """The bytes of the photo's file. Raises ShardError where they cannot be had."""
        place = range(len(self))[index]
        kept = self._content.get(place)
        return self._read([place])[place] if kept is None else kept

    def size(self, index: int) -> tuple[int, int]:
        """Return the photo's (width, height), of which only the head is read."""
        place = range(len(self))[index]
        head = self._content.get(place)
        if head is None:
            arrays = self.index.arrays
            self._require_unchanged()
            path, start = self._files.paths[arrays["shard"][place]], int(arrays["start"][place])
            size = int(arrays["size"][place])
            head = self._files.read([Range(path, start, start + min(size, _HEAD))])[0] if size else b""
        return size_of_bytes(head) or size_of_bytes(self.encoded(place)) or self.photo(place).size

    def fetch(self, indices: Sequence[int]) -> None:
        """Read the files of these photos together and keep them, until others are fetched."""
        places = [range(len(self))[index] for index in indices]
        if set(places) == self._content.keys():
            return
        ahead, self._ahead = self._ahead, None
        self._content = ahead.content() if ahead is not None and ahead.is_of(places) else self._read(places)

    def ahead(self, indices: Sequence[int]) -> None:
        """Begin to read the files of these photos, which are fetched next, while others are decoded."""
        places = [range(len(self))[index] for index in indices]
        if places and not (self._ahead is not None and self._ahead.is_of(places)):
            self._ahead = _Ahead(self._read, places)

    def listing(self) -> dict[str, Any]:
        """How many photos there are, and a checksum over the names, sizes and headers of their shards."""
        return {"images": len(self), "checksum": self.index.checksum, "of": "the shards' names, sizes and headers"}

    def _read(self, places: Sequence[int]) -> dict[int, bytes]:
        """The files of photos by place, in as few requests as their places allow."""
        arrays = self.index.arrays
        self._require_unchanged()
        wanted = np.unique(np.asarray(places, np.int64))
        shards, starts, sizes, headers = (arrays[name][wanted] for name in ("shard", "start", "size", "header"))
        groups, last = list[list[int]](), -1
        for row in np.lexsort((starts, shards)).tolist():
            begin = int(starts[row]) - HEADER
            first = groups[-1][0] if groups else row
            far = begin - last > _GAP or begin - int(starts[first]) > _LONGEST
            if not groups or shards[row] != shards[first] or far:
                groups.append([])
            groups[-1].append(row)
            last = int(starts[row] + sizes[row])
        ends = [max(int(starts[row] + sizes[row]) for row in group) for group in groups]
        ranges = [
            Range(self._files.paths[shards[group[0]]], int(starts[group[0]]) - HEADER, end)
            for group, end in zip(groups, ends, strict=True)
        ]
        read = dict[int, bytes]()
        for group, one, data in zip(groups, ranges, self._files.read(ranges), strict=True):
            for row in group:
                at, place = int(starts[row]) - one.start, int(wanted[row])
                if zlib.crc32(data[at - HEADER : at]) != headers[row]:
                    raise ShardError(
                        f"the shard {self.shard_names[shards[row]]} has changed since it was indexed: the header of "
                        f"{self.names[place]} is not at byte {int(starts[row]) - HEADER:,} any more"
                    )
                read[place] = data[at : at + int(sizes[row])]
        self.index.was_read(len(wanted))
        return read

    def _scanned(self, about: Sequence[Mapping[str, Any]], progress: bool) -> Index:
        """What is in all shards, of which several are read at once. Raises as `scan`."""
        count = len(about)
        samples: list[Samples] = [Samples()] * count
        with progress_bar(progress and count > 1, total=count, desc="headers of shards", unit=" shards") as bar:
            threads = ThreadPoolExecutor(1 if self._files.local else min(_SCANNED_AT_ONCE, count))
            try:
                jobs = {
                    threads.submit(self._scan, number, int(about[number]["size"])): number for number in range(count)
                }
                for job in as_completed(jobs):
                    samples[jobs[job]] = job.result()
                    bar.update()
            finally:
                threads.shutdown(cancel_futures=True)
        endings = sum((one.endings for one in samples), Samples().endings)
        require_photos(endings, sum(len(one.numbers) for one in samples), self.image)
        links = [name for one in samples for name in one.links]
        if links:
            of = counted(len(links), "file")
            warn(f"links and sparse files in shards are left out, {of}; the first is {links[0]}", SkippedWarning)
        without_use = [name for one in samples for name in one.without_use]
        if without_use:
            of = f"labels of {counted(len(without_use), 'sample')} in shards are left out"
            why = f"as they are neither whole numbers from 0 on nor text; the first is {without_use[0]}"
            warn(f"{of}, {why}", SkippedWarning)
        shards = [
            {"name": name, "size": int(info["size"]), "stamp": stamp(info)}
            for name, info in zip(self.shard_names, about, strict=True)
        ]
        return Index.of(samples, shards, self.image)

    def _scan(self, number: int, size: int) -> Samples:
        path = self._files.paths[number]
        return scan(self.shard_names[number], size, partial(_part, self._files, path), self.image, self._files.local)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None, "_names": None, "_content": {}, "_ahead": None}

    def __repr__(self) -> str:
        pattern = self.given[0] if len(self.given) == 1 else f"{self.given[0]} ..."
        photos = "" if self._index is None else f", {counted(len(self), 'photo')}"
        return f"TarShards({pattern!r}: {counted(len(self.shard_names), 'shard')}{photos})"


class _Ahead:
    """Files of photos that are read in a thread of their own, for the process that began it."""

    def __init__(self, read: Callable[[Sequence[int]], dict[int, bytes]], places: Sequence[int]) -> None:
        self.places, self._owner = list(places), os.getpid()
        self._future = Future[dict[int, bytes]]()
        threading.Thread(target=self._run, args=(read,), daemon=True).start()

    def _run(self, read: Callable[[Sequence[int]], dict[int, bytes]]) -> None:
        try:
            self._future.set_result(read(self.places))
        except BaseException as error:
            self._future.set_exception(error)

    def is_of(self, places: Sequence[int]) -> bool:
        """Whether these are the photos, and this is the process."""
        return self.places == list(places) and self._owner == os.getpid()

    def content(self) -> dict[int, bytes]:
        """The files by place, once they are there. Raises what reading them raised."""
        return self._future.result()


def _ending(image: Any) -> str | None:
    """The ending of photos that is asked for. Raises InputError for what is none."""
    ending = image.lower().removeprefix(".") if isinstance(image, str) else ""
    if image is not None and not ending:
        raise InputError(f"image is the ending of the photos, such as 'left.jpg', not {image!r}")
    return ending or None


def _part(files: Files, path: str, start: int, stop: int) -> bytes:
    return files.read([Range(path, start, stop)])[0]


def _remove(folder: Path, owner: int) -> None:
    """Remove a temporary folder in the process that made it, not in a copy of that process."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
