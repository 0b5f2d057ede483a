"""Progress: a line a minute where stderr is a file, nothing where none is asked for."""

from __future__ import annotations

import importlib.util
import io
import sys
import threading
import time
import types
import warnings
from typing import Any

import pytest
from tqdm import tqdm

from torchviz_cnn.core import progress


def test_a_line_about_every_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.progress_bar(True, total=40, desc="photos", unit=" photos", unit_scale=0.5) as bar:
        for _ in range(20):
            now += 10.0
            bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"photos: {done} of 20 photos" for done in (6, 12, 18)]


def test_a_line_of_what_has_no_known_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(time, "monotonic", iter([0.0, 60.0, 60.0]).__next__)
    with progress.progress_bar(True, total=None, desc="drawing", unit=" frames") as bar:
        bar.update(3)
    assert capsys.readouterr().err == "drawing: 3 frames\n"


def test_nothing_is_written_and_no_thread_is_left_where_no_progress_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(threading.enumerate())
    with progress.progress_bar(False, total=1) as bar:
        bar.update()
    assert set(threading.enumerate()) <= before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_shows_a_bar_and_no_warning(widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    bars: list[str] = []

    class Widget(tqdm):  # type: ignore[type-arg]
        def __init__(self, **options: Any) -> None:
            bars.append("widget")
            super().__init__(**options)

    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Widget))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with progress.progress_bar(True, total=2, desc="photos") as bar:
            bar.update()
    assert "photos:" in stream.getvalue()
    assert bars == ["widget"] * widgets
