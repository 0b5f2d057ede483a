"""How a report was made: versions, settings, seeds and checksums, so that it can be made again and its parts be recognised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.page.content import Photo
from torchviz_cnn.runs.folder import versions

LIBRARIES = ("torchvision", "numpy", "pillow")

Lines = dict[str, list[tuple[str, str]]]


def how_it_was_made(
    net: Network, photos: Sequence[Photo], settings: Mapping[str, object], command: str, checksum: str, seconds: float
) -> Lines:
    """Headings, and under each what it is called and what it is."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    prepared = _preparation(net.preprocess)
    files = [(photo.name, _file_checksum(photo)) for photo in photos]
    device = next((str(p.device) for p in net.model.parameters()), "cpu")
    return {
        "Command": [("command", command), ("made", f"{when}, in {seconds:.0f} s on {device}")],
        "Network": [
            ("model", net.name),
            ("weights", net.weights),
            ("SHA-256 of its parameters and buffers", checksum),
            ("photos are prepared", prepared),
        ],
        "Photos (SHA-256 of the files, or of the pixels)": files,
        "Settings": [(name.replace("_", " "), _text(value)) for name, value in settings.items()],
        "Versions": [*versions().items(), *((name, _version(name)) for name in LIBRARIES)],
    }


def _preparation(how: Preprocess) -> str:
    height, width = how.size
    what = {"crop": f"shorter side to {how.resize}, middle cut out", "stretch": "stretched", "pad": "padded"}
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (how.mean, how.std))
    return f"{what[how.geometry]}, {height} × {width}, minus ({mean}), over ({std})"


def _file_checksum(photo: Photo) -> str:
    if photo.file is not None and Path(photo.file).is_file():
        return hashlib.sha256(Path(photo.file).read_bytes()).hexdigest()
    return hashlib.sha256(photo.image.convert("RGB").tobytes()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, type):
        return value.__name__
    return "not set" if value is None else str(value)
