"""Competitive CAM: equal to its formula, with all classes or the likeliest as rivals."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.networks import CLASSES, images


def by_hand(model: nn.Module, x: Tensor, layer: str, asked: int, rivals: int, temperature: float | None) -> Tensor:
    """The formula, image by image and place by place, from the Grad-CAM maps of every class."""
    everyone = torch.arange(CLASSES).expand(len(x), -1)
    maps = tvc.grad_cam(model, x, layer, everyone, relu=False).values
    logits = model.eval()(x).detach()
    values = torch.zeros(len(x), *maps.shape[2:])
    for i in range(len(x)):
        classes = sorted({asked, *logits[i].topk(rivals).indices.tolist()})
        local = torch.stack(
            [maps[i, k] * maps[i, k].numel() + logits[i, k] - maps[i, k].sum() for k in classes]
        ).double()
        scale = local.std(0, correction=0).clamp(min=1e-30) if temperature is None else temperature
        values[i] = maps[i, asked].relu() * ((local - local.mean(0)) / scale).softmax(0)[classes.index(asked)]
    return values


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("rivals", [None, 1, 3])
@pytest.mark.parametrize(
    ("build", "layer"),
    [(networks.gap_linear, "features"), (networks.squeeze_like, "classifier.2"), (networks.vgg_like, "features.8")],
)
def test_it_is_its_formula(
    build: Callable[[], nn.Module], layer: str, rivals: int | None, temperature: float | None
) -> None:
    model, x = build(), images(3)
    for asked in range(CLASSES):
        heat = tvc.competitive_cam(model, x, layer, asked, rivals=rivals, temperature=temperature)
        expected = by_hand(model, x, layer, asked, rivals or CLASSES, temperature)
        assert torch.allclose(heat.values, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_several_classes_are_explained_at_once_each_as_alone() -> None:
    model, x = networks.vgg_like(), images(2)
    classes = torch.tensor([[0, 4, 4], [2, 1, 0]])
    together = tvc.competitive_cam(model, x, "features.8", classes, rivals=2)
    for k in range(3):
        alone = tvc.competitive_cam(model, x, "features.8", classes[:, k], rivals=2)
        assert torch.allclose(together.values[:, k], alone.values, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
def test_shares_of_all_classes_add_to_what_their_maps_hold() -> None:
    """At a place where a single class has evidence, it takes no more than its map; shares are never above 1."""
    model, x = networks.gap_linear(), images(2)
    everyone = torch.arange(CLASSES).expand(2, -1)
    values = tvc.competitive_cam(model, x, target=everyone).values
    maps = tvc.grad_cam(model, x, target=everyone, relu=False).values.relu()
    assert bool((values <= maps * (1 + 1e-6)).all())
    shares = torch.where(maps > 0, values / maps.clamp(min=1e-30), 0).sum(1)
    assert float(shares.max()) <= 1 + 1e-4


def test_classes_that_are_alike_share_the_evidence() -> None:
    model, x = networks.gap_linear(), images(2)
    with torch.no_grad():
        model.fc.weight.copy_(model.fc.weight[:1].abs().expand(CLASSES, -1))
        model.fc.bias.zero_()
    heat, alone = (method(model, x, target=0).values for method in (tvc.competitive_cam, tvc.grad_cam))
    assert torch.allclose(heat, alone / CLASSES, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rivals": 0}, "rivals"),
        ({"rivals": 1.5}, "rivals"),
        ({"temperature": 0}, "temperature is above 0"),
        ({"temperature": -1}, "temperature is above 0"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with warnings.catch_warnings(), pytest.raises(tvc.InputError, match=words):
        tvc.competitive_cam(networks.gap_linear(), images(1), **options)  # type: ignore[arg-type]


def test_a_layer_without_a_gradient_and_a_class_out_of_range_are_named() -> None:
    with pytest.raises(tvc.TargetError, match="out of range"):
        tvc.competitive_cam(networks.gap_linear(), images(1), target=CLASSES)
    with pytest.raises(tvc.LayerError, match="single pixel"):
        tvc.competitive_cam(networks.gap_linear(), images(1), "gap")


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")
@pytest.mark.parametrize(
    ("build", "layer", "runs"),
    [
        (networks.vgg_like, "features.9", [1, 6, 6]),  # for the maps, and for those of the rivals
        (networks.gap_linear, "features", [1, 1, 6]),
        (networks.residual, "layer2.1.bn2", [1, 1, 6, 6]),  # a shortcut leads around it
    ],
)
def test_one_image_tells_whether_pooling_follows(build: Callable[[], nn.Module], layer: str, runs: list[int]) -> None:
    """The batch runs only as often as it must, and each image gets what it gets alone."""
    model, x, rows = build(), images(6), list[int]()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    handle = first.register_forward_hook(lambda module, given, output: rows.append(len(output)))
    together = tvc.competitive_cam(model, x, layer).values
    handle.remove()
    assert sorted(rows) == runs
    alone = torch.cat([tvc.competitive_cam(model, one[None], layer).values for one in x])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-6 * float(alone.abs().max()))
