"""The system's Chromium, driven through Playwright: nothing is downloaded, and every request and complaint is noted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def chromium() -> str:
    """The browser's program; the test is skipped, and says why, where there is none."""
    pytest.importorskip("playwright", reason="Playwright is not installed (it is in the extra `test`)")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    return program


@dataclass
class Tab:
    """A page in the browser, and all it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def refuse(self, dialog: Any) -> None:
        """Note a dialog, which no page of ours opens, and dismiss it."""
        self.said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: str | os.PathLike[str], address: str = "") -> Tab:
        self.page.goto("about:blank")
        self.page.goto(f"{Path(path).resolve().as_uri()}{address}")
        return self.ready()

    def ready(self) -> Tab:
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self

    def pixels(self, selector: str) -> int:
        """A number for what a canvas shows: it changes when any pixel does."""
        return hash(self.page.locator(selector).first.evaluate("(canvas) => canvas.toDataURL()"))

    def red(self, selector: str, x: int, y: int) -> int:
        """How red a pixel of a canvas is: 0..255."""
        script = """(canvas, [x, y]) => {
            const copy = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, -x, -y);
            return copy.getImageData(0, 0, 1, 1).data[0];
        }"""
        return int(self.page.locator(selector).first.evaluate(script, [x, y]))

    def until(self, condition: str, argument: Any = None) -> None:
        """Wait for a condition in the page, looked at once a frame; where it fails (for an element that is not there
        yet) it is not true yet.

        (Playwright's `wait_for_function` compiles text, which the page's policy forbids.)
        """
        asked = condition if condition.lstrip().startswith("(") else f"() => {condition}"
        script = f"""(argument) => {{
            try {{ return Boolean(({asked})(argument)); }} catch (error) {{ return String(error); }}
        }}"""
        deadline = time.monotonic() + 10
        while (said := self.page.evaluate(script, argument)) is not True:
            assert time.monotonic() < deadline, f"never came true, but {said}: {condition} with {argument!r}"
            self.frame()

    def frame(self) -> None:
        """Wait until the browser has drawn a frame, and all that was decided before it."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def settled(self) -> None:
        """Wait until every canvas is drawn and every picture loaded, in the window or not."""
        self.until("document.documentElement.dataset.pending === '0'")
        self.until("[...document.images].every((image) => image.complete && image.naturalWidth)")


class Browser:
    """Tabs of one browser."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    @contextmanager
    def tab(self, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Tab]:
        context = self._browser.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        tab = Tab(page)
        page.on("console", lambda message: tab.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: tab.said.append(f"error: {error}"))
        page.on("dialog", tab.refuse)
        page.on("request", lambda request: tab.requests.append(request.url))
        try:
            yield tab
        finally:
            context.close()


@contextmanager
def started() -> Iterator[Browser]:
    """The browser, headless, for as long as the block runs."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    switches = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=switches)
        try:
            yield Browser(browser)
        finally:
            browser.close()
