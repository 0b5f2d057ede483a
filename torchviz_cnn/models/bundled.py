"""The trained checkpoints that come with the package: what they are, where they lie, whether they are
whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from torch import nn

from torchviz_cnn.core.errors import CheckpointError, did_you_mean
from torchviz_cnn.models.convnets import convnet_2025
from torchviz_cnn.models.xception import mini_xception

__all__ = ["BUNDLED", "Bundled", "bundled", "bundled_path"]

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bundled:
    """A checkpoint of the package and how to use it.

    `factory()` builds the network that `file` (safetensors, half precision) fills. Pictures: shorter side
    resized to `resize` pixels, centre crop to `input_size` (height, width), 0..1, minus `mean`, over `std`.
    """

    name: str
    file: str
    sha256: str
    factory: Callable[[], nn.Module]
    categories: tuple[str, ...]
    input_size: tuple[int, int]
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BUNDLED: Mapping[str, Bundled] = MappingProxyType({
    "cats_and_dogs": Bundled(
        name="cats_and_dogs",
        file="cats_and_dogs_convnet.safetensors",
        sha256="4a9a97b8d485862cad24e37045f6c99f31f860694bb0ec6ae2475d66a9381106",
        factory=partial(convnet_2025, num_classes=2, batch_norm=True),
        categories=("cat", "dog"),
        input_size=(160, 160),
        resize=160,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "cats_and_dogs_mini_xception": Bundled(
        name="cats_and_dogs_mini_xception",
        file="cats_and_dogs_mini_xception.safetensors",
        sha256="720531a64c78e0ff6b621fbcee96d5b2a5ae6bb78bd8da17435cc165668a862a",
        factory=partial(mini_xception, num_classes=2),
        categories=("cat", "dog"),
        input_size=(128, 128),
        resize=128,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
})  # fmt: skip


def bundled(name: str) -> Bundled:
    """The bundled network of that name; `CheckpointError` with the nearest name where there is none."""
    if name not in BUNDLED:
        raise CheckpointError(
            f"no bundled network {name!r}{did_you_mean(name, BUNDLED)} (there are {', '.join(BUNDLED)})"
        )
    return BUNDLED[name]


def bundled_path(name: str) -> Path:
    """The checkpoint's file: inside the installed package, or in `weights/` of a checkout or editable
    install.

    Raises `CheckpointError`, which names the file, where it is in neither place or its SHA-256 is another
    than when it was bundled: damaged, or swapped for another.
    """
    entry = bundled(name)
    places = (PACKAGE / "weights" / entry.file, PACKAGE.parent / "weights" / entry.file)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"bundled checkpoint {entry.file} is missing: looked for {' and '.join(map(str, places))}"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry.sha256:
        raise CheckpointError(
            f"{path} is not the bundled {entry.file}: its SHA-256 begins {found[:12]}, "
            f"not {entry.sha256[:12]}; it was damaged or replaced, so install the package again"
        )
    return path
