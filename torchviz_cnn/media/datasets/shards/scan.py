"""What is in a tar file: its headers are read once, and the labels, which lie between the photos."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from torchviz_cnn.core.errors import ShardError, are, one_line
from torchviz_cnn.media.bands import Array

HEADER = 512
"""Bytes of a member's header, which stands before its content; also what sizes in a tar are multiples of."""
_LOCAL_BLOCK = 1 << 14
_BLOCKS = (1 << 16, 1 << 23)
"""Least and most bytes that are asked of a server at once."""
_GAP = 1 << 22
"""So many bytes come about as soon as the answer to another request would: a shorter gap is read, not left out."""
_END_READ = 1 << 16
"""How much behind the end of a tar is looked at: there should be zeros."""
_LABELS = ("cls", "json")
_LARGEST_LABEL = 1 << 22
_LABEL_KEYS = ("label", "cls", "class", "target", "labels", "y")
_MOST_CLASSES = 1 << 31
Label = int | str | None


@dataclass(eq=False)
class Samples:
    """The photos of one shard, in their order."""

    checksum: str = ""
    """Over the names, sizes and places of all members, and the labels."""
    text: bytes = b""
    """The paths of the photos, one after the other."""
    numbers: Array = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    """For each photo where it begins, its bytes, the CRC-32 of its header, and the bytes of its path: (n, 4)."""
    labels: list[Label] = field(default_factory=list)
    without_use: list[str] = field(default_factory=list)
    """Members with labels that are neither whole numbers nor text."""
    links: list[str] = field(default_factory=list)
    """Photos and labels that are links, or sparse files, whose bytes are not where they stand."""
    endings: Counter[str] = field(default_factory=Counter)
    """How many members there are of each kind."""


@dataclass(eq=False)
class _Window:
    """A file as tarfile reads one, of which a part is in memory: headers that lie together need one request."""

    read_range: Callable[[int, int], bytes]
    size: int
    least: int
    most: int
    position: int = 0
    start: int = 0
    data: bytes = b""

    def __post_init__(self) -> None:
        self.block = self.least

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        self.position = position
        return position

    def read(self, count: int) -> bytes:
        part = self.at(self.position, count)
        self.position += len(part)
        return part

    def at(self, start: int, count: int) -> bytes:
        """The bytes at a place, fewer where the file ends before."""
        stop = min(start + count, self.size)
        if stop <= start:
            return b""
        if not self.start <= start <= stop <= self.start + len(self.data):
            near = start - self.start - len(self.data) < _GAP
            self.block = min(self.block * 4, self.most) if near else self.least
            self.start = start
            self.data = self.read_range(start, min(max(stop, start + self.block), self.size))
        return self.data[start - self.start : stop - self.start]


def scan(name: str, size: int, read_range: Callable[[int, int], bytes], image: str | None, local: bool) -> Samples:
    """What is in a shard. Raises ShardError for one that is no tar, or not whole, or has several photos of one sample.

    Args:
        name: what the shard is called.
        size: its bytes.
        read_range: gives its bytes from one place to before another.
        image: the ending of the photos, where samples have several.
        local: whether parts of it cost no time of their own.
    """
    window = _Window(read_range, size, *((_LOCAL_BLOCK, _LOCAL_BLOCK) if local else _BLOCKS))
    digest, made = hashlib.sha256(), Samples()
    photos = dict[str, dict[str, tuple[bytes, int, int, int]]]()
    labels = dict[str, dict[str, Label]]()
    for member in _members(name, window):
        path = member.name.removeprefix("./")
        digest.update(f"{path}\0{member.size}\0{member.offset_data}\n".encode("utf-8", "surrogateescape"))
        folder, _, base = path.rpartition("/")
        stem, _, ending = base.partition(".")
        hidden = not stem or any(part.startswith(".") and part not in (".", "..") for part in folder.split("/"))
        key, ending = f"{folder}/{stem}", ending.lower()
        used = is_picture(ending) or ending in _LABELS
        if not hidden and (member.issym() or member.islnk() or member.issparse()) and used:
            made.links.append(f"{name}/{path}")
        if hidden or not member.isreg() or member.issparse():
            continue
        made.endings[ending] += 1
        if ending in _LABELS:
            content = window.at(member.offset_data, min(member.size, _LARGEST_LABEL))
            digest.update(content)
            label, known = _label(ending, content)
            labels.setdefault(key, {})[ending] = label
            made.without_use += [] if known else [f"{name}/{path}"]
        elif ending == image or (image is None and is_picture(ending)):
            head = zlib.crc32(window.at(member.offset_data - HEADER, HEADER))
            written = path.encode("utf-8", "surrogateescape")
            photos.setdefault(key, {})[ending] = (written, member.offset_data, member.size, head)
    _require_one_each(name, photos)
    chosen = [next(iter(several.values())) for several in photos.values()]
    made.checksum = digest.hexdigest()
    made.text = b"".join(photo[0] for photo in chosen)
    made.numbers = np.array([(*photo[1:], len(photo[0])) for photo in chosen], np.int64).reshape(-1, 4)
    given = [labels.get(key, {}) for key in photos]
    shared = dict[Label, Label]()  # equal labels are one object, as there are few classes
    made.labels = [shared.setdefault(one, one) for one in (label.get("cls", label.get("json")) for label in given)]
    return made


def _members(name: str, window: _Window) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, each with its long name and size, whichever way these are written."""
    try:
        with tarfile.open(fileobj=window, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset < member.offset_data:  # which tarfile would read again and again
                    raise tarfile.ReadError(f"the member at byte {member.offset:,} has fewer than 0 bytes")
                yield member
                tar.members = []  # type: ignore[misc]  # which tarfile keeps otherwise
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, IndexError, RecursionError) as error:
        if isinstance(error, ShardError):
            raise
        unpack = next((command for begin, command in _PACKED.items() if window.at(0, 6).startswith(begin)), None)
        if unpack is not None:
            plain = f"{_stem(name)}{'.plain' if name.casefold().endswith('.tar') else ''}.tar"
            raise ShardError(
                f"the shard {name} is compressed, and parts can be read of plain tar files only: unpack it, as by "
                f"`{unpack} < {name} > {plain}`"
            ) from error
        raise ShardError(f"the shard {name} is not a tar file, or not all of one: {one_line(error)}") from error
    _require_end(name, window, end)


_PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
"""What unpacks a file, by what it begins with."""


def _stem(name: str) -> str:
    """The name of a tar file without what its kind is."""
    return re.sub(r"(\.tar)?\.\w+$", "", name, flags=re.IGNORECASE)


def _require_end(name: str, window: _Window, end: int) -> None:
    """Raise ShardError where a tar does not end as tars do: then part of it is missing, or would be passed over."""
    mark = window.at(end, HEADER)
    if len(mark) < HEADER:
        raise ShardError(f"the shard {name} is cut off: it ends at byte {window.size:,} without the mark of its end")
    if any(mark):
        raise ShardError(f"the shard {name} is broken: there is no header at byte {end:,}")
    if any(window.at(end, min(window.size - end, _END_READ))):
        raise ShardError(f"the shard {name} has content behind the mark of its end, at byte {end:,}: join tars anew")


def _require_one_each(name: str, photos: dict[str, dict[str, Any]]) -> None:
    for key, several in photos.items():
        if len(several) > 1:
            kinds = sorted(several)
            others = f" and {len(kinds) - 3:,} more" if len(kinds) > 3 else ""
            raise ShardError(
                f"the sample {key.strip('/')} of the shard {name} has {len(kinds)} photos, {', '.join(kinds[:3])}"
                f"{others}: TarShards(..., image={kinds[0]!r}) takes the first of these of each sample; members "
                "that are called the same up to the first dot are one sample"
            )


@lru_cache(maxsize=4096)
def is_picture(ending: str) -> bool:
    """Whether Pillow reads files with this ending, of which the part behind the last dot counts."""
    known = Image.registered_extensions()
    return known.get(f".{ending.rpartition('.')[2]}") in Image.OPEN


def _label(ending: str, content: bytes) -> tuple[Label, bool]:
    """The label that a `.cls` or `.json` says, and whether it is one; a `.json` may have none, which -1 says too."""
    try:
        text = content.decode("utf-8").strip()
        value = text if ending == "cls" else _of_json(json.loads(text))
    except (ValueError, RecursionError):
        return None, False
    if isinstance(value, str):
        value = value.strip()
        value = float(value) if re.fullmatch(r"-?\d+(\.0*)?", value, re.ASCII) else value
    if value is None or value == -1:
        return None, True
    if isinstance(value, str):
        return value or None, bool(value)
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    return (int(value), True) if whole and 0 <= value < _MOST_CLASSES else (None, False)


def _of_json(value: Any) -> Any:
    """The label of a sample's metadata, which may be the label itself."""
    if isinstance(value, dict):
        return next((value[key] for key in _LABEL_KEYS if key in value), None)
    return value


def require_photos(endings: Counter[str], photos: int, image: str | None) -> None:
    """Raise ShardError where no member is a photo, with what there is."""
    if photos:
        return
    kinds = ", ".join(f"{count:,} x .{ending}" for ending, count in endings.most_common(6)) or "nothing"
    asked = "no photos" if image is None else f"no members that end in .{image}"
    raise ShardError(f"the shards have {asked}: there {are(sum(endings.values()), 'member')}: {kinds}")
