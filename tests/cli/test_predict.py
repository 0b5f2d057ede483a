"""The command `predict`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import NET
from torchviz_cnn.cli.main import main


@pytest.mark.parametrize("count", ["--k", "--top"])
def test_predict(here: Path, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "photo.png", "other/photo.png", *NET, count, "2", "--batch-size", "1"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("clinet:net on c")
    assert [line for line in lines if not line.startswith(" ")] == ["photo.png", "other/photo.png"]
    assert len(lines) == 6
