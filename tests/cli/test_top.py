"""The command `top` by relevance; what it shares with others is tested beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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


def test_pieces_are_merged_and_drawn_as_the_single_run_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        Image.effect_noise((60, 50), 60 + i).convert("RGB").save(here / "other" / f"{i}.png")
    assert main([*TOP, "--out", "whole"]) == 0
    for start, end in ((0, "2"), (2, "5")):
        piece = ["--start", str(start), "--end", end, "--out", f"piece{start}"]
        assert main([*TOP, *piece]) == 0
    assert "images 2 to 4 of 5 -> piece2" in capsys.readouterr().out
    assert main(["merge", "piece2", "piece0", *NET, "--pages", "2", "--out", "merged"]) == 0
    assert "5 photos -> merged" in capsys.readouterr().out
    for name in ("statistics.png", "pages/00_3.png", "pages/channels.json"):
        assert (here / "whole" / name).read_bytes() == (here / "merged" / name).read_bytes()
    assert main(["merge", "piece2", "piece0", "--pages", "2", "--out", "alone"]) == 0
    assert Image.open(here / "alone/pages/00_3.png").width < Image.open(here / "merged/pages/00_3.png").width
    (here / "other" / "0.png").unlink()
    capsys.readouterr()
    assert main(["merge", "piece2", "piece0", "--out", "lost"]) == 0
    assert (
        "no pages are drawn, as the photos or the index of shards are not where the runs had them"
        in capsys.readouterr().out
    )
    for options, words in (
        (["piece0", "--crop", "32"], "--crop is of a network, and none is given: name it with --model"),
        (["piece2", "other"], "other is not a folder of results"),
    ):
        assert main(["merge", *options, "--out", "o"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "1"], "target says whose relevance is meant, and the order is by activation"),
        (["--by", "relevance", "--target", "1", "0"], "relevance is of one class, and --target has 2 classes"),
        (["--by", "relevance", "--target", "nobody"], "nobody"),
        (["--start", "1"], "--start 1 is out of range: the dataset has 1 image"),
    ],
)
def test_what_cannot_work_is_one_line(
    options: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TOP, *options, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_torchrun_hands_on_the_options_of_a_piece_as_the_docs_say() -> None:
    from torch.distributed.run import get_args_parser

    docs = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    (line,) = re.findall(r"`torchrun (.*--start.*?)`", docs)
    parser: Any = get_args_parser()  # type: ignore[no-untyped-call]
    assert parser.parse_args(line.split()).training_script_args[-4:] == ["--start", "0", "--end", "64"]
