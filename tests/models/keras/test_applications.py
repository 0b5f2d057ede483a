"""Keras' own networks and a stranger's, read from their file alone: Keras' outputs, and methods on real photos."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import torchviz_cnn as tvc
from tests.models.keras.test_parity import FER2013, keras, keras_mini_xception_fer2013, keras_outputs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
__all__ = ["keras"]  # a fixture
SCRIPTS = Path(__file__).parents[3] / "scripts"
CLASSES = ["cup", "fork", "glass", "knife", "plate", "spoon"]


@pytest.fixture(scope="module")
def parity() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("keras_parity")


NAMES = (
    *("the textbook's convnet of 2017", "the textbook's convnet of 2025", "frozen MobileNetV2 under a head"),
    *("VGG16 with its preprocessing", "VGG16", "ResNet50", "ResNet50V2", "MobileNet", "MobileNetV2", "DenseNet121"),
    *("MobileNetV3Small", "InceptionV3", "InceptionResNetV2", "Xception", "EfficientNetB0", "EfficientNetV2B0"),
    "ConvNeXtTiny",
)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_keras(keras: Any, parity: Any, name: str, tmp_path: Path) -> None:
    case = parity.CASES[name]
    model = parity.scrambled(case.build(keras))
    for file in parity.FILES:
        difference, spread = parity.compared(model, tmp_path / file, case.sizes, case.scale)
        (tmp_path / file).unlink()
        assert difference < 1e-4 * spread


def test_every_network_of_the_page_is_tested(parity: Any) -> None:
    assert set(NAMES) == set(parity.CASES)
    page = (SCRIPTS.parent / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition(parity.BEGIN)[2].partition(parity.END)[0]
    assert [row.split(" | ")[0].strip("| ") for row in table.strip().splitlines()[2:]] == list(parity.CASES)


@pytest.fixture(scope="module")
def kitchenware(data: Path) -> tvc.Network:
    return tvc.load_model(data / "checkpoints" / "kitchenware_xception.keras", labels=CLASSES)


def test_the_kitchenware_file_says_of_photos_what_keras_says(
    keras: Any, kitchenware: tvc.Network, data: Path, tmp_path: Path
) -> None:
    assert kitchenware.preprocess == tvc.Preprocess((150, 150), "stretch", 150, (0.5,) * 3, (0.5,) * 3)
    assert kitchenware.guessed
    photos = sorted((data / "kitchenware").glob("*.jpg"))
    x = torch.stack([kitchenware.preprocess(tvc.read_image(photo)) for photo in photos])
    with torch.no_grad():
        given = kitchenware.model(x)
    assert [CLASSES[i] for i in given.argmax(1)] == [photo.name.partition("_")[0] for photo in photos]
    theirs = keras.saving.load_model(data / "checkpoints" / "kitchenware_xception.keras", compile=False)
    torch.testing.assert_close(given, keras_outputs(theirs, x), atol=1e-4, rtol=1e-4)


def test_methods_on_the_kitchenware_file(kitchenware: tvc.Network, data: Path) -> None:
    photo = data / "kitchenware" / "fork_0412.jpg"
    heat = tvc.grad_cam(kitchenware, photo, target="fork", layer="xception.block14_sepconv2_act")
    default = tvc.grad_cam(kitchenware, photo)
    torch.testing.assert_close(default.values, heat.values)
    x, y = heat.peak()
    width, height = tvc.read_image(photo).size
    assert 0.3 * width < x < 0.7 * width
    assert 0.15 * height < y < 0.85 * height
    patterns = tvc.filter_patterns(kitchenware, "xception.block8_sepconv1", channels=[0, 1], size=71, steps=2)
    assert patterns.values.shape == (2, 3, 71, 71)
    assert tvc.saliency(kitchenware, photo, relu="guided").values.shape == (1, 150, 150)


def test_a_third_partys_keras_2_file(keras: Any, data: Path) -> None:
    net = tvc.load_model(FER2013, labels=list("abcdefg"))
    theirs = keras_mini_xception_fer2013(keras)
    theirs.load_weights(FER2013)
    x = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(net.model(x).softmax(1), keras_outputs(theirs, x), atol=1e-5, rtol=1e-4)
    assert [name for name, _ in net.model.named_children()][-1] == "global_average_pooling2d_1"


def test_a_name_in_the_file_is_never_run(data: Path, tmp_path: Path) -> None:
    """The file asks for a module that exists and has an effect when it is imported."""
    source = data / "checkpoints" / "kitchenware_xception.keras"
    with zipfile.ZipFile(source) as archive:
        description = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    description["config"]["layers"][2].update(module="antigravity", class_name="fly")
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(description))
        archive.writestr("model.weights.h5", weights)
    with pytest.raises(tvc.ModelError, match="'global_average_pooling2d' \\(fly\\)"):
        tvc.load_model(tmp_path / "bad.keras")
