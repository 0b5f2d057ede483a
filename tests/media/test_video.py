"""Clips: what is read of files, folders and cameras, and files that are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from torchviz_cnn.core.errors import ImageError, InputError, OutputError
from torchviz_cnn.media import video
from torchviz_cnn.media.render import Array


def frames(count: int, width: int = 48, height: int = 32) -> list[Array]:
    """Grey frames, each a little brighter, red at the left and blue at the right."""
    made = []
    for number in range(count):
        frame = np.full((height, width, 3), 40 + 10 * number, np.uint8)
        frame[:, : width // 2, 0] += 60
        frame[:, width // 2 :, 2] += 60
        made.append(frame)
    return made


def clip(path: Path, pictures: list[Array], fps: float = 12.5) -> Path:
    height, width = pictures[0].shape[:2]
    with video.written(path, path, fps, width, height) as write:
        for picture in pictures:
            write(picture)
    return path


@pytest.mark.parametrize("ending", video.CODECS)
def test_what_is_written_is_read_again(ending: str, tmp_path: Path) -> None:
    made = video.open_clip(clip(tmp_path / f"a{ending}", frames(9)))
    for _ in range(2):
        read = list(made.frames())
        assert len(read) == 9
        assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(read, frames(9), strict=True)) < 4
    assert made.fps == pytest.approx(12.5)
    assert made.count == 9
    assert [int(frame[16, 4, 1]) // 10 for frame in made.spread(3)] == pytest.approx([4, 8, 12], abs=1)


def test_an_odd_side_loses_its_last_pixels(tmp_path: Path) -> None:
    (read, *_) = video.open_clip(clip(tmp_path / "a.mp4", frames(2, 49, 33))).frames()
    assert read.shape == (32, 48, 3)


def test_grey_files_are_read_in_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 24, (32, 32), False)
    for level in (50, 200):
        writer.write(np.full((32, 32), level, np.uint8))
    writer.release()
    read = list(video.open_clip(tmp_path / "a.avi").frames())
    assert [frame.shape for frame in read] == [(32, 32, 3)] * 2
    assert [int(frame.mean()) for frame in read] == pytest.approx([50, 200], abs=2)


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in range(11):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"f{number}.png")
    made = video.open_clip(tmp_path, fps=10)
    assert [int(frame[0, 0, 2]) for frame in made.frames()] == list(range(11))
    assert (made.fps, made.count) == (10, 11)
    assert [int(frame[0, 0, 0]) for frame in made.spread(3)] == [0, 5, 10]


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    for name, side in (("a", 8), ("b", 8), ("c", 9)):
        Image.new("RGB", (side, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(ImageError, match=r"changes its size at frame 2: 8 x 8 and 9 x 8"):
        list(video.open_clip(tmp_path).frames())


class Camera:
    """Stands for `cv2.VideoCapture` of a camera with frames without end."""

    def __init__(self, number: int) -> None:
        self.number = number

    def isOpened(self) -> bool:
        return self.number == 0

    def get(self, name: int) -> float:
        return 15.0 if name == cv2.CAP_PROP_FPS else -1.0

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, Array]:
        return True, np.full((4, 6, 3), (1, 2, 3), np.uint8)

    def release(self) -> None:
        pass


def test_a_camera_is_read_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    made = video.open_clip(0)
    assert (made.fps, made.count, made.is_camera) == (15, None, True)
    first = made.spread(4)
    assert len(first) == 4
    assert first[0][0, 0].tolist() == [3, 2, 1]
    with pytest.raises(ImageError, match="there is no camera 1, or another program uses it"):
        video.open_clip(1)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_what_is_no_clip_is_one_error_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = clip(tmp_path / "a.mp4", frames(9)).read_bytes()
    sources: list[tuple[Any, str]] = [
        (write(tmp_path / "text.mp4", b"no clip" * 99), "text.mp4 is not a clip that OpenCV reads, or is broken"),
        (write(tmp_path / "half.mp4", whole[: len(whole) // 2]), "half.mp4 is not a clip that OpenCV reads"),
        (write(tmp_path / "empty.mp4", b""), "empty.mp4 is empty"),
        (tmp_path / "aa.mp4", "did you mean 'a.mp4'"),
    ]
    for source, words in sources:
        with pytest.raises(ImageError, match=words):
            list(video.open_clip(source).frames())
    others: list[tuple[Any, str]] = [([], "an empty list"), (None, "a NoneType"), (-1, "a camera"), (True, "a camera")]
    for source, words in others:
        with pytest.raises(InputError, match=words):
            video.open_clip(source)
    assert capfd.readouterr() == ("", "")


def test_a_clip_of_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.avi"
    cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 24, (32, 32)).release()
    with pytest.raises(ImageError, match=r"none\.avi has no frame that can be read"):
        list(video.open_clip(path).frames())


@pytest.mark.parametrize("fps", [0, -1, 1e9, float("nan"), "fast"])
def test_a_rate_that_is_none(fps: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fps is"):
        video.open_clip(frames(1), fps)


def test_a_file_that_ends_early_is_short(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.avi", frames(20, 320, 240)).read_bytes()
    half = video.open_clip(write(tmp_path / "half.avi", data[: len(data) // 2]))
    count = sum(1 for _ in half.frames())
    assert 0 < count < 20
    assert half.is_short(count)
    assert not video.open_clip(tmp_path / "a.avi").is_short(20)


def test_what_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OutputError, match=r"written as \.avi, .*, not as '\.flv'"):
        video.codec_of(Path("a.flv"))
    for path, width in ((tmp_path / "a.mp4", 1), (tmp_path / "none" / "a.webm", 32)):
        with (
            pytest.raises(OutputError, match=r"cannot write .*OpenCV has no codec"),
            video.written(path, path, 25, width, 32),
        ):
            pass
    assert capfd.readouterr() == ("", "")
