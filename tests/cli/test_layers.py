"""The command `layers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import NET
from torchviz_cnn.cli.main import main


def test_layers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", *NET]) == 0
    printed = capsys.readouterr().out
    assert "Sequential on 3 x 32 x 32: 355 parameters" in printed
    assert "AdaptiveAvgPool2d" in printed


def test_the_names_that_a_model_can_be_asked_for_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "--models"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert {"cats_and_dogs", "xception", "resnet18", "vgg16"} <= set(names)
