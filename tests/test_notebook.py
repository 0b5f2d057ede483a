"""Results in notebooks: each shows itself, in a limited size, and nothing of matplotlib's state is touched."""

from __future__ import annotations

import io
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import _pylab_helpers
from PIL import Image

import torchviz_cnn as tvc
from tests import networks
from tests.test_results import results
from torchviz_cnn.media.notebook import pictures

WITHOUT = {
    "Box": "four numbers, which text shows",
    "Network": "not a result; its text says what it is",
    "PhotoFolder": "not a result but an input",
    "TarShards": "not a result but an input",
    "Preprocess": "settings, which text shows",
    "Recipe": "settings, which text shows",
}
"""Public values that have no picture or table, and why."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = results(tmp_path_factory.mktemp("results"))
    assert every["Measurement"]._repr_png_() is None  # nothing could be measured: text says so
    values = torch.tensor([0.1, 0.4])
    return {**every, "Measurement": tvc.Measurement(metric="m", better="higher", values=values, names=("a", "b"))}


def test_every_result_shows_itself_in_one_way_and_leaves_matplotlib_alone(made: dict[str, Any]) -> None:
    backend, settings = matplotlib.rcParams["backend"], dict(matplotlib.rcParams)
    without = set()
    for name, result in made.items():
        begun = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shown = {kind: getattr(result, kind)() for kind in ("_repr_png_", "_repr_html_") if hasattr(result, kind)}
        if not shown:
            without.add(name)
            continue
        (kind, content), *more = shown.items()
        assert not more, name
        if kind == "_repr_png_":
            width, height = Image.open(io.BytesIO(content)).size
            assert (width <= pictures.WIDTH, height <= pictures.HEIGHT, width > 100) == (True, True, True), name
        else:
            assert "<table" in content, name
        assert time.process_time() - begun < 5, name
    assert without == set(WITHOUT)
    assert _pylab_helpers.Gcf.figs == {}
    assert dict(matplotlib.rcParams) == settings
    assert matplotlib.rcParams["backend"] == backend


def test_the_display_of_a_notebook_takes_each_of_them(made: dict[str, Any]) -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    formatter = formatters.DisplayFormatter()
    for name in set(made) - set(WITHOUT):
        shown, _ = formatter.format(made[name])
        assert ("image/png" in shown) != ("text/html" in shown), name
        assert shown.get("image/png", b"\x89PNG")[:4] == b"\x89PNG"


def test_a_large_picture_is_made_smaller_and_an_error_leaves_the_text() -> None:
    wide = pictures.png(lambda: Image.new("RGB", (5000, 300)))
    assert Image.open(io.BytesIO(wide or b"")).size == (1600, 96)

    def fail() -> Image.Image:
        raise tvc.ImageError("the photo is gone")

    assert pictures.png(fail) is None


def test_many_maps_are_limited_in_number() -> None:
    heat = tvc.grad_cam(networks.vgg_like(), torch.rand(30, 3, 32, 32), target=1, relu=False)
    few = tvc.grad_cam(networks.vgg_like(), torch.rand(12, 3, 32, 32), target=1, relu=False)
    sizes = [Image.open(io.BytesIO(maps._repr_png_() or b"")).size for maps in (heat, few)]
    assert sizes[0] == sizes[1]


def test_top_activations_without_their_photos_show_their_figures(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (40, 40), (90 * number, 0, 99)).save(tmp_path / f"{number}.png")
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32), "stretch"))
    top = tvc.top_activations(net, tmp_path, ["features.0"], k=1)
    before = top._repr_png_()
    for photo in tmp_path.glob("*.png"):
        photo.unlink()
    after = top._repr_png_()
    assert before is not None
    assert after is not None
    assert after != before


def test_predictions_are_a_tensor_that_is_shown_as_a_table() -> None:
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32)), ("ant", "bee", "cat", "dog", "eel"))
    x = torch.rand(20, 3, 32, 32)
    predictions = net.predict(x)
    assert torch.equal(predictions, net.model(x).softmax(1))
    assert type(predictions[0]) is torch.Tensor
    assert type(predictions.argmax(1)) is torch.Tensor
    names, indices, shares = zip(*predictions.table(), strict=True)
    assert shares == tuple(sorted(predictions[0].tolist(), reverse=True))
    assert [net.category(index) for index in indices] == list(names)
    text = str(predictions)
    assert text.splitlines()[0] == "image 0"
    assert f"{shares[0]:.3f}  {names[0]} ({indices[0]})" in text
    assert text.endswith("16 of 20 images")
    assert predictions._repr_html_().count("<table") == 16
