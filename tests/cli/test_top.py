"""The command `top` by relevance; what it shares with others is tested beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import torchviz_cnn as tvc
from tests.cli.conftest import NET
from torchviz_cnn.cli.main import main

TOP = ["top", "other", *NET, "--layers", "3", "--k", "2", "--workers", "0", "--pages", "2"]


def test_by_relevance_both_orders_are_kept_and_drawn(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TOP, "--out", "alone"]) == 0
    assert main([*TOP, "--by", "relevance", "--target", "1", "--out", "both"]) == 0
    assert "both/pages/00_3.png" in capsys.readouterr().out.replace("\\", "/")
    alone, both = (tvc.TopActivations.load(here / name) for name in ("alone", "both"))
    assert both.by == "relevance"
    assert both.activation is not None
    assert both.activation.images["3"].equal(alone.images["3"])
    widths = [Image.open(here / name / "pages" / "00_3.png").width for name in ("alone", "both")]
    assert widths[1] > widths[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "1"], "target says whose relevance is meant, and the order is by activation"),
        (["--by", "relevance", "--target", "1", "0"], "relevance is of one class, and --target has 2 classes"),
        (["--by", "relevance", "--target", "nobody"], "nobody"),
    ],
)
def test_what_cannot_work_is_one_line(
    options: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TOP, *options, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
