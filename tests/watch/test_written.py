"""The strip and the page: what stands on them, on one scale, and in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from tests.browser import Browser, started
from tests.networks import vgg_like
from torchviz_cnn.watch.page import MAP_SIDE
from torchviz_cnn.watch.strip import CELL, COLUMNS, GAP, HEAD, NAMES

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'|"


def watched(folder: Path, steps: int = 3, **options: object) -> tvc.Watch:
    """A network whose evidence grows from step to step."""
    model = vgg_like()
    net = tvc.Network(model, tvc.Preprocess((32, 32), resize=36), (HOSTILE, "b", "c", "d", "e"), "vgg")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    photos = [Image.fromarray(one) for one in pixels]
    given = {"every": 1, "target": [0, 3], "keep": 20, **options}
    watch = tvc.Watch(net, photos, folder, **given)  # type: ignore[arg-type]
    last = model.get_submodule("classifier.3")
    assert isinstance(last, nn.Linear)
    for step in range(steps):
        watch.step(loss=2.0 / (1 + step))
        with torch.no_grad():
            last.weight.mul_(2)
    return watch


def data_of(folder: Path) -> dict[str, object]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


def redness(picture: np.ndarray) -> float:  # type: ignore[type-arg]
    return float((picture[..., 0].astype(float) - picture[..., 1]).clip(0).sum())


def test_the_strip_has_one_scale_over_its_columns(tmp_path: Path) -> None:
    watched(tmp_path)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    cells = [strip[HEAD : HEAD + CELL * 2 // 3, NAMES + i * (CELL + GAP) :][:, :CELL] for i in range(3)]
    one, two, three = map(redness, cells)
    assert one > 0
    # The last layer's weights double from step to step, and with them Grad-CAM of the logit.
    assert two == pytest.approx(2 * one, rel=0.05)
    assert three == pytest.approx(4 * one, rel=0.05)


def test_the_strip_has_room_for_a_dozen_steps(tmp_path: Path) -> None:
    watched(tmp_path, COLUMNS + 5)
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width == NAMES + COLUMNS * (CELL + GAP)


def test_the_page_has_every_step_and_nothing_that_it_would_run(tmp_path: Path) -> None:
    watched(tmp_path, channels={"features.2": [0, 3]})
    data = data_of(tmp_path)
    steps, photos, patterns = data["steps"], data["photos"], data["patterns"]
    assert isinstance(steps, list) and isinstance(photos, list) and isinstance(patterns, list)  # noqa: PT018
    assert [one["step"] for one in steps] == [0, 1, 2]
    assert steps[1]["loss"] == "loss 1"
    assert [one["share"] for one in photos[0]["maps"]] == pytest.approx([0.25, 0.5, 1])
    assert photos[0]["classes"] == [HOSTILE] * 3
    assert max(photos[0]["maps"][0]["height"], photos[0]["maps"][0]["width"]) <= MAP_SIDE
    assert patterns[0]["channels"] == [0, 3]
    assert len(set(patterns[0]["pictures"])) == 1  # the layer lies before the one that changes
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img src=x" not in text


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    watched(folder, 4, channels={"features.2": [0, 3]})
    return folder / "index.html"


@pytest.mark.slow
def test_the_slider_goes_through_the_steps(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.settled()
        now, slider = tab.page.locator("#now"), tab.page.locator("#step")
        assert now.inner_text() == "step 3, loss 0.5"
        last = tab.pixels(".heat")
        slider.focus()
        tab.page.keyboard.press("Home")
        tab.settled()
        assert now.inner_text() == "step 0, loss 2"
        assert slider.get_attribute("aria-valuetext") == "step 0, loss 2"
        first = tab.pixels(".heat")
        assert first != last
        assert tab.page.evaluate("document.querySelector('svg .now').getAttribute('x1')") == "0"
        assert tab.page.url.endswith("#/step/0")
        tab.page.locator("#scale-own").check()
        tab.settled()
        assert tab.pixels(".heat") == last  # on its own scale the map is the same at every step
        tab.page.keyboard.press("ArrowLeft")  # the other choice
        tab.settled()
        assert tab.pixels(".heat") == first
        tab.open(page, "#/step/2")
        assert now.inner_text() == "step 2, loss 0.667"
        assert tab.said == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:", "about:"))] == []


@pytest.mark.slow
def test_play_runs_to_the_last_step(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        play = tab.page.locator("#play")
        play.click()
        assert play.get_attribute("aria-pressed") == "true"
        assert play.inner_text() == "Pause"
        tab.until("document.querySelector('#step').value === '0'")
        tab.until("document.querySelector('#step').value === '3'")
        tab.until("document.querySelector('#play').textContent === 'Play'")
        assert tab.page.locator(".said .class").first.inner_text() == HOSTILE
        assert tab.said == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible_and_fits(browser: Browser, page: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with browser.tab(width, color_scheme=scheme, bypass_csp=True) as tab:
        tab.open(page)
        tab.settled()
        found = axe.Axe().run(tab.page)
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found.response["violations"]] == []
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
