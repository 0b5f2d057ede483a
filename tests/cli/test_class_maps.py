"""The commands that draw a class map over photos: `cam`, `saliency`, `occlusion`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from tests.cli.conftest import NET, PREPARED, pictures
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS, cam_method
from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.cli.main import main

KINDS = ("heatmap", "overlay", "panel")
PHOTOS = ["photo.png", "other/photo.png"]


@pytest.fixture
def strongest_channel() -> Iterator[str]:
    """A method that a user adds."""

    @cam_method("Strongest channel", "the maximum over channels", "nobody")
    def strongest_channel(activations: Tensor, gradients: Tensor) -> Tensor:
        """Take the maximum over channels."""
        return activations.amax(1, keepdim=True).expand(-1, gradients.shape[1], *activations.shape[2:])

    yield "strongest-channel"
    del CAM_METHODS["strongest_channel"]


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_cam_of_several_photos_and_classes(here: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = ["african elephant", "2"]
    assert main(["cam", *PHOTOS, *NET, "--method", method, "--target", *target, "--out", "o"]) == 0
    names = [f"{p}_{method}_{c}" for p in ("photo", "photo-2") for c in ("African_elephant", "b_zebra_b")]
    expected = {f"{name}_{kind}.png" for name in names for kind in KINDS}
    numbers = f"photo_and_1_more_{method}_African_elephant_b_zebra_b.npz"
    assert {p.name for p in (here / "o").iterdir()} == expected | {numbers, "made.jsonl"}
    assert Image.open(f"o/photo_{method}_African_elephant_overlay.png").size == (90, 60)
    with np.load(f"o/{numbers}") as saved:
        assert saved["values"].shape == (2, 2, 13, 13)
    assert "explained: African elephant" in capsys.readouterr().out


def test_a_method_that_is_registered_is_a_choice_of_the_command(
    here: Path, strongest_channel: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cam", "photo.png", *NET, "--method", strongest_channel, "--score", "log-probability"]) == 0
    assert "Strongest channel at 4" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["cam", "--help"])
    assert f"{strongest_channel}     the maximum over channels (nobody)" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["score-cam", "ablation-cam"])
@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")
def test_heatmaps_without_gradients(here: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--method", method, "--layer", "4", "--score", "probability", "--target", "tusker", "--out", "o"]
    assert main(["cam", *PHOTOS, *NET, *asked]) == 0
    written = {path.name for path in pictures(here / "o")}
    assert {f"{photo}_{method}_4_tusker_{kind}.png" for photo in ("photo", "photo-2") for kind in KINDS} <= written
    assert "-CAM at 4" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_full_grad(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saliency", "photo.png", *NET, "--method", "full-grad", "--score", "logit", "--out", "o"]) == 0
    with np.load("o/photo_full-grad.npz") as saved:
        assert saved["values"].shape == saved["gradients"].shape[:1] + saved["gradients"].shape[2:]
    assert "FullGrad" in capsys.readouterr().out
    assert main(["saliency", "photo.png", *NET, "--method", "full-grad", "--reduce", "sum"]) == 2
    assert "--reduce is for --method saliency" in capsys.readouterr().err


OF_COLOURS = [name.replace("_", "-") for name, method in methods_of("saliency").items() if "reduce" in method.options]


@pytest.mark.parametrize("method", OF_COLOURS)
@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_saliency_of_several_photos_and_classes(here: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one photo, but for the first method: photos are handled alike by all."""
    asked = ["--method", method, "--target", "tusker", "2", "--reduce", "sum", "--out", "o", "--batch-size", "1"]
    photos = ["photo", "photo-2"] if method == OF_COLOURS[0] else ["photo"]
    assert main(["saliency", *PHOTOS[: len(photos)], *NET, *asked]) == 0
    names = [f"{p}_{method}_{c}" for p in photos for c in ("tusker", "b_zebra_b")]
    written = {path.name for path in pictures(here / "o")}
    assert {f"{name}_{kind}.png" for name in names for kind in KINDS} <= written
    numbers = [f"{photo}_{method}_tusker_b_zebra_b.npz" for photo in photos]
    assert set(numbers) <= written
    with np.load(f"o/{numbers[0]}") as saved:
        np.testing.assert_allclose(saved["values"], np.abs(saved["gradients"]).sum(2), rtol=1e-5, atol=1e-8)
    assert "strongest at x" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_every_class_asked_for_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saliency", "photo.png", *NET, "--target", "tusker", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("photo.png")]
    assert len(lines) == 2
    assert sum("tusker" in line for line in lines) >= 1


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_a_second_class_that_is_likely_too_is_told_with_the_method_for_both(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sure.py").write_text(
        "import clinet\ndef net():\n    m = clinet.net()\n    m[-1].bias.data[2] = 99\n    return m\n"
    )
    sure = ["--model", "sure:net", *NET[2:]]
    for asked, told in (
        (NET, 2),
        ([*NET, "--target", "2"], 0),
        ([*NET, "--method", "competitive-cam"], 0),
        (sure, 0),
    ):
        assert main(["cam", *PHOTOS, *asked, "--out", "o"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  also likely: ")]
        assert len(lines) == told
        for line in lines:
            assert re.search(
                r"(African elephant|tusker|<b>zebra</b>) \(0\.[2-4]\d\d\); .* --method competitive-cam", line
            ), line


def test_the_help_says_which_heatmap_is_for_which_photo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cam", "--help"])
    words = "Begin with grad-cam for one thing in the photo, and competitive-cam for several things in the photo."
    assert words in capsys.readouterr().out


def test_occlusion(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["occlusion", "photo.png", *NET, "--patch", "8", "--score", "probability", "--out", "o"]) == 0
    written = {path.name for path in pictures(here / "o")}
    assert written == {*(f"photo_occlusion_{kind}.png" for kind in KINDS), "photo_occlusion.npz"}
    assert main(["occlusion", "photo.png", *NET, "--patch", "80", "--out", "o"]) == 2
    assert "error: a patch of 80 x 80 does not fit" in capsys.readouterr().err


@pytest.mark.slow
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


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_other_activations_pass_their_own_gradient(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = ["--model", "clinet:gelu", "--weights", "random", *PREPARED, "--input-size", "15"]
    for command in (["saliency", "--method", "guided"], ["deconvnet"]):
        assert main([command[0], "photo.png", *net, *command[1:]]) == 2
        error = capsys.readouterr().err
        assert "GELU" in error
        assert "--other-activations plain" in error
        assert main([command[0], "photo.png", *net, *command[1:], "--other-activations", "plain"]) == 0


@pytest.mark.parametrize("command", ["cam", "saliency", "occlusion"])
def test_a_function_of_the_output_is_a_target(here: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    net = ["--model", "clinet:pair", *PREPARED, "--output", "heads.0"]
    assert main([command, *PHOTOS, *net, "--target", "clinet:second", "--out", "o"]) == 0
    assert "photo.png: explained: second (" in capsys.readouterr().out
    assert any(path.name.endswith("_second_overlay.png") for path in (here / "o").iterdir())
    assert main([command, *PHOTOS, *net, "--target", "clinet:two", "--out", "o", "--batch-size", "1"]) == 0
    told = capsys.readouterr().out
    assert all(f"other/photo.png: explained: two[{nth}] (" in told for nth in (0, 1))
    assert main(["saliency", "photo.png", "--model", "clinet:maps", *PREPARED, "--target", "clinet:corner"]) == 2
    assert "region(class 2): the model gives 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--target", "clinet:secund"], "has no 'secund'; did you mean 'second'?"),
        (["--target", "clinot:second"], "no module 'clinot' to import for 'clinot:second'"),
        (["--target", "clinet:number"], "'clinet:number' is an int, not a function of the model's output"),
        (["--target", "clinet:second", "1"], "--target takes classes, or one function"),
        (["--output", "head.0"], "has no key 'head' (of output='head.0'), but 'heads', 'maps'; did you mean 'heads'?"),
        ([], "with the keys 'heads', 'maps', not class scores (B, n)"),
    ],
)
def test_what_is_no_target_of_the_output(
    here: Path, asked: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cam", "photo.png", "--model", "clinet:pair", *PREPARED, "--out", "o", *asked]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert words in told[-1]
    assert not list((here / "o").glob("*.png"))


def test_a_class_name_with_a_colon_is_a_class(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "labels.txt").write_text("a:b\nclinet:second\nc\n")
    assert main(["cam", "photo.png", *NET, "--target", "clinet:second"]) == 0
    told = capsys.readouterr().out
    assert "explained: clinet:second (" in told or "predicted: clinet:second (" in told
