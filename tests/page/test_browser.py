"""The report in a browser: opened from the disk, clicked through, by keyboard, on a phone, in the dark, printed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

import torchviz_cnn as tvc
from tests import browser as driver
from tests.browser import Browser, Tab
from tests.networks import CLASSES, gap_linear, vgg_like
from tests.page.test_report import Aside, Page
from torchviz_cnn.ascent.atlas import filter_atlas

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"
SIZE = (96, 72)


def pictures(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    small = [Image.fromarray(noise.integers(0, 255, (12, 16, 3), dtype=np.uint8)) for _ in range(count)]
    return [one.resize(SIZE, Image.Resampling.BICUBIC).filter(ImageFilter.SHARPEN) for one in small]


def network(model: nn.Module, names: tuple[str, ...] | None, channels: int = 3) -> tvc.Network:
    preprocess = tvc.Preprocess((32, 32), resize=32, mean=(0.5,) * channels, std=(0.25,) * channels)
    return tvc.Network(model, preprocess, names, "tiny net", "random")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with driver.started() as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = network(vgg_like(), tuple(f"class {chr(97 + i)}" for i in range(CLASSES)))
    shown = dict(zip(("one.jpg", "two.jpg", "three.jpg"), pictures(3), strict=True))
    folder = tmp_path_factory.mktemp("report")
    return tvc.report(net, shown, folder / "a page.html", k=8, budget=None).path


def text(tab: Tab, selector: str) -> str:
    return str(tab.page.locator(selector).first.inner_text())


def nothing_wrong(tab: Tab) -> None:
    assert tab.said == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert len({url.partition("#")[0] for url in tab.requests if url.startswith("file:")}) <= 1


def violations(tab: Tab) -> list[str]:
    """What axe finds wrong: everything from `moderate` on."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    result = axe.run(
        tab.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    return [
        f"{v['id']} ({v['impact']}): {v['help']}: {[node['html'][:120] for node in v['nodes'][:3]]}"
        for v in result.response["violations"]
        if v["impact"] != "minor"
    ]


def test_each_prediction_opens_with_its_evidence_and_the_photo_is_under_the_pointer(
    browser: Browser, page: Path
) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.until("!document.querySelector('.pick canvas[hidden]')")
        assert "The colours show" in text(tab, "#coloured")
        assert tab.pixels(".card:first-child canvas") == tab.pixels("#heatmap")  # the likeliest class, as below
        opacity = "getComputedStyle(document.querySelector('.pick canvas')).opacity"
        assert tab.page.evaluate(opacity) == "1"
        tab.page.hover(".pick >> nth=0")
        tab.until(f"{opacity} === '0'")


def test_from_photo_to_layer_to_channel_to_class(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.until("document.getElementById('heatmap').width === 96")
        drawn = {tab.pixels("#heatmap")}
        assert "one.jpg" in tab.page.get_attribute("#heatmap", "aria-label")

        tab.page.click("[aria-label='Choose two.jpg']")  # a photo
        tab.until("document.getElementById('heatmap').ariaLabel.includes('two.jpg')")
        assert tab.page.is_checked("#photo-1")
        assert tab.page.get_attribute(".pick >> nth=1", "aria-pressed") == "true"
        assert tab.pixels("#heatmap") not in drawn
        drawn.add(tab.pixels("#heatmap"))

        tab.page.click("#depth-1")  # a layer
        tab.until("document.getElementById('heatmap-caption').textContent.includes('Grad-CAM at features.2 ')")
        assert tab.pixels("#heatmap") not in drawn
        drawn.add(tab.pixels("#heatmap"))

        tab.page.click("a.tile[href='#features.2/3']")  # a channel
        assert text(tab, "#unit-title") == "features.2 channel 3"
        assert tab.page.url.endswith("#features.2/3")
        assert tab.page.title() == "features.2/3: tiny net: network report"
        tab.until("document.querySelector('#unit canvas').width === 360")
        assert tab.page.locator("#unit .photos figure").count() == 3
        assert tab.page.locator("#unit .pattern img").count() == 1
        tab.page.keyboard.press("Escape")
        tab.until("!document.getElementById('unit').open")
        tab.until("document.activeElement.getAttribute('href') === '#features.2/3'")

        names = [text(tab, f"label[for=class-{i}]") for i in range(3)]
        tab.page.click("#class-2")  # a class
        wanted = names[2].split("  ")[0].strip().rsplit(" ", 2)[0]
        tab.until("(name) => document.getElementById('heatmap-caption').textContent.includes(`for ${name}`)", wanted)
        assert tab.pixels("#heatmap") not in drawn
        assert wanted in text(tab, "#pixels-lead")
        nothing_wrong(tab)


def test_of_two_choices_soon_after_each_other_the_last_is_drawn(browser: Browser, page: Path) -> None:
    tiles = (
        "[...document.querySelectorAll('[data-layer=\"features.0\"] .tile canvas')].map((c) => c.toDataURL()).join()"
    )
    with browser.tab() as tab:
        tab.open(page, "#features.0")
        tab.settled()
        first = tab.page.evaluate(tiles)
        assert len(first) > 100
        # The second photo and its maps come late, when they are let go.
        tab.page.evaluate("""() => {
            const gate = new Promise((open) => { window.letGo = open; });
            const layer = DATA.layers.find((one) => one.name === "features.0"), id = layer.maps[1];
            const maps = mapsOf(id, layer.size), photo = photoImage(1);
            decodedMaps.set(id, gate.then(() => maps));
            loadedPhotos.set(1, gate.then(() => photo));
        }""")
        heatmap = tab.pixels("#heatmap")
        tab.page.locator("#photo-0").focus()
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.is_checked("#photo-1")
        tab.page.keyboard.press("ArrowLeft")
        assert tab.page.is_checked("#photo-0")
        tab.page.evaluate("letGo()")
        tab.settled()
        assert tab.page.evaluate(tiles) == first
        assert tab.pixels("#heatmap") == heatmap
        tab.page.locator("#photo-0").focus()
        tab.page.keyboard.press("ArrowRight")
        tab.settled()
        assert tab.page.evaluate(tiles) != first
        nothing_wrong(tab)


def test_a_unit_shows_all_photos_on_one_scale(browser: Browser, tmp_path: Path) -> None:
    bright = pictures(1)[0]
    dim = bright.point([v // 4 + 96 for v in range(256)] * 3)
    out = tvc.report(
        network(vgg_like(), None),
        {"bright": bright, "dim": dim},
        tmp_path,
        layers=["features.0", "features.1"],
        budget=0,
    )
    spread = """(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), greens = [];
        for (let i = 1; i < data.length; i += 4) greens.push(data[i]);
        return Math.max(...greens) - Math.min(...greens);
    }"""
    with browser.tab() as tab:
        tab.open(out, "#features.0/0")
        tab.until("[...document.querySelectorAll('#unit canvas')].every((canvas) => canvas.width !== 300)")
        maps = tab.page.locator("#unit canvas.alone")
        assert maps.nth(1).evaluate(spread) < 0.6 * maps.nth(0).evaluate(spread)
        assert "All photos are on one scale." in text(tab, "#unit .about-maps")


def test_without_photos_the_page_shows_the_patterns_there_are(browser: Browser, tmp_path: Path) -> None:
    net = network(vgg_like(), None)
    filter_atlas(net.model, tmp_path / "atlas", ["features.0"], k=2, size=16, steps=1)
    out = tvc.report(net, [], tmp_path / "page", k=3, layers=["features.0", "features.2"], atlas=tmp_path / "atlas")
    late = tvc.report(net, [], tmp_path / "late", k=3, budget=1e-6)
    with browser.tab() as tab:
        tab.open(out)
        assert tab.page.locator("#jump option").all_inner_texts() == ["features.0"]
        assert text(tab, "#\\/layers .lead").startswith("Each layer has a grid of its channels' filter patterns.")
        tab.open(out, "#features.2")
        assert "no filter pattern of layer features.2" in text(tab, "#message")
        assert tab.page.locator(".tile img").count() == 2
        nothing_wrong(tab)
    with browser.tab() as tab:
        tab.open(late, "#features.0/2")
        assert "There was no time to make this pattern." in text(tab, "#unit")
        nothing_wrong(tab)


@pytest.mark.parametrize("length", [39, 300])
def test_long_names_do_not_widen_a_phone(length: int, browser: Browser, tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module(("inception_branch_" * 20)[:length], nn.Conv2d(3, 4, 3))
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    out = tvc.report(network(model, None), pictures(1), tmp_path, budget=0)
    with browser.tab(390, 844) as tab:
        tab.open(out)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.page.evaluate("document.getElementById('jump').getBoundingClientRect().right") <= 390
        nothing_wrong(tab)


def test_a_name_that_turns_letters_round_turns_no_others(browser: Browser, tmp_path: Path) -> None:
    turned = "cat \u202egod"
    out = tvc.report(network(vgg_like(), (turned,) * CLASSES), {turned: pictures(1)[0]}, tmp_path, budget=0)
    # Where the last letter of the sentence lies, against the one before it: to its right, as in any sentence.
    ends = """(selector) => {
        const all = [...document.querySelectorAll(selector)].map((element) => {
            const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), texts = [];
            while (walk.nextNode()) if (walk.currentNode.data.trim()) texts.push(walk.currentNode);
            const last = texts.at(-1), range = document.createRange(), length = last.data.trimEnd().length;
            const left = (i) => {
                range.setStart(last, i);
                range.setEnd(last, i + 1);
                return range.getBoundingClientRect().left;
            };
            return left(length - 1) > left(length - 2);
        });
        return all.length > 0 && all.every(Boolean);
    }"""
    with browser.tab() as tab:
        tab.open(out)
        tab.until("document.getElementById('heatmap-caption').textContent.includes('Grad-CAM at ')")
        assert tab.page.evaluate(ends, "#heatmap-caption")
        assert tab.page.evaluate(ends, "#pixels-lead")
        nothing_wrong(tab)


def test_every_method_and_colour_draws_another_picture(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.until("document.getElementById('heatmap').width === 96")
        drawn: set[int] = set()
        chosen = 0
        for name in ("method", "colours"):
            labels = tab.page.locator(f"input[name={name}]")
            chosen += labels.count()
            for i in range(labels.count()):
                labels.nth(i).check(force=True)
                tab.settled()
                if tab.page.is_enabled("#depth-1"):  # where each class has evidence
                    tab.page.check("#depth-1", force=True)
                    tab.settled()
                drawn.add(tab.pixels("#heatmap"))
        assert chosen == 11 + 4
        assert len(drawn) == chosen - 1  # the last method in the first colours is one picture


def test_competitive_cam_is_beside_grad_cam_and_at_the_layer_that_has_it(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.until("document.getElementById('heatmap').width === 96")
        methods = tab.page.locator("#method-switch label").all_inner_texts()
        assert [" ".join(method.split()) for method in methods[:3]] == [
            "Grad-CAM one thing in the photo",
            "Competitive CAM several things in the photo",
            "LayerCAM",
        ]
        layers = tab.page.locator("input[name=depth]")
        names = tab.page.locator("#depth-switch label").all_inner_texts()
        place = names.index("features.7")
        tab.page.check("#depth-0", force=True)
        tab.page.check("#method-competitive_cam", force=True)
        tab.settled()
        assert text(tab, "#heatmap-caption").startswith("Competitive CAM at features.7 (output of features.8) for ")
        assert "for this layer alone" in text(tab, "#method-shows")
        assert [layers.nth(i).is_enabled() for i in range(len(names))] == [i == place for i in range(len(names))]
        assert tab.page.is_checked(f"#depth-{place}")
        tab.page.check("#method-grad_cam", force=True)
        tab.settled()
        assert all(layers.nth(i).is_enabled() for i in range(len(names)))
        assert "alone" not in text(tab, "#method-shows")
        nothing_wrong(tab)


def test_the_slider_changes_the_picture_and_nothing_is_left_of_the_map_at_0(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        tab.until("document.getElementById('heatmap').width === 96")
        tab.page.check("#depth-1", force=True)
        slider, drawn = tab.page.locator("#opacity"), []
        for value in (0, 30, 100, 0):
            slider.fill(str(value))
            tab.until("(value) => document.getElementById('opacity-value').textContent === value", f"{value} %")
            tab.settled()
            drawn.append(tab.pixels("#heatmap"))
        assert len(set(drawn)) == 3
        assert drawn[0] == drawn[3]
        slider.focus()
        tab.page.keyboard.press("ArrowRight")
        assert text(tab, "#opacity-value") == "1 %"


def test_the_heatmap_lies_on_the_part_of_the_photo_that_is_the_input(browser: Browser, tmp_path: Path) -> None:
    class Left(nn.Module):
        """Its class is how bright the left edge is."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 4, stride=4)
            with torch.no_grad():
                self.conv.weight.fill_(1 / 48)
                self.conv.bias.zero_()  # type: ignore[union-attr]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright: torch.Tensor = self.conv(x).relu().mean((2, 3))
            return torch.cat([bright, -bright], 1)

    photo = Image.new("RGB", (96, 32), "black")
    photo.paste("white", (36, 8, 44, 16))  # a quarter to a half of the way into the crop that is the input
    out = tvc.report(network(Left(), ("bright", "dark")), {"photo": photo}, tmp_path, budget=0)
    with browser.tab() as tab:
        tab.open(out)
        tab.until("document.getElementById('heatmap').width === 96")
        tab.page.check("#colours-gray", force=True)
        for value in ("0", "100"):
            tab.page.fill("#opacity", value)
            tab.settled()
            assert tab.red("#heatmap", 39, 11) > 200
            assert tab.red("#heatmap", 58, 28) < 30
            assert tab.red("#heatmap", 10, 12) < 30
        # Beside the square the map's own soft edge shows, inside the input; outside of it nothing can.
        assert tab.red("#heatmap", 35, 11) > 40
        assert tab.red("#heatmap", 31, 11) < 20


def test_the_first_screen_shows_a_photo_with_its_heatmap(browser: Browser, page: Path) -> None:
    for width, height in ((1280, 800), (390, 844)):
        with browser.tab(width, height) as tab:
            tab.open(page)
            tab.until("!document.querySelector('.pick canvas[hidden]')")
            box = tab.page.locator(".card:first-child canvas").bounding_box()
            assert box["y"] > 0
            assert box["y"] + box["height"] <= height
    with browser.tab(1920, 1000) as tab:  # and the width is used
        tab.open(page)
        assert tab.page.locator("#heatmap").bounding_box()["width"] > 900
        last = tab.page.locator(".card").last.bounding_box()
        assert last["x"] + last["width"] > 1700


def test_the_sections_have_the_terms_of_the_field(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        sections = ["Predictions", "Class evidence", "Pixel attribution", "Layers", "Network", "Provenance"]
        assert tab.page.locator("main > section > h2").all_inner_texts() == sections
        assert tab.page.locator(".bar nav a").all_inner_texts() == sections
        thumbnails = tab.page.locator("#depth-switch label").all_inner_texts()
        assert thumbnails == tab.page.locator(".layer h3").all_inner_texts()
        assert thumbnails == ["features.0", "features.2", "features.5", "features.7"]
        assert text(tab, ".layer .kind").startswith("Conv2d with its ReLU, 8 channels, 32 × 32, receptive field 3 px")


def bar_ends(text: str) -> list[float]:
    """The values at the two ends of a colour bar."""
    return [float(word) for word in text.split()[:2]]


def test_colour_bars_have_the_values_of_what_is_drawn(browser: Browser, page: Path) -> None:
    data = Page(page).data
    layer = next(layer for layer in data["layers"] if layer["name"] == data["explained"])
    near: dict[str, Any] = {"rel": 0.05, "abs": 0}  # small numbers stand there with two digits
    with browser.tab() as tab:
        tab.open(page)
        tab.settled()
        tab.page.check("#depth-0", force=True)
        tab.settled()
        peak = data["layers"][0]["heat"]["grad_cam"]["peak"][0][0]
        assert peak > 0
        assert bar_ends(text(tab, "#heatmap-legend")) == [0, pytest.approx(peak, **near)]
        bar = tab.pixels("#heatmap-legend canvas")
        tab.page.check("#colours-gray", force=True)
        tab.settled()
        assert tab.pixels("#heatmap-legend canvas") != bar
        assert "mean − 2 sd" in text(tab, "#maps-legend")
        ends = [pixels["ends"][0] for pixels in data["photos"][0]["pixels"].values()]
        bars = tab.page.locator("#pixels .colour-bar").all_inner_texts()
        assert [bar_ends(bar) for bar in bars] == [pytest.approx([-end, end], **near) for end in ends]
        tab.open(page, f"#features.7/{layer['channels'][0]}")
        tab.settled()
        over, whole = map(bar_ends, tab.page.locator("#unit .colour-bar").all_inner_texts())
        low, high = layer["range"][0]
        assert over == [0, pytest.approx(high, **near)]
        assert low <= whole[0] < whole[1] <= 1.05 * high
        nothing_wrong(tab)


def test_each_method_says_what_it_shows_and_what_it_does_not(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page)
        for method in Page(page).data["methods"]:
            tab.page.check(f"#method-{method['name']}", force=True)
            tab.settled()
            said = text(tab, "#method-shows")
            assert said.startswith(f"{method['title']} shows {method['shows']}. It does not show {method['misses']}.")
        captions = " ".join(tab.page.locator("#pixels figcaption").all_inner_texts())
        assert captions.count("It does not show") == 3


def test_pictures_that_mislead_have_a_caution(browser: Browser, page: Path, tmp_path: Path) -> None:
    learned = replace(network(gap_linear(), None), weights="a file")
    pooled = tvc.report(learned, pictures(1), tmp_path, budget=0)
    with browser.tab() as tab:
        tab.open(page)  # of random weights, and without global average pooling
        assert "the weights of this network are random" in text(tab, ".masthead .caution")
        assert tab.page.locator("#pixels .caution:not(:empty)").count() == 0
        nothing_wrong(tab)
    with browser.tab() as tab:
        tab.open(pooled)
        assert tab.page.locator(".masthead .caution").count() == 0
        cautions = tab.page.locator("#pixels figure", has=tab.page.locator(".caution:not(:empty)"))
        assert cautions.count() == 1
        assert cautions.inner_text().count("global average pooling comes before the score") == 1
        assert "Deconvnet of the score" in cautions.inner_text()
        assert not tab.page.locator("#heatmap-caution").is_visible()
        tab.page.check("#method-deconvnet", force=True)
        tab.settled()
        assert tab.page.locator("#heatmap-caution").is_visible()
        nothing_wrong(tab)


def test_a_link_to_a_channel_is_copied(browser: Browser, page: Path) -> None:
    with browser.tab(permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.open(page, "#features.5/2")
        tab.page.click("text=Copy link")
        tab.until("document.querySelector('.address').innerText.includes('The link is copied.')")
        assert tab.page.evaluate("navigator.clipboard.readText()") == f"{page.as_uri()}#features.5/2"
        nothing_wrong(tab)


def test_arrow_keys_do_what_the_buttons_of_a_unit_say(browser: Browser, page: Path) -> None:
    keys = {
        "ArrowRight": "Next channel",
        "ArrowDown": "Next layer",
        "ArrowLeft": "Previous channel",
        "ArrowUp": "Previous layer",
    }
    with browser.tab() as tab:
        tab.open(page, "#features.2/3")
        for key, label in keys.items():
            there = tab.page.get_attribute(f"#unit [data-step='{label}']", "href")
            before = text(tab, "#unit-title")
            tab.page.keyboard.press(key)
            tab.until("(title) => document.getElementById('unit-title').innerText !== title", before)
            assert tab.page.url.endswith(there)
        assert text(tab, "#unit-title") == "features.2 channel 3"


def test_maps_of_one_place_are_numbers_and_no_pictures(browser: Browser, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    out = tvc.report(network(model, None), pictures(2), tmp_path, layers=["0", "2"], budget=0)
    peaks = next(layer for layer in Page(out).data["layers"] if layer["name"] == "2")["peak"]
    with browser.tab() as tab:
        tab.open(out)
        tab.settled()
        assert tab.page.locator("[data-layer='0'] .tile canvas").count() == 4
        assert tab.page.locator("[data-layer='2'] .tile canvas").count() == 0
        values = tab.page.locator("[data-layer='2'] .tile .value").all_inner_texts()
        assert [float(value) for value in values] == pytest.approx(peaks[0], rel=1e-2)
        assert tab.page.locator("[data-layer='2'] .tile meter").count() == 4
        assert tab.page.locator("#depth-switch label").all_inner_texts() == ["0"]
        tab.open(out, "#2/1")
        assert tab.page.locator("#unit canvas").count() == 0
        assert "has one place" in text(tab, "#unit")
        assert violations(tab) == []
        nothing_wrong(tab)


def test_addresses_open_units_and_back_and_forward_work(browser: Browser, page: Path) -> None:
    with browser.tab() as tab:
        tab.open(page, "#features.5/2")
        assert text(tab, "#unit-title") == "features.5 channel 2"
        tab.page.click("text=channel →")
        changed = "(title) => document.getElementById('unit-title').innerText !== title"
        tab.until(changed, "features.5 channel 2")
        second = text(tab, "#unit-title")
        tab.page.keyboard.press("ArrowRight")
        tab.until(changed, second)
        tab.page.go_back()
        tab.until("(title) => document.getElementById('unit-title').innerText === title", second)
        tab.page.go_back()
        tab.until("document.getElementById('unit-title').innerText === 'features.5 channel 2'")
        tab.page.go_forward()
        tab.until("(title) => document.getElementById('unit-title').innerText === title", second)
        tab.page.click("#unit .close")
        tab.until("!document.getElementById('unit').open")
        assert tab.page.url.endswith("#features.5")
        tab.page.go_back()
        tab.until("document.getElementById('unit').open")

        tab.open(page, "#features.5")  # a layer
        assert not tab.page.evaluate("document.getElementById('unit').open")
        top = tab.page.locator("[data-layer='features.5']").bounding_box()["y"]
        assert 0 <= top < 300
        tab.open(page, "#features.7/11")  # one that is there, but not shown
        assert "is not among the 8 of 12 channels" in text(tab, "#unit")
        tab.open(page, "#features.7/99")
        assert "does not exist" in text(tab, "#unit")
        tab.open(page, "#featurs.7/1")
        assert "The address featurs.7/1 does not exist" in text(tab, "#message")
        tab.open(page, "#%E0%A4%A/1")
        assert "does not exist on this page" in text(tab, "#message")
        nothing_wrong(tab)


def test_the_keyboard_reaches_everything(browser: Browser, page: Path) -> None:
    # Of radio buttons with one name, and of a grid of channels, one is reached by Tab and the others by arrow keys.
    named = """(e) => e.type === 'radio' ? `radio ${e.name}`
        : e.id || e.getAttribute('href') || e.getAttribute('aria-label') || e.className"""
    reachable = f"""() => {{
        const all = [...document.querySelectorAll('a[href], button, input, select, [tabindex="0"]')];
        const there = all.filter((e) => e.checkVisibility() && e.tabIndex >= 0 && !e.closest('dialog'));
        return [...new Set(there.map({named}))];
    }}"""
    here = f"""() => {{
        const e = document.activeElement;
        if (e === document.body) return null;
        const style = getComputedStyle(e.type === 'radio' ? e.nextElementSibling : e);
        return [({named})(e), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
    }}"""
    with browser.tab() as tab:
        tab.open(page)
        tab.settled()
        wanted, reached = set(tab.page.evaluate(reachable)), set[str]()
        for _ in range(len(wanted) + 20):
            tab.page.keyboard.press("Tab")
            focus = tab.page.evaluate(here)
            if focus is None or (focus[0] in reached and focus[0] == "#main" and len(reached) > 3):
                break
            assert focus[1], f"the focus on {focus[0]} is not visible"
            reached.add(focus[0])
        assert wanted - reached == set()
        assert {"radio photo", "radio class", "radio method", "radio depth", "opacity", "jump"} <= reached

        tab.page.locator("#method-grad_cam").focus()
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.is_checked("#method-competitive_cam")
        first = tab.page.locator("[data-layer='features.0'] .tile").first
        first.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowRight"):
            tab.page.keyboard.press(key)
        tab.page.keyboard.press("Enter")
        assert text(tab, "#unit-title") == "features.0 channel 1"
        inside = set()
        for _ in range(14):  # similar channels are among them
            tab.page.keyboard.press("Tab")
            inside.add(tab.page.evaluate("document.activeElement.textContent"))
        assert {"×", "← channel", "channel →", "↓ layer"} <= inside


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_bars_anybody(browser: Browser, page: Path, scheme: str, width: int) -> None:
    with browser.tab(width, 844, color_scheme=scheme, reduced_motion="reduce") as tab:
        for address in ("", "#features.5/2", "#features.7/11", "#nothing/1"):
            tab.open(page, address)
            tab.settled()
            assert violations(tab) == []
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.open(page)
        paper = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(v) for v in paper[4:-1].split(",")) < 200) == (scheme == "dark")
        assert tab.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
        nothing_wrong(tab)


def test_hostile_names_are_shown_and_do_nothing(browser: Browser, tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("<script>alert(3)<!--", nn.Conv2d(3, 4, 3))
    model.add_module("a/b c#&%", nn.ReLU())
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    net = tvc.Network(model, network(model, None).preprocess, (HOSTILE, "<b>bold</b>"), HOSTILE, HOSTILE)
    out = tvc.report(net, dict.fromkeys([HOSTILE, "<i>"], pictures(1)[0]), tmp_path, layers=["*"], budget=None)
    with browser.tab() as tab:
        tab.open(out)
        assert text(tab, "h1 .name") == HOSTILE
        assert text(tab, ".card h3") == HOSTILE
        assert "<b>bold</b>" in text(tab, ".bars")
        assert text(tab, ".layer code") == "<script>alert(3)<!--"
        tab.page.click(".tile >> nth=0")
        assert text(tab, "#unit-title").startswith("<script>alert(3)<!-- channel")
        tab.open(out, "#a/b c#&%/2")  # as one writes it by hand
        assert text(tab, "#unit-title") == "a/b c#&% channel 2"
        tab.open(out, tab.page.locator("[data-layer^='a/b'] .tile >> nth=1").get_attribute("href"))
        assert text(tab, "#unit-title") == "a/b c#&% channel 1"
        tab.settled()
        nothing_wrong(tab)
        assert tab.page.locator("b, i").count() == 0


def one_class() -> tvc.Network:
    return network(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)), ("cat",)
    )


def one_channel() -> tvc.Network:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return network(model, None, channels=1)


def one_layer() -> tvc.Network:
    return network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), None)


def broken() -> tvc.Network:
    return network(Aside(), None)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("build", [one_class, one_channel, one_layer, broken])
def test_odd_networks_make_a_page_that_works(build: Any, count: int, browser: Browser, tmp_path: Path) -> None:
    out = tvc.report(build(), pictures(count), tmp_path, budget=5)
    with browser.tab(390, 844) as tab:
        tab.open(out)
        tab.settled()
        assert tab.page.locator("#\\/evidence").is_visible() == bool(count)
        if build is not one_layer:
            tab.page.click(".tile >> nth=0")
            assert "channel 0" in text(tab, "#unit-title")
            tab.settled()
        else:
            assert "no layer that gives maps" in text(tab, "#layer-list")
        assert violations(tab) == []
        nothing_wrong(tab)


def test_it_shows_itself_inside_a_notebook(browser: Browser, page: Path, tmp_path: Path) -> None:
    frame = tvc.Report(page, 3, (), 0)._repr_html_()
    (tmp_path / "notebook.html").write_text(
        f"<!doctype html><title>notebook</title><p>cell</p>{frame}", encoding="utf-8"
    )
    with browser.tab() as tab:
        tab.page.goto((tmp_path / "notebook.html").as_uri())
        inside = tab.page.frame_locator("iframe")
        inside.locator("html[data-ready]").wait_for(state="attached")
        inside.locator("nav >> text=Layers").first.click()
        inside.locator("a.tile[href='#features.0/1']").click()
        assert inside.locator("#unit-title").inner_text() == "features.0 channel 1"
        inside.locator("#unit .close").click()
        inside.locator("#unit").wait_for(state="hidden")
        assert tab.page.title() == "notebook"
        nothing_wrong(tab)


def test_it_prints_light_and_whole(browser: Browser, page: Path, tmp_path: Path) -> None:
    with browser.tab(color_scheme="dark") as tab:
        tab.open(page)
        tab.settled()
        drawn = "[...document.querySelectorAll('.tile canvas')].every((canvas) => canvas.width > 1)"
        assert tab.page.evaluate(drawn)
        assert tab.page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth)")
        patterns = tab.page.locator(".printed img")
        assert patterns.count() == 0  # they come when it is printed
        tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        tab.page.emulate_media(media="print")
        made = sum(len(layer["patterns"]) for layer in Page(page).data["layers"])
        assert patterns.count() == made > 0
        assert all(one.is_visible() for one in patterns.all())
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not tab.page.locator(".bar").is_visible()
        assert tab.page.locator("#heatmap").is_visible()
        tab.page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
        assert (tmp_path / "page.pdf").stat().st_size > 20_000


@pytest.mark.filterwarnings("ignore::torchviz_cnn.DeadFilterWarning")  # of random weights
def test_full_size_pages_are_small_and_soon_open(browser: Browser, data: Path, tmp_path: Path) -> None:
    samples = sorted((data / "imagenet_samples").iterdir())
    shown = [data / "images" / "elephant.jpg", samples[100], samples[300]]
    net = tvc.load_model("vgg16", "random")
    layers = tvc.layer_names(net.model, types=nn.Conv2d)
    filter_atlas(net.model, tmp_path / "atlas", layers, k=32, size=32, steps=1)
    written = tvc.report(net, shown, tmp_path / "page", channels=range(32), atlas=tmp_path / "atlas")
    assert written.patterns > 12 * 32  # dead channels have none
    assert written.path.stat().st_size <= 15_000_000
    took = []
    with browser.tab() as tab:
        for _ in range(2):
            start = time.monotonic()
            tab.open(written)
            took.append(time.monotonic() - start)
        tab.page.click(".tile >> nth=40")
        tab.until("document.querySelector('#unit canvas').width === 360")
        assert tab.page.locator("#unit .pattern img").count() == 1
        nothing_wrong(tab)
    assert min(took) < 2


def test_without_scripts_it_says_so(browser: Browser, page: Path) -> None:
    with browser.tab(java_script_enabled=False) as tab:
        tab.page.goto(page.as_uri())
        assert "switched off" in text(tab, "noscript")
        assert "class a" in text(tab, "main")  # predictions, table and provenance are there all the same
        assert "Conv2d" in text(tab, "table")
        nothing_wrong(tab)
