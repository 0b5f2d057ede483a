"""Where each photo of many shards lies: arrays in a file that is mapped into memory, so that no process has a list."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from torchviz_cnn.core.errors import InputError, OutputError, ShardError
from torchviz_cnn.media.bands import Array
from torchviz_cnn.media.datasets.shards.scan import Label, Samples

INDEX = "shards.safetensors"
FORMAT = 1
_TYPES = {"I32": np.int32, "U32": np.uint32, "I64": np.int64, "U8": np.uint8}
_ARRAYS = ("shard", "start", "size", "header", "label", "text", "text_end")
_WITHOUT_RESULTS = ", or delete that file where no results are beside it"
"""A run that ends before it has results, as for the name of a layer that there is not, leaves its index."""
_CHUNK = 1 << 22
_FORGET = 1 << 16


@dataclass(eq=False)
class Index:
    """Where each photo lies. The file is one of safetensors, with all arrays and, as text, what is known of shards."""

    about: dict[str, Any]
    """`shards`: name, size, stamp and checksum of each; `categories`; `image`, the ending that was asked for."""
    arrays: dict[str, Array]
    """For each photo the number of its shard, where it begins in it, its bytes, the CRC-32 of its header, its label and
    where its path ends in `text`."""
    file: mmap.mmap | None = None
    """The file that has the arrays."""
    read: int = 0

    @classmethod
    def of(cls, samples: Sequence[Samples], shards: Sequence[Mapping[str, Any]], image: str | None) -> Index:
        """Join what was scanned, in the order of the shards; text labels become categories."""
        numbers = np.concatenate([one.numbers for one in samples])
        categories, labels = _classes([label for one in samples for label in one.labels])
        arrays = {
            "shard": np.repeat(np.arange(len(samples), dtype=np.int32), [len(one.numbers) for one in samples]),
            "start": numbers[:, 0].copy(),
            "size": numbers[:, 1].copy(),
            "header": numbers[:, 2].astype(np.uint32),
            "label": labels,
            "text": np.frombuffer(b"".join(one.text for one in samples), np.uint8),
            "text_end": np.cumsum(numbers[:, 3]),
        }
        known = [{**shard, "checksum": one.checksum} for shard, one in zip(shards, samples, strict=True)]
        return cls({"format": FORMAT, "shards": known, "categories": categories, "image": image}, arrays)

    def write(self, folder: Path) -> Path:
        """Write it whole or not at all. Raises OutputError where there is no place for it."""
        path = folder / INDEX
        temporary = folder / f".{uuid.uuid4().hex}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                for part in self._parts():
                    file.write(part)
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError(
                f"the index of the shards cannot be written to {path}: {error.strerror or error}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return path

    def _parts(self) -> Iterator[Any]:
        """The file's content: the length of its header, the header, and all arrays."""
        kinds = {np.dtype(kind): name for name, kind in _TYPES.items()}
        tensors, end = dict[str, Any](), 0
        for name, array in self._in_file_order():
            tensors[name] = {
                "dtype": kinds[array.dtype],
                "shape": [len(array)],
                "data_offsets": [end, end + array.nbytes],
            }
            end += array.nbytes
        texts = {"about": json.dumps(self.about), "checksum": _checksum(self.about, self._in_file_order())}
        header = json.dumps({"__metadata__": texts, **tensors}).encode()
        header += b" " * (-len(header) % 8)
        yield len(header).to_bytes(8, "little")
        yield header
        for _, array in self._in_file_order():
            yield np.ascontiguousarray(array).data if len(array) else b""

    def _in_file_order(self) -> list[tuple[str, Array]]:
        """Arrays of wide numbers first, so that all of them are aligned."""
        return sorted(self.arrays.items(), key=lambda pair: (-pair[1].itemsize, pair[0]))

    @classmethod
    def mapped(cls, path: Path, check: bool = True) -> Index:
        """Map what was written. Raises OutputError for a file that is broken, or not of this kind."""
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > os.path.getsize(path):
                    raise ValueError("it ends too early")
                header = json.loads(file.read(length))
                texts = header.pop("__metadata__")
                about = json.loads(texts["about"])
                if about["format"] != FORMAT:
                    raise ValueError(f"it is of format {about['format']}, not {FORMAT}")
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                arrays = {name: _mapped(whole, 8 + length, row) for name, row in header.items()}
                made = cls(about, {name: arrays[name] for name in _ARRAYS}, whole)
                if check and texts["checksum"] != _checksum(about, _chunks(file, 8 + length, header)):
                    raise ValueError("its checksum is not that of its content")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(
                f"the index {path} cannot be used: {error}; delete it, and the same call makes it anew"
            ) from error
        return made

    def require_of(self, path: Path, names: Sequence[str], image: str | None) -> None:
        """Raise InputError where it is an index of other shards than these."""
        indexed = self.about["shards"]
        if [shard["name"] for shard in indexed] != list(names) or self.about["image"] != image:
            other = next((a["name"] for a, b in zip(indexed, [*names, None], strict=False) if a["name"] != b), None)
            difference = (
                f"another choice of photos (image={self.about['image']!r})" if other is None else "other shards"
            )
            difference += f", among them {other}" if other and other not in names else ""
            raise InputError(f"{path} is an index of {difference}; use another folder{_WITHOUT_RESULTS}")

    def require_unchanged(self, path: Path, about: Sequence[Mapping[str, Any]]) -> None:
        """Raise ShardError where one of the shards has changed since it was indexed; `about` is what they are now."""
        for shard, now in zip(self.about["shards"], about, strict=True):
            if shard["size"] != now["size"] or shard["stamp"] != stamp(now):
                what = "size" if shard["size"] != now["size"] else "date, or its server's mark,"
                raise ShardError(
                    f"the shard {shard['name']} has changed since it was indexed in {path}: its {what} is another; "
                    f"copy shards with their dates (cp -p), or use another folder for the results{_WITHOUT_RESULTS}"
                )

    def was_read(self, photos: int) -> None:
        """Count what was read; now and then it no longer counts as memory of this process: the system still has it."""
        self.read += photos
        if self.read >= _FORGET and self.file is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.read = 0
            self.file.madvise(mmap.MADV_DONTNEED)

    @property
    def checksum(self) -> str:
        """What identifies the photos: the names, sizes and headers of all shards, in their order."""
        digest = hashlib.sha256(f"{self.about['image']}\n".encode())
        for shard in self.about["shards"]:
            digest.update(f"{shard['name']} {shard['size']} {shard['checksum']}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


class MemberNames(Sequence[str]):
    """What each photo is called: the name of its shard and its path in it."""

    def __init__(self, index: Index) -> None:
        self._shards = [shard["name"] for shard in index.about["shards"]]
        self._shard, self._text, self._end = (index.arrays[name] for name in ("shard", "text", "text_end"))
        self._index = index

    def __len__(self) -> int:
        return len(self._shard)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        return [self._name(place) for place in places] if isinstance(places, range) else self._name(places)

    def _name(self, place: int) -> str:
        self._index.was_read(1)
        start = int(self._end[place - 1]) if place else 0
        text = bytes(self._text[start : int(self._end[place])])
        return f"{self._shards[int(self._shard[place])]}/{text.decode('utf-8', 'surrogateescape')}"


def stamp(info: Mapping[str, Any]) -> str:
    """What a file system says of a file that is another once the file has changed: its mark, else its date."""
    known = (
        info.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "Last-Modified")
    )
    value = next((one for one in known if one is not None), "")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _classes(labels: Sequence[Label]) -> tuple[list[str], Array]:
    """Names of the classes and an index for each label: numbers stay what they are, unless one is a text."""
    if any(isinstance(label, str) for label in labels):
        texts = [None if label is None else str(label) for label in labels]
        categories = sorted({text for text in texts if text is not None})
        place = {text: number for number, text in enumerate(categories)}
        return categories, np.array([-1 if text is None else place[text] for text in texts], np.int32)
    known = (label if isinstance(label, int) else -1 for label in labels)
    return [], np.fromiter(known, np.int32, len(labels))


def _mapped(whole: mmap.mmap, begin: int, row: Mapping[str, Any]) -> Array:
    kind, (first, last), (count,) = np.dtype(_TYPES[row["dtype"]]), row["data_offsets"], row["shape"]
    if last - first != count * kind.itemsize or begin + last > len(whole) or first < 0:
        raise ValueError("it ends too early")
    return np.frombuffer(whole, kind, count, begin + first) if count else np.zeros(0, kind)


def _chunks(file: Any, begin: int, header: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The content of all arrays, read a few megabytes at a time: what is mapped would count as memory."""
    for name, row in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
        first, last = row["data_offsets"]
        file.seek(begin + first)
        for at in range(first, last, _CHUNK):
            yield name, np.frombuffer(file.read(min(_CHUNK, last - at)), np.uint8)


def _checksum(about: Mapping[str, Any], arrays: Any) -> str:
    digest = hashlib.sha256(json.dumps(about).encode())
    for _, array in arrays:
        digest.update(np.ascontiguousarray(array).data if len(array) else b"")
    return digest.hexdigest()
