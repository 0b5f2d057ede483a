"""JPEG files that a device decodes and fits in batches, rather than the processor one by one."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media.images import MAX_PIXELS, ORIENTATION, Preprocess

Decode = Literal["cpu", "cuda"]
_log = logging.getLogger("torchviz_cnn")
_AT_ONCE = 1 << 25
"""How many pixels are decoded at a time."""
_SMALLEST = 1 / 64
"""How much smaller a device makes a photo; its memory for the weights of more is limited."""
_MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}
_KNOWN_COMPONENTS = ([1], [1, 2, 3])
"""The numbers that JPEG files give to grey, and to luminance and the two chrominances."""


def require_fits(how: Preprocess | None) -> None:
    """Raise InputError for a preparation that a device does not do."""
    asked = "decode='cuda' prepares photos on the GPU as a Preprocess says"
    if how is None:
        raise InputError(f"{asked}, and these are prepared in another way: pass preprocess=Preprocess(...)")
    if len(how.mean) not in (1, 3) or how.bands is not None:
        raise InputError(f"{asked}, in grey or RGB; these have {len(how.mean)} bands, bands={how.bands}")
    if how.interpolation not in _MODES:
        raise InputError(f"{asked}, with interpolation {', '.join(_MODES)}, not {how.interpolation!r}")


def require_decoder(device: torch.device) -> None:
    """Raise InputError where there is no CUDA device, the network is on another, or torchvision cannot decode on it."""
    if not torch.cuda.is_available():
        raise InputError("decode='cuda' needs a CUDA device, and there is none; decode='cpu' needs none")
    if device.type != "cuda":
        raise InputError(f"decode='cuda' decodes where the network is, and that is on {device}: model.to('cuda')")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    try:
        _decode([torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)], device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError) as error:
        raise InputError(f"decode='cuda': this torchvision does not decode JPEG on {device}: {error}") from error


class Jpeg(NamedTuple):
    """A file that is a plain JPEG."""

    file: bytes
    size: tuple[int, int]
    """Width and height."""


def plain_jpeg(file: bytes, how: Preprocess) -> Jpeg | None:
    """A JPEG that every decoder reads alike, upright, whole and of a usual size; None for all else, which Pillow reads
    or refuses."""
    if file[:3] != b"\xff\xd8\xff" or file[-2:] != b"\xff\xd9":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata
            with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
                return Jpeg(file, image.size) if _is_plain(image, how) else None
    except Exception:  # a damaged file may fail in any way: Pillow says how, when it is asked for the photo
        return None


def _is_plain(image: Image.Image, how: Preprocess) -> bool:
    width, height = image.size
    scaled, _ = how.placement(width, height)
    return (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and [component[0] for component in getattr(image, "layer", ())] in _KNOWN_COMPONENTS
        and image.info.get("adobe_transform") in (None, 1)
        and image.getexif().get(ORIENTATION, 1) == 1
        and max(width * height, scaled[0] * scaled[1]) <= MAX_PIXELS
        and min(scaled[0] / width, scaled[1] / height) >= _SMALLEST
    )


@dataclass(frozen=True, eq=False)
class Jpegs:
    """Plain JPEG files among the photos of a batch, as one tensor, which processes hand on at once."""

    rows: tuple[int, ...]
    """The place of each in the batch."""
    sizes: tuple[tuple[int, int], ...]
    data: Tensor
    """The bytes of all, one after the other."""
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, files: Mapping[int, Jpeg]) -> Jpegs:
        """Files by their place in a batch."""
        data = np.frombuffer(bytearray().join(jpeg.file for jpeg in files.values()), np.uint8)
        lengths = tuple(len(jpeg.file) for jpeg in files.values())
        return cls(tuple(files), tuple(jpeg.size for jpeg in files.values()), torch.from_numpy(data), lengths)

    def prepared_on(self, device: torch.device, how: Preprocess) -> dict[int, Tensor | None]:
        """A Preprocess's pixels (C, H, W) of each, by its place; None for those that the device's decoder refuses.

        The steps are Pillow's, and values differ from its by a few levels, as decoders differ.
        """
        files = torch.split(self.data, list(self.lengths))
        answers: dict[int, Tensor | None] = dict.fromkeys(self.rows)
        for some in _runs([width * height for width, height in self.sizes]):
            with stream_apart(device):
                photos = _decoded([files[number] for number in some], device)
                answers |= _fitted_by_shape([self.rows[number] for number in some], photos, how)
                del photos
        return answers


@contextmanager
def stream_apart(device: torch.device) -> Iterator[None]:
    """Work on a CUDA device in a stream of its own, which has ended its work after the block.

    torchvision's decoder writes at once to memory that PyTorch takes for free once the work before it in the current
    stream has ended. Here there is no such work, and what is computed in the user's stream goes on meanwhile.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()


@lru_cache(maxsize=16)
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _runs(pixels: Sequence[int]) -> Iterator[range]:
    """Ranges of photos that are decoded together: of at most so many pixels, or one."""
    first, total = 0, 0
    for row, count in enumerate(pixels):
        if total and total + count > _AT_ONCE:
            yield range(first, row)
            first, total = row, 0
        total += count
    yield range(first, len(pixels))


def _decoded(files: list[Tensor], device: torch.device) -> list[Tensor | None]:
    """RGB (3, H, W) of each file; None for those that the decoder refuses, which it says of all together."""
    try:
        return list(_decode(files, device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if len(files) == 1:
            _log.info("a JPEG is decoded on the CPU, as %s's decoder refuses it: %s", device.type, error)
            return [None]
    middle = len(files) // 2
    return _decoded(files[:middle], device) + _decoded(files[middle:], device)


def _decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 0.29 it names torchcodec as what follows it
        return list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))


def _fitted_by_shape(rows: Sequence[int], photos: Sequence[Tensor | None], how: Preprocess) -> dict[int, Tensor]:
    """The pixels of each photo by its row, those of one size computed together."""
    by_shape: dict[torch.Size, dict[int, Tensor]] = {}
    for row, photo in zip(rows, photos, strict=True):
        if photo is not None:
            by_shape.setdefault(photo.shape, {})[row] = photo
    fitted: dict[int, Tensor] = {}
    for alike in by_shape.values():
        fitted |= zip(alike, _fitted(torch.stack(list(alike.values())), how), strict=True)
    return fitted


def _fitted(photos: Tensor, how: Preprocess) -> Tensor:
    """Photos (B, 3, h, w) of one size, in 8 bits after every step, as Pillow makes them."""
    if len(how.mean) == 1:
        photos = _grey(photos)
    (height, width), (rows, columns) = how.size, photos.shape[2:]
    (across, down), (x, y) = how.placement(columns, rows)
    resized = _resized(_resized(photos, (rows, across), how), (down, across), how)
    canvas = photos.new_zeros(len(photos), photos.shape[1], height, width)
    if how.geometry == "pad":
        for channel, mean in enumerate(how.mean):
            canvas[:, channel] = round(mean * 255)
    top, left = max(-y, 0), max(-x, 0)
    part = resized[:, :, max(y, 0) : max(y, 0) + height - top, max(x, 0) : max(x, 0) + width - left]
    canvas[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
    return canvas


def _grey(photos: Tensor) -> Tensor:
    """The luminance of RGB (B, 3, h, w), in the whole numbers of Pillow: (B, 1, h, w)."""
    red, green, blue = photos.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def _resized(photos: Tensor, size: tuple[int, int], how: Preprocess) -> Tensor:
    """Photos at another size (rows, columns), rounded to 8 bits as Pillow does after each of both directions."""
    if tuple(photos.shape[2:]) == size:
        return photos
    mode = _MODES[how.interpolation]
    smooth = mode != "nearest-exact"
    values = functional.interpolate(photos.float(), size, mode=mode, antialias=smooth).add_(0.5)
    return (values.clamp_(0, 255) if mode == "bicubic" else values).to(torch.uint8)  # others stay within 0 and 255
