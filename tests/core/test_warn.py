"""A warning points at the line of the user's that led to it, whatever the library has in between."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from tests import networks
from tests.networks import images
from torchviz_cnn.core.warn import say_once

PHOTO = np.full((40, 80, 3), 128, np.uint8)


def negative() -> nn.Module:
    """Its score falls with everything that its layer gives."""
    model = networks.gap_linear()
    nn.init.constant_(model.fc.weight, -1.0)
    return model


def dead() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def folder_with_a_broken_photo(folder: Path) -> tvc.PhotoFolder:
    for i in range(2):
        Image.fromarray(PHOTO).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return tvc.PhotoFolder(folder)


def weights_that_are_not_finite(folder: Path) -> Path:
    state = networks.vgg_like().state_dict()
    state["features.0.bias"][:] = torch.nan
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def ten_bits(folder: Path) -> Path:
    """A photo whose range has to be guessed."""
    say_once.cache_clear()  # what is said once may have been said by another test
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(folder / "ten.png")
    return folder / "ten.png"


CALLS: dict[str, tuple[type[Warning], Callable[[Path], object]]] = {
    "grad_cam": (tvc.EmptyMapWarning, lambda folder: tvc.grad_cam(negative(), images(1), target=0)),
    "saliency": (tvc.EmptyMapWarning, lambda folder: tvc.saliency(dead(), images(1), 0)),
    "guided_grad_cam": (tvc.EmptyMapWarning, lambda folder: tvc.guided_grad_cam(negative(), images(1), target=0)),
    "smooth_grad": (tvc.EmptyMapWarning, lambda folder: tvc.smooth_grad(dead(), images(1), 0, samples=2)),
    "integrated_gradients": (
        tvc.EmptyMapWarning,
        lambda folder: tvc.integrated_gradients(dead(), images(1), 0, steps=2),
    ),
    "occlusion": (tvc.EmptyMapWarning, lambda folder: tvc.occlusion(dead(), images(1), 0, patch=16)),
    "overlay": (
        tvc.GeometryWarning,
        lambda folder: tvc.grad_cam(networks.vgg_like(), images(1), relu=False).overlay(PHOTO),
    ),
    "plot": (tvc.GeometryWarning, lambda folder: tvc.saliency(networks.vgg_like(), images(1), 0).plot(PHOTO)),
    "projections": (
        tvc.GeometryWarning,
        lambda folder: tvc.deconvnet(networks.vgg_like(), images(1), "features.5", 0).plot(PHOTO),
    ),
    "filter_patterns": (
        tvc.DeadFilterWarning,
        lambda folder: tvc.filter_patterns(dead(), "1", [0], size=24, steps=2),
    ),
    "maximize": (
        tvc.DeadFilterWarning,
        lambda folder: tvc.maximize(dead(), tvc.objectives.channel("1", 0), size=24, steps=2),
    ),
    "top_activations": (
        tvc.SkippedWarning,
        lambda folder: tvc.top_activations(
            networks.vgg_like(),
            folder_with_a_broken_photo(folder),
            ["features.5"],
            k=1,
            preprocess=tvc.Preprocess((32, 32)),
            workers=0,
        ),
    ),
    "read_image": (tvc.ImageWarning, lambda folder: tvc.read_image(ten_bits(folder))),
    "load_model": (
        tvc.CheckpointWarning,
        lambda folder: tvc.load_model(
            "tests.networks:vgg_like", weights_that_are_not_finite(folder), input_size=32, labels=list("abcde")
        ),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_at_the_users_line(name: str, tmp_path: Path) -> None:
    category, call = CALLS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tvc.TorchvizWarning)
        call(tmp_path)
    ours = [warning for warning in caught if issubclass(warning.category, tvc.TorchvizWarning)]
    assert {warning.category for warning in ours} == {category}
    for warning in ours:
        assert warning.filename == __file__
        line = Path(__file__).read_text().splitlines()[warning.lineno - 1]
        assert "tvc." in line or "overlay" in line or "tests.networks" in line


def test_every_kind_of_warning_is_tried() -> None:
    kinds = {value for name, value in vars(tvc).items() if name.endswith("Warning")} - {tvc.TorchvizWarning}
    assert {category for category, _ in CALLS.values()} == kinds


def test_a_block_of_the_users_around_it_does_not_matter(tmp_path: Path) -> None:
    """Context managers and decorators run code between the library's lines and the user's."""

    @torch.no_grad()
    def decorated() -> None:
        with tvc.untouched(nn.ReLU()):
            tvc.saliency(dead(), images(1), 0)

    with pytest.warns(tvc.EmptyMapWarning) as caught:
        decorated()
    assert {warning.filename for warning in caught} == {__file__}
