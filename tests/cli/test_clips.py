"""The command `cam` on clips: files, folders of frames, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import NET, PREPARED
from tests.media.test_video import clip
from torchviz_cnn.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")


@pytest.fixture
def film(here: Path) -> Path:
    """The working folder, with a clip of 12 frames and a folder of the same frames."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 60, 3), dtype=np.uint8)
    clip(here / "film.avi", list(noise), fps=8)
    (here / "frames").mkdir()
    for number, frame in enumerate(noise):
        Image.fromarray(frame).save(here / "frames" / f"{number}.png")
    return here


def count(path: str) -> int:
    capture = cv2.VideoCapture(path)
    return sum(1 for _ in iter(capture.grab, False))


def test_a_clip(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cam", "film.avi", *NET, "--out", "new/film.mp4", "--target", "tusker"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1].startswith("film.avi: explained: tusker, as asked; mean probability 0.")
    assert lines[1].endswith("Grad-CAM at 4")
    assert lines[2].startswith("  new/film.mp4: 12 frames of 60 x 40 at 8 per second, one scale for all; ")
    assert lines[2].endswith(" frames per second; sound is not kept")
    assert printed.err == ""
    assert count("new/film.mp4") == 12
    assert [path.name for path in Path("new").iterdir()] == ["film.mp4"]


def test_a_clip_in_a_folder_of_results_is_named_as_pictures_are(film: Path) -> None:
    for options in ([], ["--method", "layer-cam", "--scale", "frame", "--seconds", "0.5"], []):
        assert main(["cam", "film.avi", *NET, *options]) == 0
    names = {"film_grad-cam.mp4", "film_layer-cam.mp4", "made.jsonl"}
    assert {path.name for path in Path("out").iterdir()} == names
    assert count("out/film_layer-cam.mp4") == 4


def test_a_folder_of_frames_is_a_clip_where_a_clip_is_to_be_written(
    film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cam", "frames", *NET, "--out", "film.webm", "--fps", "12"]) == 0
    out = capsys.readouterr().out
    assert "the likeliest in 8 frames spread over it" in out
    assert "12 frames of 60 x 40 at 12 per second" in out
    assert "sound" not in out
    assert count("film.webm") == 12
    assert main(["cam", "frames/0.png", "frames/1.png", *NET, "--out", "two.mp4"]) == 0
    assert count("two.mp4") == 2


def test_a_part_of_the_output_is_explained_in_a_clip(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["cam", "film.avi", "--model", "clinet:pair", *PREPARED, "--labels", "labels.txt"]
    assert main([*pair, "--out", "film.mp4"]) == 2
    assert "--output chooses a part of it" in capsys.readouterr().err
    assert main([*pair, "--out", "film.mp4", "--output", "heads.0"]) == 0
    assert "Grad-CAM at net.4" in capsys.readouterr().out
    assert count("film.mp4") == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["film.avi", "--out", "film.avi"], "film.avi is there already"),
        (["film.avi", "--out", "film.flv"], "clips are written as .avi"),
        (["film.avi", "photo.png"], "one clip at a time"),
        (["film.avi", "--target", "0", "1"], "one class of a clip is explained, not 2"),
        (["film.avi", "--truth", "tusker"], "--truth: for photos"),
        (["film.avi", "--preset", "dlwp-2017"], "--preset: for photos"),
        (["photo.png", "--scale", "frame"], "--scale: for a clip: name one, or a file as --out clip.mp4"),
        (["film.avi", "--fps", "0"], "fps is 0.1 to 1000"),
        (["film.avi", "--target", "tuskr"], "did you mean 'tusker'"),
        (["film.avi", "--target", "torch:sum"], "the target is a function; photos take it"),
        (["labels.txt", "--out", "film.mp4"], "labels.txt is not a clip that OpenCV reads, or is broken"),
        (["fim.avi", "--out", "film.mp4"], "did you mean 'film.avi'"),
        (["7", "--out", "film.mp4"], "there is no camera 7"),
        (["photo.png", "--preset", "dlwp-2017", "--blend", "mix"], "--preset says how to blend and colour"),
        (["frames", "--out", "film.avi"], "film.avi is there already: name another file with --out"),
        (["mixed", "--out", "film.mp4"], "mixed changes its size at frame 1: 60 x 40 and 9 x 9"),
    ],
)
def test_what_is_refused_is_one_line(
    film: Path, arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (film / "mixed").mkdir()
    (film / "mixed" / "1.png").write_bytes((film / "frames" / "1.png").read_bytes())
    Image.new("RGB", (9, 9)).save("mixed/2.png")
    before = files_below(film)
    assert main(["cam", *arguments, *NET]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert files_below(film) == before


def files_below(folder: Path) -> dict[Path, bytes]:
    """What a command might have written; what Python keeps of the network's module, and its log of models, aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path: path.read_bytes() for path in files if path.name != "made.jsonl"}


def test_the_overlay_of_a_listing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*NET, "--geometry", "stretch", "--target", "0"]
    assert main(["cam", "photo.png", *asked, "--preset", "dlwp-2017", "--out", "a"]) == 0
    assert main(["cam", "photo.png", *asked, "--out", "b"]) == 0
    names = ("heatmap", "overlay")
    pictures = {
        (folder, name): Image.open(f"{folder}/photo_grad-cam_African_elephant_{name}.png").tobytes()
        for folder in "ab"
        for name in names
    }
    assert pictures["a", "heatmap"] == pictures["b", "heatmap"]
    assert pictures["a", "overlay"] != pictures["b", "overlay"]
