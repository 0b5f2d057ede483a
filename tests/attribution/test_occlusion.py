"""Occlusion: equal to one picture at a time by hand, on networks of every kind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import Terminal
from tests.networks import CLASSES, images, seeded


def by_hand(model: nn.Module, x: Tensor, patch: int, stride: int, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Scores of class 3 (B, rows, columns) and the mean drop of each pixel (B, H, W), one picture at a time."""
    model.eval()
    size = x.shape[-1]
    starts = range(0, size - patch + stride, stride)
    scores = torch.zeros(len(x), len(starts), len(starts))
    drop, count = torch.zeros(len(x), size, size), torch.zeros(size, size)
    with torch.no_grad():
        clean = model(x.clone())[:, 3]
        for r, top in enumerate(starts):
            for c, left in enumerate(starts):
                hidden = x.clone()
                hidden[:, :, top : top + patch, left : left + patch] = fill
                scores[:, r, c] = model(hidden)[:, 3]
                drop[:, top : top + patch, left : left + patch] += (clean - scores[:, r, c])[:, None, None]
                count[top : top + patch, left : left + patch] += 1
    return scores, drop / count.clamp(min=1)


EVERY: list[Callable[[], nn.Module]] = [
    networks.vgg_like,
    networks.functional_relu,
    networks.reused,
    networks.residual,
    networks.dense,
    networks.grouped,
    networks.batch_norm,
    networks.overlapping_pools,
    networks.gap_linear,
    networks.squeeze_like,
    networks.checkpointed,
    networks.tuple_output,
    networks.data_parallel,
    networks.compiled,
]


@pytest.mark.parametrize("build", EVERY)
@pytest.mark.parametrize(("patch", "stride"), [(6, 4), (5, 5)])
def test_equals_one_picture_at_a_time(build: Callable[[], nn.Module], patch: int, stride: int) -> None:
    x = images(2)
    scores, drop = by_hand(build(), x, patch, stride, 3)
    result = tvc.occlusion(build(), x, 3, patch=patch, stride=stride, fill=3)
    tolerance = 1e-3 * float(drop.abs().max())
    assert result.scores.shape == scores.shape
    assert tolerance > 1e-6
    assert torch.allclose(result.scores, scores, rtol=0, atol=tolerance)
    assert torch.allclose(result.values, drop, rtol=0, atol=tolerance)


class Norm(nn.Module):
    """Every map depends on the whole picture, though no receptive field says so."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
        )
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x).square().mean((2, 3)))
        return out


@pytest.mark.parametrize(
    "build", [networks.residual, networks.dense, networks.squeeze_like, networks.reused, seeded(Norm)]
)
def test_scores_are_those_of_whole_pictures(build: Callable[[], nn.Module]) -> None:
    model, x = build(), images(1)
    scores, drop = by_hand(build(), x, 8, 4)
    result = tvc.occlusion(model, x, 3, patch=8, stride=4)
    assert torch.allclose(result.scores, scores, atol=1e-5)
    assert torch.allclose(result.values, drop, atol=1e-5)


def test_each_image_and_class_gets_what_it_would_get_alone() -> None:
    model, x = networks.residual(), images(3)
    classes = torch.tensor([[0, 4], [1, 2], [3, 3]])
    together = tvc.occlusion(model, x, classes, patch=8, score="probability")
    assert together.values.shape == (3, 2, 32, 32)
    assert together.scores.shape == (3, 2, 7, 7)
    for i in range(3):
        for k in range(2):
            alone = tvc.occlusion(model, x[i : i + 1], int(classes[i, k]), patch=8, score="probability", batch_size=3)
            assert torch.allclose(together.values[i, k], alone.values[0], atol=1e-5)
            assert torch.allclose(together.clean[i, k], alone.clean[0], atol=1e-5)
    assert tvc.occlusion(model, x, patch=16).target.tolist() == model(x).argmax(1).tolist()


class Viewing(nn.Module):
    """The network of PyTorch's MNIST lesson: grey input, flattened with `view`, which only the usual layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 5), nn.Linear(6 * 24 * 24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).relu_().view(-1, 6 * 24 * 24))
        return out


def test_a_network_that_views_its_maps() -> None:
    x = images(2, 28, channels=1)
    _, drop = by_hand(seeded(Viewing)(), x, 14, 7)
    assert torch.allclose(tvc.occlusion(seeded(Viewing)(), x, 3, patch=14).values, drop, atol=1e-5)


def test_a_detector_is_found_where_it_looks() -> None:
    """A network whose only class is the brightness of one corner."""
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 1, bias=False))
    weight = torch.zeros(8, 8)
    weight[5:, :3] = 1
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    model[2].weight.data = weight.view(1, 64)  # type: ignore[assignment]
    result = tvc.occlusion(model, torch.ones(1, 3, 8, 8), 0, patch=1, stride=1)
    assert torch.equal(result.values[0], 3 * weight)
    tall = tvc.occlusion(model, torch.ones(1, 3, 8, 8), 0, patch=(8, 1), stride=(8, 1), fill=torch.tensor([1.0, 1, 0]))
    assert tall.scores.shape == (1, 1, 8)
    assert tall.values[0].amax(0).tolist() == [3, 3, 3, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 40}, "patch of 40 x 40 does not fit an input of 32 x 32"),
        ({"patch": 8.0}, "patch is a side of at least 1 pixel"),
        ({"fill": torch.nan}, "fill is a finite number"),
        ({"fill": "grey"}, "fill is a number or one for each of 3 channels, not 'grey'"),
        ({"patch": 0}, "patch is a side of at least 1 pixel"),
        ({"stride": (1, 2, 3)}, "stride is a side of at least 1 pixel"),
        ({"fill": torch.zeros(2)}, "fill is a number or one for each of 3 channels, not 2"),
        ({"batch_size": 0}, "batch_size is a whole number of at least 1"),
        ({"score": "logits"}, "did you mean 'logit'"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tvc.InputError, match=message):
        tvc.occlusion(networks.gap_linear(), images(1), 0, **options)


def test_pictures_and_files(tmp_path: Path) -> None:
    model, x = networks.gap_linear(), images(2)
    with contextlib.redirect_stderr(Terminal()) as terminal:
        result = tvc.occlusion(model, x, torch.tensor([[0, 1], [2, 3]]), patch=8, progress=True)
    assert "patches" in terminal.getvalue()
    photo = Image.new("RGB", (64, 64))
    assert result.plot(photo, index=1, nth=1).width > 800
    assert result.overlay(photo, nth=1).size == photo.size
    assert (result._repr_png_() or b"").startswith(b"\x89PNG")
    assert "patch (8, 8), stride (4, 4)" in repr(result)
    with np.load(result.save(tmp_path / "occlusion.npz")) as saved:
        assert np.array_equal(saved["scores"], result.scores.numpy())
        assert saved["patch"].tolist() == [8, 8]


def test_a_cross_entropy_rises_where_the_class_is_hidden() -> None:
    model = networks.vgg_like()
    x = images(2)
    lost = tvc.occlusion(model, x, 1, patch=8, score="log_probability")
    loss = tvc.occlusion(model, x, 1, patch=8, score="cross_entropy")
    assert torch.equal(loss.scores, -lost.scores)
    assert torch.equal(loss.values, lost.values)


def test_patches_hide_something_and_maps_of_nothing_warn() -> None:
    result = tvc.occlusion(networks.vgg_like(), images(1), 1, patch=2, stride=15)
    assert result.scores.shape == (1, 3, 3)
    assert tvc.occlusion(networks.vgg_like(), images(1), 1, patch=2, stride=1000).scores.shape == (1, 1, 1)
    constant = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    nn.init.zeros_(constant[4].weight)  # type: ignore[arg-type]
    with pytest.warns(tvc.EmptyMapWarning, match="no patch changes the score of class 1"):
        assert not tvc.occlusion(constant, images(1), 1, patch=8).values.any()
