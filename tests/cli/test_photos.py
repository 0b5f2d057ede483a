"""Photos on the command line: folders, broken ones, how they are prepared, and where the network runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import NET, PREPARED
from torchviz_cnn.cli import main as program
from torchviz_cnn.cli import shared
from torchviz_cnn.cli.main import main
from torchviz_cnn.media.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess

PLAIN = ["--model", "clinet:net"]


def preprocess_of(*arguments: str) -> Preprocess:
    """How a command line prepares photos."""
    args = program._parser(program._commands()).parse_args(["predict", "photo.png", *arguments])
    return shared.network(args).preprocess


def test_a_folder_stands_for_all_photos_below_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "other", "photo.png", *NET]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line for line in lines if not line.startswith(" ")] == [str(Path("other/photo.png")), "photo.png"]


@pytest.mark.parametrize("command", ["predict", "cam", "deconvnet", "activations", "occlusion", "report"])
def test_a_broken_photo_is_skipped_and_the_others_are_done(
    here: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = {"report": ["--budget", "0", "--out", "o"], "predict": []}.get(command, ["--out", "o"])
    assert main([command, "photo.png", "broken.png", "other/photo.png", *NET, *rest]) == 1
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if "warning" not in line] == [
        "torchviz-cnn: skipped: broken.png cannot be read, it may be truncated: image file is truncated"
    ]
    if command == "report":
        assert "2 photos" in shown.out
    else:
        assert {line.split(":")[0].split(" ->")[0] for line in shown.out.splitlines()} >= {
            "photo.png",
            "other/photo.png",
        }


def test_where_no_photo_can_be_read_it_is_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other/photo.png").write_bytes(b"")
    assert main(["cam", "broken.png", "other", *NET, "--out", "o"]) == 2
    assert "none of the 2 photos can be read" in capsys.readouterr().err
    assert not Path("o").exists()


def test_options_say_how_photos_are_prepared(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here)
    numbers = ["--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6"]
    crop = preprocess_of(*PLAIN, *numbers, "--crop", "24", "20", "--resize", "30")
    assert crop == Preprocess((24, 20), "crop", 30, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    whole = preprocess_of(*PLAIN, *numbers, "--input-size", "32", "--geometry", "stretch")
    assert (whole.size, whole.geometry) == ((32, 32), "stretch")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--crop", "20", "--input-size", "22"], "--crop stands for --geometry crop and --input-size"),
        (["--crop", "20", "--geometry", "pad"], "--crop stands for --geometry crop and --input-size"),
        (["--resize", "20", "--geometry", "pad"], "--resize is for --geometry crop, not for pad"),
        (["--mean", "0.5", "0.5", "0.5", "--std", "0.5"], "one number per channel"),
    ],
)
def test_preparations_that_contradict_each_other(
    here: Path, asked: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "photo.png", *PLAIN, *asked]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.filterwarnings("always")
def test_what_is_guessed_is_said_until_it_is_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "photo.png", *PLAIN, "--input-size", "32"]) == 0
    shown = capsys.readouterr()
    mean, std = (" ".join(map(str, numbers)) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    photos = f"photos: 32 x 32 (the middle, with the shorter side at 37), mean {mean}, std {std}"
    assert f"{photos}; --input-size as given, the rest guessed" in shown.out.splitlines()[0]
    assert shown.err.endswith("so it is guessed: say it with --geometry, --mean, --std\n")
    assert main(["predict", "photo.png", *PLAIN, *PREPARED]) == 0
    assert capsys.readouterr().err == ""


def test_what_is_known_is_no_guess(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "photo.png"]) == 0
    shown = capsys.readouterr()
    assert "photos: 160 x 160 (the middle" in shown.out.splitlines()[0]
    assert shown.out.splitlines()[0].endswith("; as cats_and_dogs has it")
    assert shown.err == ""


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_device_is_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    parser = program._parser(program._commands())
    assert parser.parse_args(["predict", "photo.png"]).device == device
    assert parser.parse_args(["predict", "photo.png", "--device", "cpu"]).device == "cpu"


@pytest.mark.parametrize("command", ["predict", "cam"])
def test_names_of_another_number_of_classes(here: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("four.txt").write_text("a\nb\nc\nd\n")  # as many as the first convolution has channels
    assert main([command, "photo.png", *PLAIN, *PREPARED, "--labels", "four.txt"]) == 2
    assert "four.txt has 4 class names; clinet:net has 3 outputs" in capsys.readouterr().err


def test_every_class_whose_name_holds_the_words_is_offered(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("three.txt").write_text("African elephant\nIndian_elephant\ncar\n")
    assert main(["cam", "photo.png", *PLAIN, *PREPARED, "--labels", "three.txt", "--target", "elephant"]) == 2
    assert "did you mean 'African elephant' or 'Indian_elephant'?" in capsys.readouterr().err


def test_a_name_that_is_no_text(here: Path) -> None:
    """Names of files are bytes, of which some are no UTF-8."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Path("photo.png").rename(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert main(["cam", name, *NET, "--out", "o"]) == 0
    assert Path("o/caf_grad-cam_overlay.png").is_file()
    assert main(["report", name, *NET, "--budget", "0", "--out", "page.html"]) == 0


def test_what_is_done_stays_where_it_is_interrupted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the second photo is explained."""
    Path("stops.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if x.mean() > 1:\n"
        "            raise KeyboardInterrupt\n"
        "        return super().forward(x)\n"
        "def net():\n"
        "    nn = torch.nn\n"
        "    return Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    Image.new("RGB", (40, 40), "white").save("white.png")
    net = ["--model", "stops:net", *PREPARED, "--batch-size", "1", "--out", "o"]
    assert main(["cam", "photo.png", "white.png", *net]) == 130
    assert Path("o/photo_grad-cam_overlay.png").is_file()
    assert capsys.readouterr().err == "torchviz-cnn: interrupted\n"
