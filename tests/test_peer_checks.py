"""The table of README that says what other libraries do: our own column, and the two mistakes it names of captum."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def checks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return importlib.import_module("peer_checks")


def test_every_check_passes_here(checks: Any) -> None:
    answers = {what: check("torchviz_cnn") for what, check in checks.CHECKS.items()}
    assert answers.pop("... of ten classes") == "1 forward pass"
    assert set(answers.values()) == {"yes"}


def test_a_check_tells_right_from_wrong(checks: Any) -> None:
    pytest.importorskip("captum")
    answers = [check("captum") for check in checks.CHECKS.values()]
    assert answers[:2] == ["yes", "no, without a word"]
    assert answers[6] == "10 forward passes"


def test_what_is_left_changed_is_named(checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(library: str, model: Any, *options: Any) -> list[Any]:
        model.eval()
        model.conv1.register_forward_hook(lambda *_: None)
        return []

    monkeypatch.setattr(checks, "grad_cam", careless)
    assert checks.left_as_it_was("careless", checks.trained()) == "no: hooks, training flags"
