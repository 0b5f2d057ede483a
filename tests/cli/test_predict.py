"""The command `predict`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import NET, PREPARED
from tests.models.keras.files import archive, small
from torchviz_cnn.cli.main import main


@pytest.mark.parametrize("count", ["--k", "--top"])
def test_predict(here: Path, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "photo.png", "other/photo.png", *NET, count, "2", "--batch-size", "1"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("clinet:net on c")
    assert [line for line in lines if not line.startswith(" ")] == ["photo.png", str(Path("other/photo.png"))]
    assert len(lines) == 6


def test_a_part_of_the_output_is_predicted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["photo.png", "--model", "clinet:pair", *PREPARED]
    assert main(["predict", *pair, "--output", "heads.0"]) == 0
    chosen = capsys.readouterr().out.splitlines()[1:]
    assert main(["predict", "photo.png", "--model", "clinet:net", *PREPARED]) == 0
    assert chosen == capsys.readouterr().out.splitlines()[1:]
    assert main(["predict", *pair, "--output", "head.0"]) == 2
    assert "did you mean 'heads'?" in capsys.readouterr().err


def test_a_keras_file_is_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    archive(Path("small.keras"), *small())
    Path("classes.txt").write_text("a\nb\nc\nd\ne\n")
    asked = ["photo.png", "--model", "small.keras", "--labels", "classes.txt"]
    assert main(["predict", *asked]) == 0
    shown = capsys.readouterr().out
    assert "small.keras on cpu; photos: 8 x 8 (stretched)" in shown
    assert "as small.keras has it" in shown
    assert main(["cam", *asked, "--target", "b", "--layer", "nested.inner_conv", "--out", "o"]) == 0
    assert main(["predict", *asked, "--weights", "random"]) == 2
    assert "small.keras has its weights itself" in capsys.readouterr().err
    assert main(["predict", "photo.png", "--model", "smal.keras"]) == 2
    assert "no Keras file smal.keras; did you mean 'small.keras'?" in capsys.readouterr().err
