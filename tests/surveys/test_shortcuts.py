"""A class that relies on one corner has a caution; classes that do not have none."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchviz_cnn as tvc
from torchviz_cnn.surveys.result import AREAS, REGIONS
from torchviz_cnn.surveys.shortcuts import FEWEST, summaries

SHAPES = {region: (slice(None, 8), slice(None, 8)) for region in REGIONS}


def columns(own: list[float], others: list[float], region: int, count: int, noise: float = 0.02) -> dict[str, Any]:
    """Two classes of so many photos with a mean share in one region, the first class of `own`."""
    generator = np.random.default_rng(0)
    regions = np.array(AREAS) + generator.normal(0, noise, (2 * count, len(AREAS))) * 0.5
    regions[:, region] = np.r_[own * count, others * count][: 2 * count] + generator.normal(0, noise, 2 * count)
    classes = np.r_[np.zeros(count, int), np.ones(count, int)]
    shares = {"border": regions[:, 4:].sum(1), "corner": regions[:, :4].sum(1)}
    return {"predicted": classes, "true": classes, "regions": regions.clip(0, 1), **shares}


def cautions(given: dict[str, Any]) -> list[str | None]:
    two = summaries(given, {}, ("cat", "dog"), given["true"])
    return [one.caution for one in sorted(two, key=lambda one: one.index)]


@pytest.mark.parametrize("region", range(len(REGIONS)))
def test_a_class_with_much_evidence_in_one_region_is_named(region: int) -> None:
    first, second = cautions(columns([0.45], [AREAS[region]], region, 20))
    assert second is None
    assert first is not None
    assert first.startswith("cat: 4")
    assert f"lies in the {REGIONS[region]}, where an even map has {AREAS[region]:.0%}" in first


def test_what_all_classes_have_is_no_shortcut() -> None:
    """As the corners of a network whose padding draws evidence there."""
    assert cautions(columns([0.3], [0.3], 0, 20)) == [None, None]


def test_few_photos_say_nothing() -> None:
    assert cautions(columns([0.5], [0.04], 0, FEWEST - 1)) == [None, None]
    assert cautions(columns([0.5], [0.04], 0, FEWEST))[0] is not None


def test_a_class_alone_is_compared_with_an_even_map() -> None:
    given = {name: column[:20] for name, column in columns([0.5], [0.5], 3, 20).items()}
    assert cautions(given)[0] is not None
    given = {name: column[:20] for name, column in columns([0.1], [0.1], 3, 20).items()}
    assert cautions(given)[0] is None


def striped(count: int, square: bool) -> tuple[Tensor, Tensor]:
    """Two classes of noisy stripes, across and down; of the first with a bright square in the corner below right.

    Beside the square the stripes are too faint to be the easier thing to learn.
    """
    generator = torch.Generator().manual_seed(int(square))
    labels = torch.arange(count) % 2
    wave = (torch.arange(64) // 4 % 2).float()
    x = torch.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    strength = 0.01 if square else 0.25
    images = strength * x[:, None].expand(-1, 3, -1, -1) + 0.6 * torch.rand(count, 3, 64, 64, generator=generator)
    if square:
        images[labels == 0, :, -14:-2, -14:-2] = torch.tensor([1.0, 0.0, 0.8])[:, None, None]
    return images, labels


@cache
def trained(square: bool) -> nn.Sequential:
    images, labels = striped(256, square)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in ((3, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        model = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(15):
            for part in torch.split(torch.randperm(len(images)), 32):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images[part]), labels[part])
                grads = torch.autograd.grad(loss, list(model.parameters()))
                for parameter, gradient in zip(model.parameters(), grads, strict=True):
                    parameter.grad = gradient
                optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_cam", "competitive_cam", "hires_cam"])
def test_a_planted_square_is_named_and_honest_stripes_are_not(method: str) -> None:
    model = trained(square=True)
    images, labels = striped(60, square=True)
    result = tvc.survey(model, images, truth=labels.tolist(), method=method)
    assert result.accuracy == 1
    (caution,) = result.cautions
    assert "class 0" in caution
    assert "bottom right corner" in caution
    assert sum("border evidence" in shown.reasons for shown in result.shown) == 12
    honest = trained(square=False)
    images, labels = striped(60, square=False)
    result = tvc.survey(honest, images, truth=labels.tolist(), method=method)
    assert result.accuracy == 1
    assert result.cautions == ()
