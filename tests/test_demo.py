"""The demo on the bundled network: a page that shows all, and finds the cat."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import torchviz_cnn as tvc
from torchviz_cnn.cli import main


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder)]) == 0
    return folder / "index.html"


def test_every_picture_of_the_page_is_there_and_described(page: Path) -> None:
    text = page.read_text()
    sources = re.findall(r'<img [^>]*src="([^"]+)" alt="([^"]+)"', text)
    assert len(sources) > 10
    for source, alt in sources:
        assert alt
        with Image.open(page.parent / source) as picture:
            picture.load()
    assert "http" not in text  # nothing from anywhere else


def test_the_cat_is_seen_as_a_cat_by_its_face(page: Path) -> None:
    from skimage import data

    net = tvc.load_model("cats_and_dogs")
    photo = Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]
    heat = tvc.grad_cam(net.model, net.preprocess(photo)[None])
    assert net.category(int(heat.target[0])) == "cat"
    x, y = heat.peak(photo)
    assert 60 < x < 360  # Chelsea's head fills that part of the 451 x 300 photo
    assert 20 < y < 280
    assert "chelsea: cat 0.9" in page.read_text() or "chelsea: cat 1.0" in page.read_text()


def test_a_photo_named_like_the_page(tmp_path: Path) -> None:
    Image.new("RGB", (40, 50), "gray").save(tmp_path / "index.html.png")
    assert main(["demo", str(tmp_path / "index.html.png"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "index.html").is_file()


def test_own_photos_with_odd_names(tmp_path: Path) -> None:
    Image.new("RGB", (40, 50), "gray").save(tmp_path / "<b>my cat.png")
    assert main(["demo", str(tmp_path / "<b>my cat.png"), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<b>my cat" not in text
    assert "&lt;b&gt;my cat" in text
