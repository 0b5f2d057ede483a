"""The command `trust`."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import NET
from torchviz_cnn.cli.main import main

QUICK = ["--methods", "layer-cam", "saliency", "--steps", "2", "--perturbed", "2"]


@pytest.fixture
def photos(here: Path) -> Path:
    """A folder of three photos, with masks beside it."""
    (here / "photos").mkdir()
    (here / "masks").mkdir()
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = 1
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(here / "photos" / f"{number}.png")
        Image.fromarray(mask).save(here / "masks" / f"{number}.png")
    return here / "photos"


def test_a_table_and_what_it_says(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "truth.csv").unlink(missing_ok=True)
    Path("truth.csv").write_text("file,class\n0.png,tusker\n1.png,tusker\n2.png,African elephant\n")
    options = ["--masks", "masks", "--mask-values", "1", "--truth", "truth.csv", "--out", "out"]
    assert main(["trust", "photos", *NET, *QUICK, *options]) == 0
    said = capsys.readouterr().out
    table = said[: said.index("open out")]
    assert "explained is each photo's true class" in said
    assert "LayerCAM" in table
    assert "energy in mask" in table
    assert "open out/index.html" in said
    assert max(len(line) for line in table.splitlines() if line.startswith(("LayerCAM ", "Saliency "))) <= 100
    with open("out/trust.csv", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["layer_cam", "saliency", "centre", "random"]
    record = json.loads(Path("out/trust.json").read_text())
    assert record["class_names"] == ["tusker", "tusker", "African elephant"]
    assert main(["trust", "photos", *NET, *QUICK, *options]) == 0  # it is there already
    assert main(["trust", "photos", *NET, *QUICK, *options, "--seed", "1"]) == 2
    assert "out holds results of another run" in capsys.readouterr().err


def test_photos_that_cannot_be_read_are_listed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "3.png").write_bytes((photos / "2.png").read_bytes()[:200])
    assert main(["trust", "photos", *NET, *QUICK]) == 1
    assert "3 of 4 photos are measured" in capsys.readouterr().out


def test_photos_by_name(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trust", "photos/0.png", "photos/1.png", *NET, *QUICK, "--layers", "1", "4"]) == 0
    assert "LayerCAM at 4" in capsys.readouterr().out


def test_a_budget_of_nothing_says_so(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trust", "photos", *NET, *QUICK, "--budget", "0"]) == 0
    assert "The budget was spent before the others" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "grad-can"], "no method 'grad_can'; did you mean 'grad_cam'"),
        (["--methods", "cam", "--model", "clinet:vgg"], "no method is left that explains this network: cam"),
        (["--layers", "42"], "42"),
        (["--masks", "nowhere"], "nowhere is not a folder of photos: no such folder"),
        (["--truth", "truth.csv"], "cannot read the classes in truth.csv: No such file"),
        (["--truth", "folders"], "truth has no class for 3 of 3 photos, as '0.png'"),
        (["--perturbed", "0"], "--perturbed"),
        (["--budget", "-1"], "-1 is not a number of seconds, nor 'all'"),
    ],
)
def test_bad_input_is_one_line(
    photos: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    try:
        code = main(["trust", "photos", *NET, *options])
    except SystemExit as error:
        code = int(str(error.code))
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert words in said[-1]
    assert len([line for line in said if "error:" in line]) == 1


def test_tar_files_are_one_pattern(here: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        with tarfile.open(f"shard-{number}.tar", "w") as tar:
            tar.add(photos / f"{number}.png", f"{number}.png")
    assert main(["trust", "shard-{0..1}.tar", *NET, *QUICK, "--mosaics", "0"]) == 0
    assert "2 photos" in capsys.readouterr().out
    assert main(["trust", "shard-0.tar", "shard-1.tar", *NET, *QUICK]) == 2
    assert "tar files are given as one pattern, in quotes and alone; shard-0.tar is one of 2" in capsys.readouterr().err
