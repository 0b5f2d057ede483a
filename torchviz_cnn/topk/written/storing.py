"""What of a result's dataset and figures is saved, and read again."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from torch import Tensor

from torchviz_cnn.core.errors import ImageError
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.topk.statistics import ChannelStatistics


def origin_of(source: ImageSource | None) -> dict[str, Any]:
    """Where the photos are and how they were prepared, as far as that can be saved."""
    if source is None:
        return {}
    owner, how = source.dataset, source.preprocess
    if isinstance(owner, Photos) and owner.preprocess is not None:
        how = owner.preprocess
    where = {"folder": str(owner.path.resolve())} if isinstance(owner, PhotoFolder) else {}
    return {**where, "preprocess": dataclasses.asdict(how) if isinstance(how, Preprocess) else None}


def saved_origin(about: str) -> dict[str, Any]:
    """The same, from what is saved about a result."""
    return {name: value for name, value in json.loads(about).items() if name in ("folder", "preprocess")}


def same_photos(where: str, checksum: object) -> PhotoFolder | None:
    """The photos of a folder, if they are those of a checksum: the places of a result are in their order."""
    try:
        photos = PhotoFolder(where)
    except ImageError:  # there are none left
        return None
    return photos if ImageSource(photos).listing()["checksum"] == checksum else None


def tuples(saved: dict[str, Any]) -> dict[str, Any]:
    """The fields of a frozen dataclass, as they were before JSON made lists of its tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}


def statistics_of(tensors: dict[str, Tensor], layer: str) -> ChannelStatistics:
    prefix = f"{layer}/statistics/"
    return ChannelStatistics(**{key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
