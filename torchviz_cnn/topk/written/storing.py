"""What of a result's dataset and figures is saved, and read again."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchviz_cnn.core.errors import ImageError, InputError, OutputError, SkippedWarning
from torchviz_cnn.core.warn import warn
from torchviz_cnn.media.datasets.givers import gives_stored
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.datasets.shards.index import INDEX, Index
from torchviz_cnn.media.datasets.shards.tar_shards import TarShards
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.runs.files import whole
from torchviz_cnn.topk.statistics import ChannelStatistics

if TYPE_CHECKING:
    from torchviz_cnn.topk.result import TopActivations

_ORIGIN = ("folder", "shards", "image", "index", "preprocess")


def origin_of(source: ImageSource | None) -> dict[str, Any]:
    """Where the photos are and how they were prepared, as far as that can be saved."""
    if source is None:
        return {}
    owner, how = source.dataset, source.preprocess
    if not gives_stored(owner):  # those that are found there again would be other images
        return {"preprocess": dataclasses.asdict(how) if isinstance(how, Preprocess) else None}
    if owner.preprocess is not None:
        how = owner.preprocess
    where: dict[str, Any] = {"folder": str(owner.path.resolve())} if isinstance(owner, PhotoFolder) else {}
    if isinstance(owner, TarShards) and owner.reachable_again:
        where = {"shards": owner.given, "image": owner.image, "index": owner.kept_in}
    return {**where, "preprocess": dataclasses.asdict(how) if isinstance(how, Preprocess) else None}


def saved_origin(about: str) -> dict[str, Any]:
    """The same, from what is saved about a result."""
    return {name: value for name, value in json.loads(about).items() if name in _ORIGIN}


def copy_index(results: Path, other: Path) -> None:
    """Give another folder of results the index of shards that one has, unless it is broken.

    Raises OutputError where it cannot.
    """
    if (results / INDEX).exists() and not (other / INDEX).exists():
        try:
            Index.mapped(results / INDEX)
        except OutputError:
            return
        with whole(other / INDEX) as temporary:
            shutil.copyfile(results / INDEX, temporary)


def same_photos(about: Mapping[str, Any], results: Path, checksum: object) -> Photos | None:
    """The photos that a result was made from, where they are still there and the same: its places are in their order.

    Args:
        about: where they were, as `origin_of` says. The headers of shards are not read again for that, and a server
            that has them is asked when the first photo is read.
        results: the folder of the result, which has the index of shards, unless that was kept elsewhere.
        checksum: that of their listing.
    """
    try:
        photos: Photos | None = None
        if "shards" in about:
            places = [one for one in (results, Path(about["index"] or "")) if (one / INDEX).exists()]
            if places:
                photos = shards = TarShards(about["shards"], image=about["image"], index=places[0])
                shards.open(places[0])
        elif os.path.isdir(about.get("folder") or ""):
            photos = PhotoFolder(about["folder"])
        return photos if photos is not None and photos.listing()["checksum"] == checksum else None
    except (ImageError, InputError, OutputError):  # there are none left, or others
        return None


def reachable(top: TopActivations) -> TopActivations:
    """The same result; without its photos where they cannot be read now, as their server is gone, which is told."""
    try:
        if top.source is not None:
            top.source.prepare(None)
    except InputError as error:
        warn(f"the photos of the top activations are left out: {error}", SkippedWarning)
        return top.attached(None, top.model)
    return top


def tuples(saved: dict[str, Any]) -> dict[str, Any]:
    """The fields of a frozen dataclass, as they were before JSON made lists of its tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}


def statistics_of(tensors: dict[str, Tensor], layer: str) -> ChannelStatistics:
    prefix = f"{layer}/statistics/"
    return ChannelStatistics(**{key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
