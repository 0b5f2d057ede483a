"""The command `activations`."""

from __future__ import annotations

from pathlib import Path

import pytest

import torchviz_cnn as tvc
from tests.cli.conftest import NET
from torchviz_cnn.cli.main import main


def test_activations(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["activations", "photo.png", *NET, "--out", "o", "--save"]) == 0
    written = sorted(p.name for p in (here / "o" / "photo").iterdir())
    assert written == ["00_0.png", "01_2.png", "02_3.png", "activations.safetensors"]
    acts = tvc.capture(tvc.load_model("clinet:net", input_size=32), "photo.png", ["0"])
    dead, sparsity = int(acts.dead("0").sum()), float(acts.sparsity("0"))
    assert f"0: 4 x 30 x 30, {dead} dead, sparsity {sparsity:.0%}" in capsys.readouterr().out
    assert main(["activations", "photo.png", *NET, "--layers", "0", "3", "--out", "two"]) == 0
    assert sorted(p.name for p in (here / "two" / "photo").iterdir()) == ["00_0.png", "01_3.png"]
