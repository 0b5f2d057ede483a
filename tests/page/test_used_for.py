"""What a report says of a channel beside what excites it: what it is used for, and which channels are like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

import torchviz_cnn as tvc
from tests import browser as driver
from tests.networks import vgg_like
from tests.page.test_report import Page, network, photos
from tests.page.test_units import dataset, picture

__all__ = ["dataset"]


def mined(folder: Path, net: tvc.Network, out: Path) -> tvc.TopActivations:
    how = {"by": "relevance", "target": 1, "preprocess": net.preprocess, "workers": 0, "out": out}
    return tvc.top_activations(net.model, folder, ["features.7"], 6, **how)  # type: ignore[arg-type]


def test_what_a_channel_is_used_for_stands_beside_what_excites_it(dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())
    top = mined(dataset, net, tmp_path / "top")
    for given in (top, tmp_path / "top"):
        page = Page(tvc.report(net, photos(1), tmp_path / "page", layers=["features.7"], k=3, top=given, budget=0))
        (layer,) = (layer for layer in page.data["layers"] if layer["name"] == "features.7")
        for channel, of in layer["top"].items():
            c = int(channel)
            assert top.activation is not None
            assert of["values"] == pytest.approx(top.activation.values["features.7"][c].tolist(), rel=1e-3)
            assert of["used"]["values"] == pytest.approx(top.values["features.7"][c].tolist(), rel=1e-3)
            assert of["used"]["target"] == "class 1"
            excites, used = (picture(page, one["patches"]) for one in (of, of["used"]))
            assert used.size == excites.size == (6 * used.height, used.height)
            differ = not np.array_equal(top.images["features.7"][c], top.activation.images["features.7"][c])
            assert (np.asarray(used) != np.asarray(excites)).any() == differ


def test_by_activation_nothing_is_said_of_use(dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())
    top = tvc.top_activations(net.model, dataset, ["features.7"], 2, preprocess=net.preprocess, workers=0)
    page = Page(tvc.report(net, photos(1), tmp_path / "page", layers=["features.7"], k=3, top=top, budget=0))
    assert {of["used"] for layer in page.data["layers"] for of in layer["top"].values()} == {None}


def test_similar_channels_are_those_of_the_layer_by_their_weights(tmp_path: Path) -> None:
    net = network(vgg_like())
    page = Page(tvc.report(net, photos(1), tmp_path / "page", layers=["features.2", nn.MaxPool2d], k=3, budget=0))
    for layer in page.data["layers"]:
        if layer["name"] != "features.2":
            assert layer["similar"] == {}  # poolings and activations have no weights
            continue
        assert set(layer["similar"]) == {str(c) for c in layer["channels"]}
        for channel, similar in layer["similar"].items():
            expected = tvc.similar_channels(net, "features.2", int(channel), 5)
            assert [other for other, _ in similar] == list(expected.channels)
            assert [value for _, value in similar] == pytest.approx(expected.cosines.tolist(), abs=1e-3)


def test_channels_with_inputs_of_their_own_are_like_no_other(tmp_path: Path) -> None:
    net = network(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    page = Page(tvc.report(net, photos(1), tmp_path / "page", budget=0))
    assert all(layer["similar"] == {} for layer in page.data["layers"])


@pytest.mark.slow
def test_the_panel_of_a_channel_shows_both(dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())
    top = mined(dataset, net, tmp_path / "top")
    page = tvc.report(net, photos(1), tmp_path / "page", layers=["features.7"], k=8, top=top, budget=0)
    layer = next(one for one in Page(page).data["layers"] if one["name"] == "features.7")
    channel, (other, _) = next((c, similar[0]) for c, similar in layer["similar"].items())
    with driver.started() as browser, browser.tab() as tab:
        tab.open(page.path, f"#features.7/{channel}")
        tab.until("document.querySelectorAll('.strongest canvas[height]').length >= 12")
        said = tab.page.locator("#unit").inner_text()
        assert "Used for" in said
        assert "adds most to the score of class 1" in said
        assert "Similar channels, by the cosine of their weights" in said
        assert tab.page.locator(".strongest canvas[aria-label^='Patch 1, relevance']").count() == 1
        tab.page.click(f".similar a >> text='{other}'")
        tab.until(f"document.getElementById('unit-title').textContent.includes('channel {other}')")
        assert tab.said == []
