"""Copies of networks whose weights are random: what is changed, in which order, and that the model itself is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.layers.random_weights import RandomLayers, layers_with_weights, noise, random_copy

SHAPE = (3, 32, 32)


def same(a: nn.Module, b: nn.Module) -> dict[str, bool]:
    """Which parameters and buffers of two models are equal."""
    others = b.state_dict()
    return {name: torch.equal(value, others[name]) for name, value in a.state_dict().items()}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_all_weights_of_a_copy_are_random_and_the_model_is_what_it_was(name: str) -> None:
    model, x = networks.NETWORKS[name](), images(2)
    with unchanged(model, x):
        copy = random_copy(model, 0, SHAPE)
    assert isinstance(copy, nn.Module)
    inside = tvc.HookManager(model).model
    weights = {key: equal for key, equal in same(inside, copy).items() if key.endswith("weight")}
    assert weights
    assert not any(weights.values())
    assert bool(torch.as_tensor(copy(x) if not isinstance(copy(x), tuple) else copy(x)[0]).isfinite().all())


def test_an_input_becomes_what_the_network_takes() -> None:
    """Its type and, of a network on a GPU, its device."""
    model = networks.vgg_like().double()
    assert RandomLayers(model, images(1)).names == RandomLayers(networks.vgg_like(), images(1)).names


def test_the_weights_depend_on_the_seed_alone() -> None:
    model = networks.residual()
    first = random_copy(model, 3, SHAPE)
    torch.manual_seed(99)
    again, other = random_copy(model, 3, SHAPE), random_copy(model, 4, SHAPE)
    assert isinstance(first, nn.Module)
    assert isinstance(again, nn.Module)
    assert isinstance(other, nn.Module)
    assert all(same(first, again).values())
    assert not same(first, other)["stem.weight"]
    # layers of one shape do not get the same weights
    assert not torch.equal(first.state_dict()["layer1.0.conv1.weight"], first.state_dict()["layer1.0.conv2.weight"])


def test_layers_are_drawn_alone_and_get_back_what_they_had() -> None:
    model, x = networks.residual(), images(1)
    layers = RandomLayers(model, x)
    names = layers.names
    assert names[0] == "stem"
    assert names[-1] == "fc"
    copy = layers.draw(["layer1.0.conv1"], 0)
    assert isinstance(copy, nn.Module)
    changed = {name for name, equal in same(model, copy).items() if not equal}
    assert {name.rpartition(".")[0] for name in changed} == {"layer1.0.conv1", "layer1.0.bn1"}
    alone = copy.state_dict()["layer1.0.conv1.weight"].clone()
    layers.draw(names, 0)
    assert torch.equal(copy.state_dict()["layer1.0.conv1.weight"], alone)
    layers.draw([], 0)
    assert all(same(model, copy).values())
    assert torch.equal(copy(x), model(x))


def test_layers_come_in_the_order_in_which_they_run_and_those_that_do_not_count_are_left_out() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(3, 32, 32))
            self.fc = nn.Linear(4, 5)
            self.auxiliary = nn.Linear(4, 5)
            self.used_by_hand = nn.Linear(4, 4)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x * self.scale).mean((2, 3))
            logits: Tensor = self.fc(nn.functional.linear(x, self.used_by_hand.weight))
            return logits

    names = RandomLayers(Backwards().eval(), images(1)).names
    assert [name for name in names if name != "used_by_hand"] == ["Backwards", "conv", "fc"]
    assert "used_by_hand" in names


def test_a_network_stays_a_network_and_knows_the_shape() -> None:
    network = tvc.Network(networks.residual(), tvc.Preprocess((32, 32)), tuple("abcde"))
    copy = random_copy(network)
    assert isinstance(copy, tvc.Network)
    assert copy.categories == network.categories
    assert not same(network.model, copy.model)["fc.weight"]
    with pytest.raises(tvc.InputError, match=r"running statistics: say the shape \(C, H, W\)"):
        random_copy(networks.residual())


def test_the_signal_reaches_the_end_of_a_deep_network_with_normalisations() -> None:
    """With the statistics 0 and 1, as a layer resets them, it is lost on the way."""
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(30)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    x = images(8)
    copy = random_copy(model, 0, SHAPE)
    assert isinstance(copy, nn.Module)
    assert not copy.training
    spread = float(copy(x).std(0).mean())
    for module in copy.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    assert spread > 1e4 * float(copy(x).std(0).mean())
    assert spread > 1e-3


def weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize(
    "layer",
    [
        weight_norm,
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    ],
)
def test_weights_that_are_computed_become_random_too(layer: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(layer(), nn.ReLU()).eval()
    x = images(1)
    expected = model(x).detach()
    layers = RandomLayers(model, x)
    assert layers.names == ("0",)
    copy = layers.draw(layers.names, 0)
    assert isinstance(copy, nn.Module)
    assert copy(x).std() > 0.01
    assert torch.corrcoef(torch.stack([copy(x).flatten(), expected.flatten()]))[0, 1] < 0.9
    layers.draw([], 0)
    torch.testing.assert_close(copy(x), expected)
    torch.testing.assert_close(model(x), expected)


def test_what_has_no_reset_keeps_its_mean_and_deviation() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(5 + 2 * torch.randn(3, 64, 64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.values

    model = Table()
    copy = random_copy(model)
    assert isinstance(copy, Table)
    assert copy.values.mean() == pytest.approx(5, abs=0.1)
    assert copy.values.std() == pytest.approx(2, abs=0.1)
    assert torch.corrcoef(torch.stack([copy.values.flatten(), model.values.flatten()]))[0, 1].abs() < 0.05


def test_tied_weights_stay_tied() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    layers = RandomLayers(model, torch.randn(1, 6))
    for names in (layers.names, layers.names[:1], layers.names[1:]):
        copy = layers.draw(names, 0)
        assert isinstance(copy, nn.Sequential)
        assert copy[1].weight is copy[3].weight
        assert not torch.equal(copy[1].weight, first.weight)  # type: ignore[arg-type]
    copy = layers.draw([], 0)
    assert isinstance(copy, nn.Module)
    assert all(same(model, copy).values())


def test_frozen_weights_become_random_and_stay_frozen() -> None:
    model = networks.vgg_like().requires_grad_(False)
    copy = random_copy(model)
    assert isinstance(copy, nn.Module)
    assert not same(model, copy)["features.0.weight"]
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(tvc.ModelError, match="AvgPool2d has no weights: there is nothing to make random"):
        random_copy(nn.AvgPool2d(2))
    with pytest.raises(tvc.ModelError, match="has no weights"):
        layers_with_weights(nn.Sequential(nn.BatchNorm2d(3, affine=False)))


def test_noise_has_the_mean_and_the_deviation_of_normalised_photos_and_coarse_structures() -> None:
    pictures = noise((3, 64, 96))
    assert pictures.shape == (4, 3, 64, 96)
    assert float(pictures.mean()) == pytest.approx(0, abs=1e-5)
    assert float(pictures.std()) == pytest.approx(1, abs=1e-5)
    assert float(nn.functional.avg_pool2d(pictures, 16).std()) > 0.4  # of white noise it would be 1 / 16
