"""Sensitivity of maps to noise: known answers, and equality with captum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.attribution.metrics.sensitivity import uniform
from torchviz_cnn.hooks.network import Model


def photo_itself(model: Model, x: Tensor, target: Any = None) -> Tensor:
    return x[:, 0]


def test_a_map_that_does_not_depend_on_the_input_does_not_change() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))  # the gradient of a linear network
    measured = tvc.metrics.sensitivity(model, torch.rand(3, 3, 16, 16), "saliency", 1)
    assert measured.values.tolist() == [0, 0, 0]
    assert measured.better == "lower"


def test_a_map_that_is_the_input_changes_by_the_norm_of_the_noise() -> None:
    model, x = networks.vgg_like(), images(3)
    measured = tvc.metrics.sensitivity(model, x, photo_itself, radius=0.1, copies=4, seed=2)
    for i, image in enumerate(x):
        noise = 0.1 * (image.max() - image.min()) * uniform(2, i, 4, image)
        shares = noise[:, 0].flatten(1).norm(dim=1) / image[0].norm()
        assert float(measured.values[i]) == pytest.approx(float(shares.max()), rel=1e-4)
        assert float(measured.details["mean"][i]) == pytest.approx(float(shares.mean()), rel=1e-4)
    double = tvc.metrics.sensitivity(model, x, photo_itself, radius=0.2, copies=4, seed=2)
    torch.testing.assert_close(double.values, 2 * measured.values, rtol=1e-4, atol=0)
    assert tvc.metrics.sensitivity(model, x, photo_itself, radius=0.0).values.tolist() == [0, 0, 0]


def test_noise_is_uniform_in_the_ball_and_depends_on_seed_and_image() -> None:
    noise = uniform(0, 0, 2, torch.zeros(3, 64, 64))
    assert noise.abs().max() <= 1
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1 / 3**0.5, abs=0.01)
    assert torch.equal(noise, uniform(0, 0, 2, torch.zeros(3, 64, 64)))
    for other in ((1, 0), (0, 1)):
        assert not torch.equal(noise, uniform(*other, 2, torch.zeros(3, 64, 64)))


def test_an_image_gets_alone_what_it_gets_in_a_batch() -> None:
    model, x = networks.residual(), images(3)
    whole = tvc.metrics.sensitivity(model, x, "saliency", copies=3)
    parts = tvc.metrics.sensitivity(model, x, "saliency", copies=3, batch_size=1)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-3, atol=0)


def test_the_class_stays_that_of_the_photo_and_several_have_a_number_each() -> None:
    model, x = networks.vgg_like(), images(2)
    top = tvc.metrics.sensitivity(model, x, "saliency", radius=2.0, copies=3)
    named = tvc.metrics.sensitivity(model, x, "saliency", model(x).argmax(1), radius=2.0, copies=3)
    torch.testing.assert_close(top.values, named.values)
    several = tvc.metrics.sensitivity(model, x, "saliency", torch.tensor([[0, 1, 2], [1, 2, 3]]), copies=3)
    assert several.values.shape == several.details["mean"].shape == (2, 3)


def test_what_cannot_be_measured_has_its_reason() -> None:
    def method(model: Model, x: Tensor, target: Any = None) -> Tensor:
        maps = x[:, 0].clone()
        maps[x[:, 0].mean((1, 2)) > 0.5] = 0
        return maps

    x = torch.rand(3, 3, 8, 8) * torch.tensor([0.1, 2.0, 0.2]).view(3, 1, 1, 1)
    measured = tvc.metrics.sensitivity(networks.functional_relu(), x, method, copies=2)
    assert measured.values.isnan().tolist() == [False, True, False]
    assert measured.reasons == {1: "the map is all zeros"}


def test_a_map_that_is_not_finite_is_never_a_number() -> None:
    model, x = networks.vgg_like(), images(2)

    def method(model: Model, x: Tensor, target: Any = None) -> Tensor:
        return x[:, 0].where((x[:, 0] - plain[: len(x), 0]).abs() < 1e-9, torch.inf) if len(x) == 2 else x[:, 0] / 0

    plain = x.clone()
    measured = tvc.metrics.sensitivity(model, x, method, copies=2)
    assert measured.count == 0
    assert set(measured.reasons.values()) == {"the map of a noisy copy is not finite"}


def test_the_model_is_what_it_was_and_wrong_options_are_refused() -> None:
    model, x = networks.residual(), images(2)
    model.train()
    with unchanged(model, x):
        tvc.metrics.sensitivity(model, x, "grad_cam", 0, copies=2)
    maps = torch.rand(2, 8, 8)
    with unchanged(model, x), pytest.raises(tvc.InputError, match="give the method that makes them, not a Tensor"):
        tvc.metrics.sensitivity(model, x, maps)  # type: ignore[arg-type]
    for options in ({"radius": -1}, {"copies": 0}, {"seed": -1}):
        with unchanged(model, x), pytest.raises(tvc.InputError, match="of at least"):
            tvc.metrics.sensitivity(model, x, "saliency", **options)  # type: ignore[arg-type]


def test_it_is_captums_sensitivity_max_with_the_same_noise() -> None:
    captum = pytest.importorskip("captum.metrics")
    model, x, copies = networks.vgg_like(), images(3), 5
    ranges = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
    noise = torch.cat([uniform(0, i, copies, x[0]) for i in range(3)])  # captum repeats each image

    def explain(inputs: Any, target: Tensor) -> tuple[Tensor]:
        inputs = inputs[0] if isinstance(inputs, tuple) else inputs
        return (tvc.saliency(model, inputs, target).values,)

    expected = captum.sensitivity_max(
        explain,
        x,
        perturb_func=lambda inputs: inputs + 0.02 * ranges.repeat_interleave(copies, 0) * noise,
        n_perturb_samples=copies,
        norm_ord=2,
        target=torch.tensor([0, 1, 2]),
    )
    measured = tvc.metrics.sensitivity(model, x, "saliency", torch.tensor([0, 1, 2]), copies=copies)
    torch.testing.assert_close(measured.values, expected, rtol=1e-4, atol=0)
    assert float(measured.values.min()) > 0
