"""docs/from_the_textbook.md: its blocks run one after the other, and what Keras gives is what we give."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

import torchviz_cnn as tvc
from tests.models.keras.test_parity import keras_convnet_2017, keras_vgg16

PAGE = Path(__file__).parents[1] / "docs" / "from_the_textbook.md"
Names = dict[str, Any]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning"),
    pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.DeadFilterWarning"),
]


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Names]]:
    """The names that there are after each block of the page, run on networks with random weights.

    Where the page draws 64 filters, 3 are drawn, and Keras takes 2 steps for each: time is short.
    """
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend")
    folder, before, names = tmp_path_factory.mktemp("textbook"), Path.cwd(), Names()
    write_files(keras, folder)
    os.chdir(folder)
    snapshots = []
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
            short = re.sub(r"range\((30|40)\)", "range(2)", block.replace("range(64)", "range(3)"))
            exec(compile(short, str(PAGE), "exec"), names)
            snapshots.append(dict(names))
        yield snapshots
    finally:
        os.chdir(before)


def write_files(keras: Any, folder: Path) -> None:
    keras.utils.clear_session()  # layers are numbered anew
    keras.utils.set_random_seed(0)
    layers = keras.layers
    keras_convnet_2017(keras).save(folder / "convnet.keras")
    keras_vgg16(keras, include_top=False).save(folder / "vgg16_convolutions.keras")
    vgg16 = keras_vgg16(keras)
    vgg16.layers[-1].set_weights([array / 100 for array in vgg16.layers[-1].get_weights()])
    vgg16.add(layers.Activation("softmax"))
    vgg16.save(folder / "vgg16.keras")
    xception = keras.applications.Xception(weights=None, classes=10)
    settle(xception)
    xception.save(folder / "xception.keras")
    convolutions = keras.applications.Xception(weights=None, include_top=False)
    settle(convolutions)
    convolutions.save(folder / "xception_convolutions.keras")
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(150, 150, 3))
    inputs = keras.Input((150, 150, 3))
    outputs = layers.Dense(6)(layers.GlobalAveragePooling2D()(base(inputs)))
    keras.Model(inputs, outputs).save(folder / "transfer.keras")
    for name, picture in (("cat.jpg", "chelsea"), ("elephant.jpg", "coffee")):
        Image.fromarray(getattr(photos, picture)()).save(folder / name, quality=95)


def settle(model: Any) -> None:
    """Statistics of batch normalisation as after training, without which the signal vanishes on its way."""
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.0
    model(
        np.random.default_rng(0).uniform(-1, 1, (2, 128, 128, 3) if model.input_shape[1] is None else (2, 299, 299, 3)),
        training=True,
    )


def test_activations(after: list[Names]) -> None:
    theirs, ours, shown = after[1]["activations"], after[2]["acts"], after[1]["shown"]
    assert len(ours) == len(shown) == 8
    for name, layer, expected in zip(ours, shown, theirs, strict=True):
        assert name.removesuffix("_act") == layer.name
        given = ours[name].permute(0, 2, 3, 1).numpy()
        assert np.abs(given - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("place", "ascend"), [(4, "generate_pattern"), (6, "gradient_ascent")])
def test_filter_patterns(place: int, ascend: str, after: list[Names]) -> None:
    """After 2 steps, of nearly all values; later, with random weights, last digits decide where a filter goes."""
    names = after[place]
    shown, net = names["patterns"], names["net"]
    assert bool(shown.raised.any())
    start, ours = (
        tvc.filter_patterns(net, shown.layer, range(3), preset=shown.recipe, steps=steps).values for steps in (0, 2)
    )
    for i in range(3):
        theirs = names[ascend](start[i : i + 1].permute(0, 2, 3, 1), i).detach().permute(0, 3, 1, 2)[0]
        moved = (theirs - start[i]).abs().mean()
        assert float(moved) > 0
        assert float(((ours[i] - theirs).abs() < 1e-3 * moved).float().mean()) > 0.95


@pytest.mark.parametrize(("place", "heat", "listing"), [(8, "heat", "heatmap_2017"), (10, "heat_2025", "heatmap_2025")])
def test_grad_cam(place: int, heat: str, listing: str, after: list[Names]) -> None:
    names = after[place]
    assert int(names[heat].target[0]) == names["best"]
    assert float(names[listing].max()) == 1
    assert np.abs(names[heat].map() - names[listing].numpy()).max() < 1e-3
    assert Path("elephant_cam.jpg").stat().st_size > 0


def test_transfer(after: list[Names]) -> None:
    assert after[-1]["heat_of_cup"].values.shape == (1, 5, 5)
    assert after[-1]["inner"].values.shape == (8, 3, 128, 128)
