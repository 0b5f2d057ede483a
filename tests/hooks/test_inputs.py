"""The way in of every method: a frozen model, a copy of the batch, and photos made a batch by the Network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.core.errors import ImageError, InputError, ModelError
from torchviz_cnn.hooks.inputs import input_for, prepared
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media.images import Preprocess


@pytest.fixture
def net() -> Network:
    return Network(networks.vgg_like(), Preprocess((32, 32)), tuple("abcde"))


def pixels(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["path", "str", "PIL", "array", "list", "tuple of kinds"])
def test_photos_are_prepared_by_the_network(net: Network, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.png"
    photo = Image.fromarray(pixels())
    photo.save(path)
    given: Any = {
        "path": path,
        "str": str(path),
        "PIL": photo,
        "array": pixels(),
        "list": [path, pixels(1)],
        "tuple of kinds": (photo, Image.fromarray(pixels(1)).convert("L")),
    }[kind]
    with unchanged(net.model), prepared(net, given) as ready:
        assert torch.equal(ready.x[0], net.preprocess(photo))
        assert len(ready.x) == (2 if kind in ("list", "tuple of kinds") else 1)
        assert ready.input_size == (32, 32)
        assert ready.origin.photos is not None
        assert ready.origin.photo(0).tobytes() == photo.tobytes()
        assert len(ready.origin.photos) == len(ready.x)
        assert ready.origin.preprocess is net.preprocess
        assert ready.origin.categories == net.categories


def test_a_tensor_is_copied_and_its_photos_are_not_known(net: Network) -> None:
    x = images().requires_grad_()
    with unchanged(net.model, x), prepared(net, x) as ready:
        assert torch.equal(ready.x, x)
        assert not ready.x.requires_grad
        assert ready.origin.photos is None
        assert ready.origin.preprocess is net.preprocess
        assert not any(parameter.requires_grad for parameter in ready.model.parameters())
        ready.x.zero_()
    with prepared(net.model, x) as ready:
        assert ready.origin.preprocess is None
        assert ready.origin.categories is None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 8, 8), r"a batch \(B, C, H, W\), not \(3, 8, 8\); x\[None\] makes one image a batch"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "the input is int64; networks take floating point"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "the input is uint8"),
        (torch.zeros(0, 3, 8, 8), "has nothing in it"),
        (torch.full((2, 3, 8, 8), torch.nan), "image 0 of the input has 192 values that are NaN or infinite"),
        (3, "or photos .with a Network., not an int"),
        ([], "not an empty list"),
        ([torch.zeros(3, 8, 8)], "not a list of Tensor"),
        ({"photo": 1}, "not a dict"),
    ],
)
def test_what_is_no_batch(net: Network, x: Any, message: str) -> None:
    for model in (net, net.model):
        with unchanged(net.model), pytest.raises(InputError, match=message), prepared(model, x):
            pass


def test_huge_finite_numbers_are_numbers(net: Network) -> None:
    x = torch.full((1, 3, 32, 32), torch.finfo(torch.float32).max)  # whose sum is not finite
    with prepared(net, x) as ready:
        assert torch.equal(ready.x, x)


def test_photos_need_a_network(net: Network) -> None:
    with pytest.raises(InputError, match=r"how photos are prepared for a plain module is not known"):
        prepared(net.model, pixels()).__enter__()


def test_a_photo_that_cannot_be_read(net: Network, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for wrong in (tmp_path / "none.png", tmp_path / "broken.png", [tmp_path / "broken.png"], np.zeros((2, 2, 2, 2))):
        with unchanged(net.model), pytest.raises(ImageError), prepared(net, wrong):
            pass


def test_what_is_no_model() -> None:
    with pytest.raises(ModelError), prepared("vgg16", images()):  # type: ignore[arg-type]
        pass


def test_the_input_is_a_copy_in_the_models_dtype() -> None:
    model, x = networks.vgg_like().to(torch.float64), images()
    copy = input_for(model, x)
    assert copy.dtype == torch.float64
    assert input_for(networks.vgg_like(), x).data_ptr() != x.data_ptr()
    assert input_for(nn.ReLU(), x).data_ptr() != x.data_ptr()
    assert not input_for(model, x.requires_grad_()).requires_grad
    for wrong, message in (
        (np.zeros(3), "ndarray"),
        (torch.zeros(0, 3, 8, 8), "nothing"),
        (torch.tensor(1.0), "nothing"),
    ):
        with pytest.raises(InputError, match=message):
            input_for(model, wrong)  # type: ignore[arg-type]


class Mixed(nn.Module):
    """A scale in float32, a convolution in bfloat16, and a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.conv, self.fc = nn.Conv2d(3, 4, 3).bfloat16(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * self.fc(self.conv(x).mean((2, 3)).float())
        return out


def test_a_network_of_several_precisions_gets_its_input_as_it_was_given() -> None:
    model, x = Mixed(), torch.rand(2, 3, 6, 6)
    assert input_for(model, x.bfloat16()).dtype == torch.bfloat16
    assert input_for(model, x).dtype == torch.float32
    assert input_for(model, x.double()).dtype == torch.bfloat16
    assert input_for(Mixed().double(), x).dtype == torch.float64
    assert torch.equal(tvc.predict(model, x.bfloat16()), model(x.bfloat16()).softmax(1))
    assert [layer.name for layer in tvc.describe(model, (6, 6)).layers] == ["conv", "fc"]


def test_a_normalisation_by_the_batch_is_said_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    with pytest.warns(tvc.TorchvizWarning, match="'1' normalises by the batch") as told:
        tvc.capture(model, torch.rand(2, 3, 4, 4), "2")
    assert len(told) == 1
    tvc.capture(model, torch.rand(1, 3, 4, 4), "2")  # one image alone: nothing to say


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    for call in (tvc.grad_cam, tvc.saliency, tvc.predict, tvc.capture, tvc.describe):
        with pytest.raises(ModelError, match="Sequential is on the meta device"):
            call(model, images())
