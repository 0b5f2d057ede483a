"""The page in a browser: sorted by a click and by the keyboard, accessible, and without a request or a complaint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import torchviz_cnn as tvc
from tests.browser import Browser, started
from tests.networks import vgg_like

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    (folder / "photos").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    net = tvc.Network(vgg_like(), tvc.Preprocess((32, 32), resize=36), ("a", "b", "c", "d", "e"), "vgg")
    methods = ["cam", "layer_cam", "saliency", "guided", "full_grad"]
    tvc.trust(net, folder / "photos", methods=methods, steps=4, out=folder / "run")
    return folder / "run" / "index.html"


def test_a_head_sorts_the_table(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        cells = "[...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[3].dataset.value ?? null)"
        head = tab.page.locator("#table thead th").nth(3)
        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"  # of deletion the lower is better
        first = tab.page.evaluate(cells)
        numbers = [float(value) for value in first if value is not None]
        assert numbers == sorted(numbers)
        assert first[-1] is None  # a dash
        tab.page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        again = tab.page.evaluate(cells)
        assert [float(value) for value in again if value is not None] == numbers[::-1]
        assert again[-1] is None
        assert "Sorted by deletion" in tab.page.locator("#sorted").inner_text()
        assert tab.said == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:", "about:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible_and_fits(browser: Browser, page: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with browser.tab(width, color_scheme=scheme, bypass_csp=True) as tab:
        tab.open(page)
        found = axe.Axe().run(tab.page)
        wrong = [(one["id"], one["nodes"][0]["html"][:200]) for one in found.response["violations"]]
        assert wrong == []
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
