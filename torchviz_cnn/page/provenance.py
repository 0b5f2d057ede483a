"""Provenance of a report: versions, settings, seeds and checksums, with which it can be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media.images import preparation
from torchviz_cnn.media.origin import picture_of
from torchviz_cnn.page.content import NamedPhoto
from torchviz_cnn.runs.folder import versions

LIBRARIES = ("torchvision", "numpy", "pillow")


def provenance(
    net: Network, photos: Sequence[NamedPhoto], settings: Mapping[str, Any], command: str, checksum: str, took: float
) -> dict[str, list[tuple[str, str]]]:
    """Headings, and under each what it is called and what it is."""
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    files = [(photo.name, _file_checksum(photo, net)) for photo in photos]
    device = next((str(p.device) for p in net.model.parameters()), "cpu")
    return {
        "Command": [("command", command), ("made", f"{when}, in {took:.0f} s on {device}")],
        "Network": [
            ("model", net.name),
            ("weights", net.weights),
            ("SHA-256 of the parameters and buffers", checksum),
            ("preprocessing", preparation(net.preprocess)),
        ],
        "Photos (SHA-256 of the files, or of the pixels)": files,
        "Settings": [(name, _text(value)) for name, value in settings.items()],
        "Versions": [*versions().items(), *((name, version(name)) for name in LIBRARIES)],
    }


def _file_checksum(photo: NamedPhoto, net: Network) -> str:
    if photo.file is not None and Path(photo.file).is_file():
        return hashlib.sha256(Path(photo.file).read_bytes()).hexdigest()
    return hashlib.sha256(picture_of(photo.pixels, net.preprocess).tobytes()).hexdigest()


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, type):
        return value.__name__
    return "not set" if value is None else str(value).splitlines()[0]
