"""The page of a survey in a browser: sorted, filtered, clicked, addressed, by keyboard, on a phone, in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser import Browser, Tab, started
from tests.surveys.folders import BYTES, HOSTILE, folder_of_photos, surveyed
from torchviz_cnn.surveys.written.content import shown_text
from torchviz_cnn.surveys.written.page import write_page

pytestmark = pytest.mark.slow
SAFE = "!'()*"
"""What encodeURIComponent leaves as it is, beside what Python does."""
PLACES = "[...document.querySelectorAll('#cards a')].map((card) => Number(card.dataset.place))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def page(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(surveyed(photos), tmp_path_factory.mktemp("page"))


def column(tab: Tab, name: str) -> list[Any]:
    values: list[Any] = tab.page.evaluate(f"FIGURES.{name}")
    return values


def shown(tab: Tab) -> list[int]:
    places: list[int] = tab.page.evaluate(PLACES)
    return places


def nothing_wrong(tab: Tab) -> None:
    assert tab.said == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "about:"))] == []


def test_the_first_screen_has_cautions_and_photos_with_heatmaps(browser: Browser, page: Path) -> None:
    with browser.tab(1280, 900) as tab:
        tab.open(page)
        tab.settled()
        assert tab.page.locator(".caution").count() == 1
        for selector in (".caution .mean canvas", ".caution .examples canvas", "#cards canvas"):
            box = tab.page.locator(selector).first.bounding_box()
            assert box is not None
            assert box["y"] < 900, selector
            assert len(set(tab.page.locator(selector).first.evaluate(COLOURS))) > 20, selector
        nothing_wrong(tab)


COLOURS = """(canvas) => {
    const copy = new OffscreenCanvas(24, 24).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0, 24, 24);
    return [...new Uint32Array(copy.getImageData(0, 0, 24, 24).data.buffer)];
}"""


def test_the_gallery_is_sorted_by_each_figure(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        for key, down in (("loss", True), ("confidence", True), ("margin", False), ("border", True), ("name", False)):
            tab.page.select_option("#sort", key)
            values = [column(tab, key)[place] for place in shown(tab)]
            assert len(values) > 20
            known = [value for value in values if value is not None]
            assert values == known + [None] * (len(values) - len(known))  # what is not known stands last
            if key != "name":
                assert known == sorted(known, reverse=down), key
            tab.page.click("#turn")
            assert column(tab, key)[shown(tab)[0]] == known[-1]
        nothing_wrong(tab)


def test_the_gallery_is_filtered_by_class_pair_reason_and_text(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        true, predicted = column(tab, "true"), column(tab, "predicted")
        tab.page.select_option("#true", str(true[0]))
        assert {true[place] for place in shown(tab)} == {true[0]}
        assert f"{true.count(true[0])} of 40 photos" in tab.page.inner_text("#count")
        tab.page.click("#clear")
        assert tab.page.inner_text("#count").startswith("40 photos")

        tab.page.click("#confusions tbody button >> nth=0")  # a pair
        pairs = {(true[place], predicted[place]) for place in shown(tab)}
        assert len(pairs) == 1
        assert pairs == {(int(tab.page.input_value("#true")), int(tab.page.input_value("#predicted")))}
        counts = [int(text) for text in tab.page.locator("#confusions td:nth-child(3)").all_inner_texts()]
        assert len(shown(tab)) == counts[0] == max(counts)

        tab.page.click("#clear")
        tab.page.select_option("#outcome", "reason least certain")
        assert len(shown(tab)) == 4
        tab.page.select_option("#outcome", "right")
        assert all(true[place] == predicted[place] for place in shown(tab))
        tab.page.click("#clear")
        tab.page.fill("#search", "CAT/ 7.png")
        assert tab.page.inner_text("#count").startswith("1 of 40")
        tab.page.fill("#search", "nothing is called so")
        assert "No photo matches" in tab.page.inner_text("#cards")

        tab.page.click(".caution button")
        assert set(shown(tab)) == {place for place in shown(tab) if true[place] == int(tab.page.input_value("#true"))}
        assert tab.page.input_value("#sort") == "corner"
        nothing_wrong(tab)


def test_a_photo_opens_with_both_heatmaps_and_their_difference(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.page.select_option("#outcome", "wrong")
        peaks = tab.page.evaluate("DATA.photos.map((photo) => photo.high)")  # two where another class is predicted
        first = next(
            place for place in shown(tab) if place < len(peaks) and len(peaks[place]) == 2 and all(peaks[place])
        )
        tab.page.click(f"#cards [data-place='{first}']")
        tab.until("document.getElementById('photo').open")
        tab.settled()
        assert tab.page.locator(".views figure").count() == 4
        own = [tab.pixels(f".views figure:nth-child({n}) > canvas") for n in range(1, 5)]
        assert len(set(own)) == 4
        values = tab.page.evaluate(
            """async (i) => {
                const [a, b, d] = await Promise.all(["predicted", "true", "difference"].map((kind) => heatOf(i, kind)));
                return [peakOf(a), peakOf(b), d.values.every((v, n) => v === Math.fround(a.values[n] - b.values[n]))];
            }""",
            first,
        )
        high = tab.page.evaluate("(i) => DATA.photos[i].high", first)
        assert values[:2] == pytest.approx(high, rel=1e-3)
        assert values[2]
        ends = tab.page.locator(".views figure:nth-child(4) .key span").all_inner_texts()
        assert float(ends[0]) == -float(ends[2]) < 0
        tab.page.check("input[name=scale][value=shared]")
        tab.settled()
        ends = [tab.page.inner_text(f".views figure:nth-child({n}) .key span:last-child") for n in (2, 3)]
        assert ends[0] == ends[1]
        tab.page.hover(".views figure:nth-child(2) > canvas")
        told = tab.page.inner_text(".pointer")
        assert all(word in told for word in ("predicted class", "true class", "difference"))
        assert tab.page.locator("#photo .bars li").count() == 5
        figures = tab.page.inner_text("#photo .numbers")
        words = ("Loss", "Margin", "Border share", "true class", "predicted", "Shown for")
        assert all(word in figures for word in words)
        tab.page.click("#photo summary")
        assert "minus the natural logarithm" in tab.page.inner_text("#photo .glossary")
        nothing_wrong(tab)


def test_the_heatmap_vanishes_under_the_pointer(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.settled()
        heated = tab.pixels("#cards canvas")
        tab.page.select_option("#heat", "none")
        tab.settled()
        plain = tab.pixels("#cards canvas")
        tab.page.select_option("#heat", "predicted")
        tab.settled()
        assert tab.pixels("#cards canvas") == heated != plain
        tab.page.hover("#cards canvas >> nth=0")
        tab.settled()
        assert tab.pixels("#cards canvas") == plain
        tab.page.hover("#h-photos")
        tab.settled()
        assert tab.pixels("#cards canvas") == heated
        nothing_wrong(tab)


def test_every_photo_has_an_address_and_back_leads_back(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        for name in (f"ape/{HOSTILE}", shown_text(f"bee/{BYTES}"), "cat/3.png"):
            tab.open(page, f"#photo={quote(name, safe=SAFE)}")
            assert tab.page.inner_text("#photo-title") == name
            assert tab.page.get_attribute("#photo .address a", "href") == tab.page.evaluate("location.hash")
        tab.page.keyboard.press("Escape")
        tab.until("!document.getElementById('photo').open")
        tab.page.go_back()
        tab.until("document.getElementById('photo').open")
        assert tab.page.inner_text("#photo-title") == "cat/3.png"
        tab.page.go_forward()
        tab.until("!document.getElementById('photo').open")
        tab.open(page, "#photo=nowhere.png")
        assert "The survey has no photo nowhere.png" in tab.page.inner_text("#message")
        nothing_wrong(tab)


def test_the_link_is_copied(browser: Browser, page: Path) -> None:
    with browser.tab(permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.open(page, "#photo=cat%2F3.png")
        tab.page.click("text=Copy link")
        tab.until("document.querySelector('.address [role=status]').textContent")
        said = tab.page.inner_text(".address [role=status]")
        if "copied" in said and "selected" not in said:
            assert tab.page.evaluate("navigator.clipboard.readText()") == tab.page.url
        else:
            assert "cat/3.png" in tab.page.evaluate("String(getSelection())")


def test_the_keyboard_is_enough(browser: Browser, page: Path) -> None:
    focused = "Number(document.activeElement.dataset.place)"
    with browser.tab() as tab:
        tab.open(page)
        places = shown(tab)
        tab.page.focus("#cards a")
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.evaluate(focused) == places[1]
        tab.page.keyboard.press("ArrowDown")
        below = places.index(tab.page.evaluate(focused))
        assert below > 2
        tab.page.keyboard.press("ArrowUp")
        assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        tab.page.keyboard.press("Enter")
        tab.until("document.getElementById('photo').open")
        names = column(tab, "name")
        assert tab.page.inner_text("#photo-title") == names[places[1]]
        tab.page.keyboard.press("ArrowRight")
        tab.until("(name) => document.getElementById('photo-title').textContent === name", names[places[2]])
        tab.page.keyboard.press("ArrowLeft")
        tab.page.keyboard.press("ArrowLeft")
        tab.until("(name) => document.getElementById('photo-title').textContent === name", names[places[0]])
        tab.page.keyboard.press("Escape")
        tab.until(f"!document.getElementById('photo').open && {focused} === {places[0]}")
        nothing_wrong(tab)


def test_the_tables_are_sorted(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        head = tab.page.locator("#classes thead th", has_text="Border share")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        place = head.evaluate("(head) => head.cellIndex")
        rows = "[...document.querySelectorAll('#classes tbody tr')]"
        cells = f"{rows}.map((row) => Number(row.cells[{place}].dataset.value))"
        values = tab.page.evaluate(cells)
        assert values == sorted(values, reverse=True)
        assert tab.page.locator("#calibration\\/, [id='/calibration'] svg .dot").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("address", ["", "#photo=cat%2F3.png"])
def test_the_page_is_accessible_and_fits(browser: Browser, page: Path, width: int, scheme: str, address: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with browser.tab(width, color_scheme=scheme, bypass_csp=True) as tab:
        tab.open(page, address)
        tab.settled()
        response = axe.Axe().run(tab.page).response
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in response["violations"]] == []
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.page.evaluate("document.querySelector('.thumbnail').clientWidth") > 40
        if address:
            assert tab.page.evaluate("document.getElementById('photo').scrollWidth") <= width


def test_without_labels_there_is_one_heatmap(browser: Browser, photos: Path, tmp_path: Path) -> None:
    page = write_page(surveyed(photos, labelled=False), tmp_path)
    with browser.tab() as tab:
        tab.open(page)
        assert tab.page.input_value("#sort") == "margin"
        assert tab.page.locator("#true").count() == 0
        tab.page.click("#cards a >> nth=0")
        tab.until("document.getElementById('photo').open")
        assert tab.page.locator(".views figure").count() == 2
        assert "label" not in tab.page.inner_text("#photo header")
        nothing_wrong(tab)


def test_a_print_has_the_pictures(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.page.emulate_media(media="print")
        tab.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        tab.settled()
        assert not tab.page.is_visible("#filters")
        assert tab.page.evaluate("[...document.querySelectorAll('#cards canvas')].every((one) => one.width > 4)")
