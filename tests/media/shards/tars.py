"""Tar files of small photos, as tests need them: in the WebDataset format, with the same photos in a folder."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (24, 16)
"""(width, height) of the photos."""


def photo_bytes(seed: int, kind: str = "JPEG", size: tuple[int, int] = SIZE) -> bytes:
    """The file of a photo of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A tar file of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_700_000_000
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int = 3, each: int = 8, labels: str | None = "cls") -> str:
    """Shards of photos with labels 0, 1 and 2 in turns; gives their pattern. `folder/photos` has the same photos."""
    number = 0
    (folder / "photos").mkdir(parents=True)
    for shard in range(shards):
        members = []
        for _ in range(each):
            content, label = photo_bytes(number), number % 3
            (folder / "photos" / f"{number:04d}.jpg").write_bytes(content)
            members.append((f"{number:04d}.jpg", content))
            if labels is not None:
                text = str(label) if labels == "cls" else json.dumps({"label": label, "caption": "noise"})
                members.append((f"{number:04d}.{labels}", text.encode()))
            number += 1
        write_tar(folder / f"train-{shard:06d}.tar", members)
    return f"{folder}/train-{{000000..{shards - 1:06d}}}.tar"
