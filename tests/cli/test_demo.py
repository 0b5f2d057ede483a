"""The demo on the bundled network: a report that shows all, and finds the cat."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

import torchviz_cnn as tvc
from tests.page.test_report import Page
from torchviz_cnn.cli.commands import demo
from torchviz_cnn.cli.main import main


def test_the_page_is_all_there_is_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    assert main(["demo", "--budget", "0", "--out", str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out == f"open {tmp_path / 'demo' / 'index.html'}\n"
    assert [file.name for file in (tmp_path / "demo").iterdir()] == ["index.html"]
    page = Page(tmp_path / "demo" / "index.html")
    assert [photo["name"] for photo in page.data["photos"]] == ["chelsea"]
    assert "torchviz-cnn demo --budget 0 --out" in page.words
    layers = {layer["name"]: layer for layer in page.data["layers"]}
    assert {"bn1", "pool1", "bn5", "relu5"} <= set(layers)
    assert page.data["explained"] == "relu5"
    # Of a layer all 32 strongest channels; a normalisation is not above zero where the ReLU behind it gives zero.
    assert all(len(layer["channels"]) == 32 for layer in layers.values())
    assert layers["bn5"]["layerSparsity"] == pytest.approx(layers["relu5"]["layerSparsity"], abs=1e-3)


def test_the_cat_is_seen_as_a_cat_by_its_face(tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data")
    page = Page(demo.write_page(tmp_path, budget=0))
    index, chance = page.data["photos"][0]["predictions"][0]
    assert page.data["classes"][str(index)] == "cat"
    assert chance > 0.9

    net = tvc.load_model("cats_and_dogs")
    photo = Image.fromarray(data.chelsea())
    heat = tvc.grad_cam(net, photo)
    x, y = heat.peak()
    assert 60 < x < 360  # Chelsea's head fills that part of the 451 x 300 photo
    assert 20 < y < 280
    embedded = next(layer for layer in page.data["layers"] if layer["name"] == heat.layer)["heat"]["grad_cam"]
    shown = page.maps(embedded["maps"][0], embedded["size"])[0]
    assert abs(shown / 255 - heat.map()).max() < 1 / 255


def test_own_photos_with_odd_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("index.html.png", "<b>my cat.png", "b/index.html.png"):
        Image.new("RGB", (40, 50), "gray").save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("index.html.png", "<b>my cat.png")]
    assert main(["demo", *paths, "--budget", "0", "--out", str(tmp_path / "out")]) == 0
    page = Page(tmp_path / "out" / "index.html")
    assert [photo["name"] for photo in page.data["photos"]] == ["index.html.png", "<b>my cat.png"]
    assert ("b", {}) not in page.tags
    same = [tmp_path / "index.html.png", tmp_path / "b" / "index.html.png"]
    names = [photo["name"] for photo in Page(demo.write_page(tmp_path / "out", same, budget=0)).data["photos"]]
    assert names == [str(path) for path in same]  # of two alike, the whole path


@pytest.mark.slow
def test_the_whole_demo_has_filter_patterns_and_is_soon_done(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    start = time.monotonic()
    page = demo.write_page(tmp_path)
    assert time.monotonic() - start < 60
    assert page.patterns >= 10
