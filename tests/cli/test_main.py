"""The command line: files and lines for what was asked, one line and exit code 2 for a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchviz_cnn.cli import main as cli
from torchviz_cnn.cli.main import main
from torchviz_cnn.cli.maps import SALIENCY_METHODS

FACTORY = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
def gelu():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
def stops():
    raise SystemExit(3)
class raises(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1)
    def forward(self, x):
        raise AssertionError("forward says no")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two photos of the same name, a broken one, a network and its labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("clinet", None)
    (tmp_path / "clinet.py").write_text(FACTORY)
    (tmp_path / "labels.txt").write_text("African elephant\ntusker\n<b>zebra</b>\n")
    (tmp_path / "other").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise[0]).save("photo.png")
    Image.fromarray(noise[1]).save("other/photo.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "photo.png").read_bytes()[:200])
    return tmp_path


def pictures(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.suffix in (".png", ".npz", ".safetensors", ".part")}


NET = ["--model", "clinet:net", "--labels", "labels.txt", "--input-size", "32"]


def test_layers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", *NET]) == 0
    printed = capsys.readouterr().out
    assert "Sequential on 3 x 32 x 32: 355 parameters" in printed
    assert "AdaptiveAvgPool2d" in printed


def test_predict(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "photo.png", "other/photo.png", *NET, "--top", "2", "--batch-size", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["photo.png", "other/photo.png"]
    assert len(lines) == 6


def test_activations(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["activations", "photo.png", *NET, "--out", "o", "--save"]) == 0
    assert sorted(p.name for p in (here / "o" / "photo").iterdir()) == [
        "00_0.png",
        "01_2.png",
        "02_3.png",
        "activations.safetensors",
    ]
    assert "0: 4 x 30 x 30" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_cam_of_several_photos_and_classes(here: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = ["african elephant", "2"]
    assert (
        main(["cam", "photo.png", "other/photo.png", *NET, "--method", method, "--target", *target, "--out", "o"]) == 0
    )
    kinds = ("heatmap", "overlay", "panel")
    expected = {
        f"{n}_{c}_{k}.png" for n in ("photo", "photo-2") for c in ("African_elephant", "b_zebra_b") for k in kinds
    }
    assert {p.name for p in (here / "o").iterdir()} == expected | {"heatmaps.npz"}
    assert Image.open("o/photo_African_elephant_overlay.png").size == (90, 60)
    with np.load("o/heatmaps.npz") as saved:
        assert saved["values"].shape == (2, 2, 13, 13)
    assert "explained: African elephant" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cams", "photo.png"], "no command 'cams'; did you mean 'cam'"),
        (["cam", "photo.png", "--frobnicate"], "unrecognized arguments"),
        (["cam"], "required: IMAGE"),
        (["predict", "nosuch.png", *NET], "no image nosuch.png"),
        (["predict", "phot.png", *NET], "did you mean 'photo.png'"),
        (["predict", "photo.png", "broken.png", *NET], "broken.png cannot be read"),
        (["predict", "other", *NET], "other is a folder"),
        (["predict", "photo.png", "--model", "resnet5O"], "did you mean 'resnet50'"),
        (["predict", "photo.png", "--model", "vgg16", "--weights", "nosuch.pth"], "no checkpoint nosuch.pth"),
        (["cam", "photo.png", *NET, "--layer", "33"], "no layer '33' in Sequential"),
        (["cam", "photo.png", *NET, "--target", "tuskr"], "no class 'tuskr'; did you mean 'tusker'"),
        (["cam", "photo.png", *NET, "--target", "3"], "target 3 is out of range"),
        (["cam", "photo.png", *NET, "--colormap", "jett"], "no colormap 'jett'; did you mean 'jet'"),
        (["cam", "photo.png", *NET, "--alpha", "2"], "alpha is a share"),
        (["cam", "photo.png", *NET, "--out", "photo.png/x"], "cannot write"),
        (["activations", "photo.png", *NET, "--layer", "nosuch*"], "matches 'nosuch*'"),
        (["activations", "photo.png", *NET, "--layer", "7"], "none of the layers 7 has maps"),
        (["predict", "photo.png", "--model", "clinet:net", "--input-size", "2"], "RuntimeError"),
        (["predict", "photo.png", *NET, "--batch-size", "0"], "not at least 1"),
        (["cam", "photo.png", *NET, "--target", "²"], "no class '²'"),
        (["cam", "photo.png", *NET, "--target=--5"], "no class '--5'"),
        (["cam", "photo.png", *NET, "--target", "9" * 30], "no class"),
        (["predict", "photo.png", "--model", "clinet:stops"], "'clinet:stops' failed: SystemExit"),
        (["predict", "photo.png", "--model", "clinet:raises"], "AssertionError: forward says no"),
        (["cam", "photo.png", *NET, "--out", "photo.png"], "photo.png is a file, not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pictures(here)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert words in error
    assert pictures(here) == before


def test_interrupting_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torchviz_cnn.describe", interrupted)
    assert main(["layers", *NET]) == 130
    assert capsys.readouterr().err == "torchviz-cnn: interrupted\n"


def test_warnings_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchviz_cnn.core.errors import EmptyMapWarning

    cli._show_warning("no positive evidence", EmptyMapWarning)
    cli._show_warning("something of another library", UserWarning)
    assert capsys.readouterr().err == "torchviz-cnn: warning: no positive evidence\n"


def test_as_a_module_and_without_a_terminal(here: Path) -> None:
    root = Path(__file__).parents[2]
    Path("photo.png").rename("фото.png")
    done = subprocess.run(
        [sys.executable, "-m", "torchviz_cnn", "predict", "фото.png", *NET],
        capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where there is no terminal
    assert torch.tensor([float(line.split()[0]) for line in done.stdout.splitlines()[1:]]).sum() == pytest.approx(
        1, abs=0.01
    )


@pytest.mark.parametrize("method", SALIENCY_METHODS)
@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_saliency_of_several_photos_and_classes(here: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--method", method, "--target", "tusker", "2", "--out", "o", "--batch-size", "1"]
    assert main(["saliency", "photo.png", "other/photo.png", *NET, *asked]) == 0
    names = {path.name for path in pictures(here / "o")}
    assert {f"{p}_{method}_{c}_{k}.png" for p in ("photo", "photo-2") for c in ("tusker", "b_zebra_b") for k in ("heatmap", "overlay", "panel")} <= names  # fmt: skip
    assert {f"{method}_photo.npz", f"{method}_photo-2.npz"} <= names
    assert "strongest at x" in capsys.readouterr().out


def test_occlusion(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["occlusion", "photo.png", *NET, "--patch", "8", "--score", "probability", "--out", "o"]) == 0
    assert {path.name for path in pictures(here / "o")} == {
        "photo_occlusion_heatmap.png",
        "photo_occlusion_overlay.png",
        "photo_occlusion_panel.png",
        "occlusion.npz",
    }
    assert main(["occlusion", "photo.png", *NET, "--patch", "80", "--out", "o"]) == 2
    assert "error: a patch of 80 x 80 does not fit" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_no_photo_is_overwritten_and_no_picture_twice(here: Path) -> None:
    """Photos that are called like pictures, classes that are called alike, and one command after another."""
    Path("labels.txt").write_text("crane\ncrane!\nb$\\frac\n")
    Path("photo_crane_heatmap.png").write_bytes(Path("other/photo.png").read_bytes())
    before = Path("photo_crane_heatmap.png").read_bytes()
    photos = ["photo.png", "photo_crane_heatmap.png"]
    asked = [*NET, "--labels", "labels.txt", "--target", "0", "1", "--batch-size", "1", "--out", "."]
    for command in (["cam"], ["saliency"], ["saliency", "--method", "guided"], ["occlusion", "--patch", "8"]):
        known = set(Path().glob("*.png"))
        assert main([command[0], *photos, *asked, *command[1:], "--truth", "costs $5 and $6 or $\\frac"]) == 0
        assert len(set(Path().glob("*.png")) - known) == 12
        assert Path("photo_crane_heatmap.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["saliency", "--layer", "3"], "--layer is for --method guided-grad-cam"),
        (["cam", "--method", "cam", "--score", "probability"], "cam explains the logit"),
        (["deconvnet", "--top", "2", "--channel", "1"], "give one of the two"),
        (["occlusion", "--colormap", "jett"], "no colormap 'jett'"),
        (["occlusion", "--out", "photo.png/deeper"], "photo.png is a file, not a folder"),
        (["deconvnet", "--out", "photo.png"], "photo.png is a file, not a folder"),
    ],
)
def test_what_cannot_be_meant_is_told_before_the_work(
    here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("saliency", "occlusion", "grad_cam", "class_activation_map", "deconvnet"):
        monkeypatch.setattr(f"torchviz_cnn.{work}", lambda *args, **kwargs: pytest.fail("worked"))
    assert main([arguments[0], "photo.png", *NET, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_other_activations_are_let_through(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = ["--model", "clinet:gelu", "--weights", "random", "--input-size", "15"]
    for command in (["saliency", "--method", "guided"], ["deconvnet"]):
        assert main([command[0], "photo.png", *net, *command[1:]]) == 2
        assert "GELU" in capsys.readouterr().err
        assert main([command[0], "photo.png", *net, *command[1:], "--other-activations", "plain"]) == 0


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_every_class_asked_for_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saliency", "photo.png", *NET, "--target", "tusker", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("photo.png")]
    assert len(lines) == 2
    assert sum("tusker" in line for line in lines) >= 1


def test_deconvnet(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deconvnet", "photo.png", "other/photo.png", *NET, "--top", "2", "--out", "o"]) == 0
    assert {path.name for path in pictures(here / "o")} == {
        "photo_deconvnet.png",
        "photo-2_deconvnet.png",
        "deconvnet.npz",
    }
    assert capsys.readouterr().out.count("channel") == 8
    assert main(["deconvnet", "photo.png", *NET, "--layer", "3", "--channel", "6", "--out", "o"]) == 2
    assert "channels [6] are out of range" in capsys.readouterr().err
