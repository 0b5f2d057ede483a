"""The gallery has a page for every method, and its pictures are what the lines on the pages give."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import chromium
from tests.docs.pages import GALLERY, ROOT, blocks
from torchviz_cnn.attribution.methods import METHODS

BEYOND = (
    "activations",
    "cam_video",
    "filter_patterns",
    "maximize",
    "relevance",
    "report",
    "top_activations",
    "trust",
    "units",
)
"""What is in the gallery besides the methods that explain a class."""
DIFFERS = {"filter_patterns": 12, "maximize": 4.5}
"""How much pictures may differ on average, of 255; others by 3, for fonts and clocks. Gradient ascent amplifies the
rounding, which is not the same on each processor: 7 and 3.3 were seen. Other channels differ by 42, another layer by 6.
"""
PAGES = sorted(path.stem for path in GALLERY.glob("*.md") if path.stem != "index")
PARTS = ["## What it shows", "## What it does not show", "## Paper"]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "gallery.py"))


def test_every_method_has_a_page_and_the_first_page_shows_them_all() -> None:
    assert sorted([*METHODS, *BEYOND]) == PAGES
    index = (GALLERY / "index.md").read_text(encoding="utf-8")
    assert [name for name in PAGES if f"]({name}.md)" not in index or f"pictures/{name}.jpg" not in index] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_parts(name: str) -> None:
    text = (GALLERY / f"{name}.md").read_text(encoding="utf-8")
    (block,) = blocks(GALLERY / f"{name}.md")
    lines = [line for line in block.code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 5
    assert [line for line in text.splitlines() if line.startswith("## ")] == PARTS
    assert f"](pictures/{name}.jpg)" in text
    if name in METHODS:
        assert text.startswith(f"# {METHODS[name].title}\n")
        assert METHODS[name].paper in re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


@pytest.mark.parametrize("name", PAGES)
def test_pictures_are_small(name: str) -> None:
    path = GALLERY / "pictures" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert 300 <= picture.width <= 1000
    assert path.stat().st_size <= 100_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")
@pytest.mark.parametrize("name", PAGES)
def test_a_picture_is_what_its_lines_give(name: str, script: dict[str, Any], tmp_path: Path) -> None:
    if name in ("report", "trust"):
        chromium()  # or the test is skipped
    made_by: Callable[[str, Path], Image.Image] = script["made_by"]
    save: Callable[[Image.Image, Path], None] = script["save"]
    save(made_by(name, tmp_path), tmp_path / "picture.jpg")
    now, kept = (
        np.asarray(Image.open(path).convert("RGB"), float)
        for path in (tmp_path / "picture.jpg", GALLERY / "pictures" / f"{name}.jpg")
    )
    assert now.shape == kept.shape
    assert np.abs(now - kept).mean() < DIFFERS.get(name, 3)
