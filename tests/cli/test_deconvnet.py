"""The command `deconvnet`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import NET, pictures
from torchviz_cnn.cli.main import main


@pytest.mark.parametrize("count", ["--k", "--top"])
def test_deconvnet(here: Path, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deconvnet", "photo.png", "other/photo.png", *NET, count, "2", "--out", "o"]) == 0
    written = {path.name for path in pictures(here / "o")}
    assert written == {"photo_deconvnet.png", "photo-2_deconvnet.png", "photo_and_1_more_deconvnet.npz"}
    assert capsys.readouterr().out.count("channel") == 8


@pytest.mark.parametrize("channels", ["--channels", "--channel"])
def test_channels_by_number(here: Path, channels: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deconvnet", "photo.png", *NET, "--layers", "3", channels, "5", "0", "--out", "o"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("3 channel 5:") < printed.index("3 channel 0:")
    assert main(["deconvnet", "photo.png", *NET, "--layer", "3", channels, "6", "--out", "o"]) == 2
    assert "channel 6 is out of range" in capsys.readouterr().err
