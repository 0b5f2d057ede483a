"""The networks that come with the package: sizes as published, names to hook, checkpoints that are what they
say."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from torchviz_cnn.core.errors import CheckpointError, ModelError
from torchviz_cnn.models import load_model
from torchviz_cnn.models.catalogue import BUNDLED, CATALOGUE, bundled_path
from torchviz_cnn.models.convnets import convnet_2017, convnet_2025, fashion_mnist_convnet, zfnet
from torchviz_cnn.models.efficientnet_lite import efficientnet_lite0
from torchviz_cnn.models.xception import MaxPool2dSame, mini_xception, mini_xception_fer2013, xception

DATA = Path(os.environ.get("TORCHVIZ_CNN_DATA", Path(__file__).parents[3] / "shared" / "data"))
TEST_PHOTOS = DATA / "cats_and_dogs" / "test"

FACTORIES: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    "convnet_2017": (convnet_2017, 3_453_121, 0),
    "convnet_2025": (convnet_2025, 1_569_089, 0),
    "efficientnet_lite0": (efficientnet_lite0, 4_652_008, 42_016),
    "fashion_mnist_convnet": (fashion_mnist_convnet, 98_442, 0),
    "mini_xception": (mini_xception, 718_849, 3_008),
    "mini_xception_fer2013": (mini_xception_fer2013, 56_951, 1_472),
    "xception": (xception, 22_855_952, 54_528),
    "zfnet": (zfnet, 62_357_608, 0),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    factory, parameters, statistics = FACTORIES[name]
    with torch.device("meta"):
        model = factory()
    assert sum(p.numel() for p in model.parameters()) == parameters
    floating = [b for b in model.buffers() if b.is_floating_point()]
    assert sum(b.numel() for b in floating) == statistics


@pytest.mark.parametrize("name", FACTORIES)
def test_outputs_and_channels_are_chosen(name: str) -> None:
    side = {"convnet_2017": 150, "xception": 71, "zfnet": 64, "mini_xception_fer2013": 49}.get(name, 81)
    model = FACTORIES[name][0](num_classes=5, in_channels=2).eval()
    with torch.no_grad():
        out = model(torch.rand(2, 2, side, side, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, 5)
    assert out.isfinite().all()
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("name", FACTORIES)
def test_every_rectifier_is_a_module_of_its_own(name: str) -> None:
    """Rules for ReLUs and hooks on them need one module per place, and leave inputs alone."""
    model = FACTORIES[name][0]().eval()
    relus = [m for m in model.modules() if isinstance(m, (nn.ReLU, nn.ReLU6))]
    calls: list[nn.Module] = []
    for relu in relus:
        relu.register_forward_hook(lambda module, args, out: calls.append(module))
    side = {"convnet_2017": 150, "xception": 71, "zfnet": 64, "mini_xception_fer2013": 49}.get(name, 81)
    channels = 1 if name in ("fashion_mnist_convnet", "mini_xception_fer2013") else 3
    with torch.no_grad():
        model(torch.rand(1, channels, side, side))
    assert relus
    assert not any(relu.inplace for relu in relus)
    assert len(calls) == len(set(calls)) == len(relus)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_2025_convnet_is_linear_in_its_last_map(batch_norm: bool) -> None:
    """Global average pooling and a linear layer: the class activation map's mean is the logit without its
    bias."""
    model = convnet_2025(num_classes=3, batch_norm=batch_norm).eval()
    maps: list[Tensor] = []
    model.get_submodule("relu5").register_forward_hook(lambda module, args, out: maps.append(out))
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 96, 110))
    head = model.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    cam = torch.einsum("kc,bchw->bkhw", head.weight, maps[0])
    torch.testing.assert_close(cam.mean((2, 3)) + head.bias, logits)
    assert (model.get_submodule("conv1").bias is None) == batch_norm


def test_2017_convnet_refuses_what_four_poolings_eat_up() -> None:
    with pytest.raises(ValueError, match="45"):
        convnet_2017(input_size=45)
    assert convnet_2017(input_size=46)(torch.rand(1, 3, 46, 46)).shape == (1, 1)


# --- TensorFlow's padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("height", range(1, 9))
@pytest.mark.parametrize("width", [5, 6])
def test_same_pooling_pads_as_tensorflow_says(height: int, width: int) -> None:
    """TensorFlow: ⌈n / 2⌉ windows; of the padding that this takes, the smaller half comes first."""
    x = -torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)) - 1  # zeros would win
    padding: list[int] = []
    for side in (width, height):
        total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
        padding += [total // 2, total - total // 2]
    expected = F.max_pool2d(F.pad(x, padding, value=float("-inf")), 3, 2)
    assert torch.equal(MaxPool2dSame()(x), expected)
    assert expected.shape[-2:] == (-(-height // 2), -(-width // 2))


# --- Xception -----------------------------------------------------------------------------------------------


def test_xception_has_the_published_layer_names() -> None:
    with torch.device("meta"):
        names = dict(xception().named_modules()).keys()
    published = (
        "block1_conv1 block1_conv2_act block2_sepconv1 block3_sepconv1 block3_sepconv1_act block4_pool "
        "block8_sepconv3_bn block13_sepconv2 block14_sepconv2_act avg_pool predictions"
    )
    assert set(published.split()) <= names
    assert "block2_sepconv1_act" not in names
    assert "block5_pool" not in names


def test_xception_without_its_top_gives_the_last_map() -> None:
    model = xception(include_top=False).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 3, 96, 107))
    assert out.shape == (1, 2048, 3, 4)
    assert out.min() == 0
    assert not hasattr(model, "predictions")


def test_every_separable_layer_of_xception_is_run_once() -> None:
    """Forward goes by names: a misspelt one would silently be left out."""
    model = xception(num_classes=2).eval()
    called: list[str] = []
    for name, module in model.named_children():
        module.register_forward_hook(lambda module, args, out, name=name: called.append(name))
    with torch.no_grad():
        model(torch.rand(1, 3, 71, 71))
    assert sorted(called) == sorted(name for name, _ in model.named_children())


# --- ZFNet --------------------------------------------------------------------------------------------------


def test_zfnet_has_the_maps_of_the_papers_figure() -> None:
    model = zfnet().eval()
    sides: dict[str, int] = {}
    for name, module in model.named_children():
        if name.startswith(("conv", "pool")):
            module.register_forward_hook(lambda m, args, out, name=name: sides.__setitem__(name, out.shape[-1]))
    with torch.no_grad():
        model(torch.rand(1, 3, 224, 224))
    assert sides == {
        "conv1": 110,
        "pool1": 55,
        "conv2": 26,
        "pool2": 13,
        "conv3": 13,
        "conv4": 13,
        "conv5": 13,
        "pool5": 6,
    }


def test_zfnet_with_and_without_normalisation_share_weights() -> None:
    with_lrn, without = zfnet(lrn=True).eval(), zfnet(lrn=False).eval()
    without.load_state_dict(with_lrn.state_dict())
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert not torch.allclose(with_lrn(x), without(x))
    assert any(isinstance(m, nn.LocalResponseNorm) for m in with_lrn.modules())
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in without.modules())


# --- bundled checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_checkpoint_fills_its_network(name: str) -> None:
    entry = CATALOGUE[name]
    state = load_file(bundled_path(name))
    model = entry.factory()
    model.load_state_dict(state)
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, *entry.preprocess.size)).shape == (1, len(entry.categories or ()))


def test_bundled_checkpoints_are_small() -> None:
    assert sum(bundled_path(name).stat().st_size for name in BUNDLED) <= 8 * 2**20


def test_bundled_network_knows_a_cat() -> None:
    data = pytest.importorskip("skimage.data")
    name, entry = "cats_and_dogs", CATALOGUE["cats_and_dogs"]
    assert entry.categories is not None
    photo = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None].float() / 255
    height, width = photo.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = photo[..., top : top + side, left : left + side]
    x = F.interpolate(crop, size=entry.preprocess.size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (entry.preprocess.mean, entry.preprocess.std))
    model = entry.factory()
    model.load_state_dict(load_file(bundled_path(name)))
    with torch.no_grad():
        probability = model.eval()((x - mean) / std).softmax(1)[0, entry.categories.index("cat")]
    assert probability > 0.7


@pytest.mark.slow
@pytest.mark.skipif(not TEST_PHOTOS.is_dir(), reason="needs the shared data folder")
@pytest.mark.parametrize(("name", "accuracy"), [("cats_and_dogs", 0.91), ("cats_and_dogs_mini_xception", 0.88)])
def test_bundled_networks_are_as_accurate_as_promised(
    name: str, accuracy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    evaluate = importlib.import_module("evaluate")
    assert evaluate.main([name, str(TEST_PHOTOS), "--device", "cpu"]) >= accuracy


def test_a_bundled_file_of_the_installed_package_comes_first(tmp_path: Path) -> None:
    source = bundled_path("cats_and_dogs")
    installed = tmp_path / "torchviz_cnn" / "weights" / source.name
    installed.parent.mkdir(parents=True)
    installed.write_bytes(source.read_bytes())
    assert bundled_path("cats_and_dogs", [installed.parent, source.parent]) == installed
    assert bundled_path("cats_and_dogs", [tmp_path, source.parent]) == source


@pytest.mark.parametrize("damage", ["corrupted", "swapped", "truncated", "missing"])
def test_a_damaged_bundled_checkpoint_is_noticed_and_named(damage: str, tmp_path: Path) -> None:
    path = bundled_path("cats_and_dogs")
    content = path.read_bytes()
    other = bundled_path("cats_and_dogs_mini_xception").read_bytes()
    if damage != "missing":
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        damaged = {"corrupted": flipped, "swapped": other, "truncated": content[:-1]}[damage]
        (tmp_path / path.name).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")) as caught:
        bundled_path("cats_and_dogs", [tmp_path])
    assert ("missing" in str(caught.value)) == (damage == "missing")


def test_an_unknown_bundled_name_gets_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'cats_and_dogs'"):
        load_model("cats_and_dog")
