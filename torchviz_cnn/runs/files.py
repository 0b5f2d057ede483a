"""What results share: files that are whole or not there at all, and pictures for notebooks."""

from __future__ import annotations

import contextlib
import io
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import OutputError

_LEVEL = 4
"""How hard PNGs are compressed: half the time of Pillow's usual 6, for files that are larger by a hundredth."""


def write(path: str | Path, fill: Callable[[BinaryIO], object]) -> Path:
    """Write a file under a temporary name and rename it: a reader finds all of it or none.

    Makes the folder where needed. Raises OutputError where it cannot be written; nothing is then left behind.
    """
    path = checks.path("path", path)
    with whole(path) as temporary, open(temporary, "xb") as file:
        fill(file)
    return path


@contextlib.contextmanager
def whole(path: str | Path, ending: str = ".part") -> Iterator[Path]:
    """The temporary name of a file that is written in the block, and renamed at its end: see `write`."""
    path = checks.path("path", path)
    temporary = path.parent / f".{uuid.uuid4().hex}{ending}"
    if os.path.isdir(path):
        raise OutputError(f"cannot write {path}: it is a folder")
    if "\0" in str(path):
        raise OutputError(f"cannot write {str(path)!r}: a file's name has no null character")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OutputError:
        raise
    except FileExistsError as error:
        raise OutputError(f"cannot write {path}: {error.filename} is a file, not a folder") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_image(path: str | Path, image: Image.Image) -> Path:
    """Write a picture in the format that its name says (PNG, JPEG, WebP, ...)."""
    path = checks.path("path", path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise OutputError(f"cannot write {path}: no picture format is called {path.suffix!r}; use .png")

    def fill(file: BinaryIO) -> None:
        try:
            image.save(file, kind, **({"compress_level": _LEVEL} if kind == "PNG" else {}))
        except ValueError as error:  # as WebP does for a side over 16383 pixels
            raise OSError(str(error)) from error

    return write(path, fill)


def save_arrays(path: str | Path, arrays: Mapping[str, Any]) -> Path:
    """Write named arrays to a `.npz` file, which `numpy.load` reads."""
    if checks.path("path", path).suffix != ".npz":
        raise OutputError(f"cannot write {path}: arrays are saved as .npz")
    values: dict[str, Any] = {
        name: _numpy(value) if isinstance(value, Tensor) else np.asarray(value) for name, value in arrays.items()
    }
    return write(path, lambda file: np.savez_compressed(file, **values))


def _numpy(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write named tensors to a `.safetensors` file."""
    from safetensors.torch import save

    if checks.path("path", path).suffix != ".safetensors":
        raise OutputError(f"cannot write {path}: tensors are saved as .safetensors")
    return write(path, lambda file: file.write(save(dict(tensors), dict(metadata))))


def safe_name(name: str) -> str:
    """A name as part of a file's name: letters, digits and `.#+-` stay, all else becomes `_`.

    Names that Windows keeps for devices get a `_` too, whatever the system, so that results can be copied.

    >>> safe_name("African elephant"), safe_name("<b>"), safe_name("aux.0")
    ('African_elephant', 'b', 'aux_.0')
    """
    safe = re.sub(r"[^\w.#+-]+", "_", name).strip("._") or "unnamed"
    safe = re.sub(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", r"\1_", safe)
    return safe.encode()[:150].decode(errors="ignore")  # file systems allow 255 bytes, of which some go to what follows


def file_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A safe name for what is made of each file, after its stem; of two alike the second gets a number."""
    names, used = dict[Path, str](), set[str]()  # without regard to capitals, which some file systems do not tell apart
    for path in dict.fromkeys(paths):
        stem = name = safe_name(path.stem)
        copy = 2
        while name.casefold() in used:
            name, copy = f"{stem}-{copy}", copy + 1
        used.add(name.casefold())
        names[path] = name
    return names


def require_place(path: Path, *, folder: bool = False) -> None:
    """Raise OutputError, before there is anything to lose, where a file, or a folder, cannot be written."""
    places = [path, *path.parents] if folder else path.parents
    above = next((place for place in places if os.path.exists(place)), Path())
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except (OSError, ValueError) as error:  # a name that the system does not take
        raise OutputError(f"cannot write {str(path)[:60]!r}: {getattr(error, 'strerror', None) or error}") from error
    if not above.is_dir():
        raise OutputError(f"cannot write {path}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise OutputError(f"cannot write {path}: {above} is read-only")


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
