"""The data set with known answers: `scripts/known_answers.py`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from torchviz_cnn.attribution.methods import METHODS
from torchviz_cnn.attribution.metrics.result import Measurement

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import known_answers

    return known_answers


def test_a_patch_has_the_texture_of_its_class_and_a_disc_stands_apart(script: ModuleType) -> None:
    x, classes, patches = script.pictures(64, torch.Generator().manual_seed(0))
    assert classes.unique().tolist() == [0, 1, 2, 3]
    assert patches.flatten(1).sum(1).eq(script.PATCH**2).all()
    for picture, number, patch in zip(x, classes.tolist(), patches, strict=True):
        inside = picture[:, patch].view(3, script.PATCH, script.PATCH)
        same_along = [bool((inside == inside.roll(4, dim)).all()) for dim in (1, 2)]
        assert same_along == [True, True]  # of period 4
        assert bool((inside == inside[:, :, :1]).all()) == (number == 0)
        assert bool((inside == inside[:, :1]).all()) == (number == 1)
        assert len(inside.flatten(1).T.unique(dim=0)) == 2
        disc = (picture == 2).any(0)
        assert 80 < int(disc.sum()) < 130
        assert not (disc & patch).any()


def test_pictures_to_learn_from_lack_parts(script: ModuleType) -> None:
    x, classes, _ = script.pictures(200, torch.Generator().manual_seed(0), complete=False)
    assert 20 < int((classes < 0).sum()) < 70
    assert 30 < int((x == 2).any(1).flatten(1).any(1).logical_not().sum()) < 100


def test_a_metric_that_prefers_the_random_map_fails(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def row(higher: float, lower: float) -> dict[str, Any]:
        options: dict[str, Any] = {"names": ("a",)}
        return {
            "up": Measurement(metric="up", better="higher", values=torch.tensor([higher]), **options),
            "down": Measurement(metric="down", better="lower", values=torch.tensor([lower]), **options),
        }

    assert script.report_wrong({"perfect": row(0.9, 0.1), "random": row(0.2, 0.8)}) == 0
    assert script.report_wrong({"perfect": row(0.9, 0.8), "random": row(0.2, 0.8)}) == 1
    assert script.report_wrong({"perfect": row(float("nan"), 0.1), "random": row(0.2, 0.8)}) == 1
    assert capsys.readouterr().err.splitlines() == [
        "down prefers 0.800, random, to 0.800, perfect",
        "up prefers 0.200, random, to nan, perfect",
    ]


@pytest.mark.slow
def test_all_metrics_prefer_the_perfect_map(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--pictures", "5", "--out", str(tmp_path / "maps.png")]) == 0
    first, header, better, *rows, last = capsys.readouterr().out.splitlines()
    assert first.startswith(("99.", "100.0%"))
    assert header.split()[:6] == ["insertion", "deletion", "average_drop", "road", "pointing_game", "energy_in_mask"]
    assert len(rows) == 4 + len(METHODS)
    perfect = dict(zip(header.split(), rows[0].removeprefix("the patch itself").split(), strict=True))
    assert perfect["pointing_game"] == perfect["energy_in_mask"] == "1.000"
    assert perfect["difull"] == "-"
    assert better.split()[1:3] == ["higher", "lower"]
    assert last.endswith("s in all")
    with Image.open(tmp_path / "maps.png") as drawn:
        assert drawn.width == 1300
