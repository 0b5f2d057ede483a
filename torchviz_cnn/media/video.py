"""Clips: frames from a file, from photos or from a camera, read one by one, and files of frames written by OpenCV."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import ImageError, InputError, OutputError, counted, kind_of
from torchviz_cnn.core.opencv import opencv
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.images import require_file
from torchviz_cnn.media.origin import Photo, as_photo
from torchviz_cnn.media.render import Array

Source = str | os.PathLike[str] | int | Sequence[Photo]
"""A clip: a file, a folder of photos, the number of a camera, or photos in the order of the frames."""
CODECS = {".avi": "MJPG", ".m4v": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v", ".webm": "VP80"}
"""What can be written, by the ending of the file's name, and the codec: those that every build of OpenCV has."""
_USUAL_RATE = 25.0
_RATES = (0.1, 1000.0)
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames that can be read from the first again and again, but for a camera's."""

    name: str
    read: Callable[[Collection[int] | None], Iterator[Array]]
    """Yields the frames of these numbers, or all."""
    fps: float
    """Frames per second."""
    count: int | None
    """How many frames there are, as the file says, which may be wrong; None of a camera."""
    is_camera: bool = False
    is_file: bool = False

    def frames(self, only: Collection[int] | None = None) -> Iterator[Array]:
        """The frames in RGB, or those of some numbers: (H, W, 3) uint8, all of one size. Raises ImageError."""
        shape: tuple[int, ...] | None = None
        for number, pixels in enumerate(self.read(only)):
            if shape is not None and pixels.shape != shape:
                sizes = " and ".join(f"{width} x {height}" for height, width, _ in (shape, pixels.shape))
                raise ImageError(f"{self.name} changes its size at frame {number}: {sizes}")
            shape = pixels.shape
            yield pixels
        if shape is None:
            raise ImageError(f"{self.name} has no frame that can be read")

    def is_short(self, frames: int) -> bool:
        """Whether a file that gave this many frames says that it has more, but for how exactly files say it."""
        return self.count is not None and frames < 0.98 * self.count - 2

    def spread(self, k: int) -> list[Array]:
        """`k` frames that are spread evenly over the clip; of a camera the first."""
        if self.count is None:
            return list(itertools.islice(self.frames(), k))
        return list(self.frames({round(place) for place in np.linspace(0, max(self.count - 1, 0), k)}))


def open_clip(source: Source, fps: float | None = None) -> Clip:
    """A clip, ready to be read; `fps` is for photos (25), and instead of what a file or camera says.

    Photos of a folder are in natural order: `frame_9` before `frame_10`. Raises ImageError for what is not a clip.
    """
    if fps is not None and not _RATES[0] <= checks.number("fps", fps) <= _RATES[1]:
        raise InputError(f"fps is {_RATES[0]} to {_RATES[1]:g} frames per second, not {fps}")
    if isinstance(source, int):
        return _camera(checks.whole_number("a camera", source, least=0), fps)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _folder(path, fps) if path.is_dir() else _file(path, fps)
    if not isinstance(source, Sequence) or not len(source):
        what = f"an empty {type(source).__name__}" if isinstance(source, Sequence) else kind_of(source)
        raise InputError(f"a clip is a file, a folder, a camera's number or a list of photos, not {what}")
    first = source[0]
    folder = Path(first).parent if isinstance(first, (str, os.PathLike)) else "the clip"
    return _photos(str(folder), source, fps)


def _folder(path: Path, fps: float | None) -> Clip:
    names = sorted(PhotoFolder(path).names, key=natural)
    return _photos(str(path), [path / name for name in names], fps)


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names with their numbers as numbers.

    >>> sorted(["f10.png", "f9.png"], key=natural)
    ['f9.png', 'f10.png']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _photos(name: str, photos: Sequence[Photo], fps: float | None) -> Clip:
    def read(only: Collection[int] | None) -> Iterator[Array]:
        chosen = (photo for number, photo in enumerate(photos) if only is None or number in only)
        return (np.asarray(as_photo(photo)) for photo in chosen)

    return Clip(name, read, fps or _USUAL_RATE, len(photos))


def _file(path: Path, fps: float | None) -> Clip:
    require_file(path)

    def read(only: Collection[int] | None) -> Iterator[Array]:
        with _opened(os.path.abspath(path), f"{path} is not a clip that OpenCV reads, or is broken") as capture:
            yield from _captured(capture, only)

    with _opened(os.path.abspath(path), f"{path} is not a clip that OpenCV reads, or is broken") as capture:
        cv2 = opencv()
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not 1 <= count < 1e9:  # the file does not say
            count = sum(1 for _ in iter(capture.grab, False))
    return Clip(str(path), read, fps or _rate(rate), int(count), is_file=True)


def _camera(number: int, fps: float | None) -> Clip:
    problem = f"there is no camera {number}, or another program uses it"

    def read(only: Collection[int] | None) -> Iterator[Array]:
        with _opened(number, problem) as capture:
            yield from _captured(capture, only)

    with _opened(number, problem) as capture:
        rate = capture.get(opencv().CAP_PROP_FPS)
    return Clip(f"camera {number}", read, fps or _rate(rate), None, is_camera=True)


def _rate(stored: float) -> float:
    return stored if math.isfinite(stored) and _RATES[0] <= stored <= _RATES[1] else _USUAL_RATE


@contextlib.contextmanager
def _opened(source: str | int, problem: str) -> Iterator[Any]:
    with _quiet():
        capture = opencv().VideoCapture(source)
    try:
        if not capture.isOpened():
            raise ImageError(problem)
        yield capture
    finally:
        capture.release()


def _captured(capture: Any, only: Collection[int] | None) -> Iterator[Array]:
    cv2 = opencv()
    to_rgb = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    for number in itertools.count() if only is None else range(max(only) + 1):
        if not capture.grab():
            return
        if only is None or number in only:
            found, frame = capture.retrieve()
            if not found:
                return
            yield cv2.cvtColor(frame, to_rgb[frame.shape[2] if frame.ndim == 3 else 1])


def codec_of(path: Path) -> str:
    """The codec that the ending of a file's name stands for. Raises OutputError for one that is not written."""
    codec = CODECS.get(path.suffix.lower())
    if codec is None:
        raise OutputError(f"cannot write {path}: clips are written as {', '.join(CODECS)}, not as {path.suffix!r}")
    return codec


@contextlib.contextmanager
def written(temporary: Path, path: Path, fps: float, width: int, height: int) -> Iterator[Callable[[Array], None]]:
    """Write a clip under a temporary name: what is given takes a frame in RGB, (height, width, 3) uint8.

    Codecs work on squares of 2 x 2 pixels: of an odd side the last row or column is left out. Raises OutputError, with
    the final name, where it cannot be written.
    """
    cv2, codec = opencv(), codec_of(path)
    size, count = (width // 2 * 2, height // 2 * 2), 0
    with _quiet():
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*codec), fps, size)

    def write(frame: Array) -> None:
        nonlocal count
        writer.write(cv2.cvtColor(frame[: size[1], : size[0]], cv2.COLOR_RGB2BGR))
        count += 1

    try:
        if not writer.isOpened():
            raise OutputError(f"cannot write {path}: OpenCV has no codec {codec} for {width} x {height} pixels here")
        yield write
    finally:
        writer.release()
    with _quiet():
        there = cv2.VideoCapture(str(temporary))
    written = sum(1 for _ in iter(there.grab, False))
    there.release()
    if written != count:
        raise OutputError(
            f"cannot write {path}: the file has {written} of {counted(count, 'frame')}; the disk may be full"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep away what OpenCV and its FFmpeg print to stderr of files that they cannot open: an error says it."""
    level = "OPENCV_FFMPEG_LOGLEVEL"  # FFmpeg's, which OpenCV reads when it opens its first file
    with _one_at_a_time:
        unset = level not in os.environ
        os.environ.setdefault(level, "-8")
        null, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(2)
        try:
            os.dup2(null, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(null)
            os.close(stderr)
            if unset:
                del os.environ[level]
