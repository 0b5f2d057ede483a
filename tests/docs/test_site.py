"""The site (`make docs`) builds without a warning, all of its links lead somewhere, and it needs no other machine."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import torchviz_cnn as tvc
from tests.browser import chromium
from tests.docs.pages import ROOT

MODULES = ("metrics", "objectives", "targets")
"""Public names that are modules: the names in them stand in the reference."""


class Page(HTMLParser):
    """The addresses that a page can be asked for, the links on it, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """All pages of the site, as it is built with warnings as errors."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (it is in the extra `docs`)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    assert len(pages) > 50
    return pages


pytestmark = pytest.mark.slow


def test_every_link_leads_to_a_place_and_every_picture_is_there(site: dict[Path, Page]) -> None:
    missing = []
    for path, page in site.items():
        if path.name == "404.html":  # its links are those of the root of a server
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = site[place].ids if place in site else set()
            if not place.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                missing.append((page.path.name, link))
    assert missing == []


def test_nothing_is_loaded_from_other_machines(site: dict[Path, Page]) -> None:
    assert [link for page in site.values() for link in page.loaded if urlsplit(link).netloc] == []
    (folder,) = {path.parent for path in site if path.name == "404.html"}
    styles = [path.read_text(encoding="utf-8") for path in folder.rglob("*.css")]
    assert len(styles) >= 3
    assert not [style for style in styles if "url(http" in style or "url(//" in style or "@import" in style]


def test_the_search_works_where_the_pages_are_opened_from_disk(site: dict[Path, Page]) -> None:
    executable = chromium()
    from playwright.sync_api import sync_playwright

    (folder,) = {path.parent for path in site if path.name == "404.html"}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto((folder / "gallery" / "grad_cam.html").as_uri())
        tab.locator(".md-search__input").fill("occlusion")
        tab.wait_for_selector(".md-search-result__item:has-text('Occlusion')", timeout=60_000)
        browser.close()


def test_every_public_name_stands_in_the_reference(site: dict[Path, Page]) -> None:
    ids = {name for path, page in site.items() if path.parent.name == "reference" for name in page.ids}
    names = [name for name in tvc.__all__ if name not in (*MODULES, "transformations")]
    names += [f"{module}.{name}" for module in MODULES for name in public(getattr(tvc, module))]
    assert [name for name in names if f"torchviz_cnn.{name}" not in ids] == []


def public(module: object) -> list[str]:
    """What a module offers: its `__all__`, or the functions and classes that are its own."""
    offered = getattr(module, "__all__", None)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]  # type: ignore[attr-defined]
    return offered or [name for name in own if not name.startswith("_") and callable(vars(module)[name])]


def test_pages_name_no_path_of_a_machine(site: dict[Path, Page]) -> None:
    texts = {page.path.name: page.path.read_text(encoding="utf-8") for page in site.values()}
    assert [name for name, text in texts.items() if str(ROOT) in text or "/home/" in text or "/tmp/" in text] == []
