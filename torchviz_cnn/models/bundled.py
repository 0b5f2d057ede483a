"""The trained checkpoints that come with the package: where they lie, and whether they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchviz_cnn.core.errors import CheckpointError

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")
"""Inside the installed package, or in a checkout or an editable install."""


BUNDLED: Mapping[str, tuple[str, str]] = {
    "cats_and_dogs": (
        "cats_and_dogs_convnet.safetensors",
        "4a9a97b8d485862cad24e37045f6c99f31f860694bb0ec6ae2475d66a9381106",
    ),
    "cats_and_dogs_mini_xception": (
        "cats_and_dogs_mini_xception.safetensors",
        "720531a64c78e0ff6b621fbcee96d5b2a5ae6bb78bd8da17435cc165668a862a",
    ),
}
"""File and SHA-256 of each checkpoint of the package: safetensors in half precision."""


def bundled_path(name: str, folders: Sequence[Path] = FOLDERS) -> Path:
    """The file of a network of `BUNDLED`, in the first of the folders that has it.

    Raises CheckpointError, which names the file, where none has it, or its SHA-256 is another than when it was bundled.
    """
    file, expected = BUNDLED[name]
    places = [folder / file for folder in folders]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise CheckpointError(f"bundled checkpoint {file} is missing: looked for {' and '.join(map(str, places))}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise CheckpointError(
            f"{path} is not the bundled {file}: its SHA-256 begins {digest[:12]}, not {expected[:12]}; "
            "it was damaged or replaced, so install the package again"
        )
    return path
