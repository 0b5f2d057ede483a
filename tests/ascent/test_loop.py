"""The loop of gradient ascent on networks of every kind: which values it reads, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images, seeded
from torchviz_cnn import objectives
from torchviz_cnn.ascent.objectives import Evaluation, Objective
from torchviz_cnn.core.errors import InputError, LayerError, ModelError, TorchvizWarning

SMALL: dict[str, Any] = {"size": 16, "steps": 2}


class Ends(nn.Module):
    """A small network that ends as it is told."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.linear, self.end = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.linear(F.relu(self.convolution(x)).mean((2, 3))))


@seeded
def ends(end: Callable[[Tensor], Tensor]) -> Ends:
    return Ends(end)


@pytest.mark.parametrize("end", [torch.sigmoid, lambda scores: scores.softmax(1)], ids=["sigmoid", "softmax"])
def test_a_network_that_ends_in_probabilities_is_not_squashed_twice(end: Callable[[Tensor], Tensor]) -> None:
    model = ends(end)
    made = tvc.maximize(model, objectives.class_score(2, score="probability"), **SMALL)
    assert torch.allclose(made.scores[:, -1], model(made.values)[:, 2], atol=1e-6)
    made = tvc.maximize(model, objectives.class_score([2, 4], score="log_probability"), **SMALL)
    assert torch.allclose(made.scores[:, -1], model(made.values)[[0, 1], [2, 4]].log(), atol=1e-6)


def test_that_probabilities_are_raised_in_place_of_logits_is_said_once() -> None:
    with pytest.warns(TorchvizWarning, match="the model ends in a softmax or sigmoid") as record:
        tvc.maximize(ends(lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2), objectives.class_score(2), **SMALL)
    assert len(record) == 1


def test_layers_of_objectives_are_named_as_everywhere() -> None:
    model = networks.vgg_like()
    expected = tvc.maximize(model, objectives.channel("features.5", 1), **SMALL)
    for layer in ("features.5#0", model.features[5]):
        made = tvc.maximize(model, objectives.channel(layer, 1) + 0 * objectives.layer("features.2"), **SMALL)
        assert torch.equal(made.values, expected.values)
    assert "channel(Conv2d, 1)" in repr(tvc.maximize(model, objectives.channel(model.features[5], 1), **SMALL))
    with pytest.raises(LayerError, match=r"every call of 'features\.5': name one"):
        tvc.maximize(model, objectives.channel("features.5#*", 1), **SMALL)


class FirstIsDouble(nn.Module):
    """A network whose first parameter is no weight, and of another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.convolution = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.convolution(x)
        return result


def test_images_are_of_the_precision_of_the_first_weight() -> None:
    model = FirstIsDouble()
    assert next(model.parameters()).dtype == torch.float64
    assert tvc.filter_patterns(model, "convolution", 1, **SMALL).raised.all()


class ViewOfATransposed(nn.Sequential):
    """A network that runs on no image, however that lies in memory; PyTorch's reason is the same for both."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self[0](x).transpose(1, 2).view(len(x), -1)
        return result


def test_a_network_that_runs_in_no_layout_is_named() -> None:
    with pytest.raises(ModelError, match="does not run on an image of 3 x 16 x 16: view size is not compatible"):
        tvc.maximize(ViewOfATransposed(nn.Conv2d(3, 4, 3)), objectives.class_score(1), **SMALL)


class OneImage(nn.Module):
    """A network that flattens one image, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.convolution(x).reshape(1, -1))
        return result


def test_a_network_that_takes_one_image_says_how_to_give_it_one() -> None:
    model = OneImage()
    with (
        unchanged(model),
        pytest.raises(ModelError, match="runs on one image, but not on 2 at once, which batch_size=1"),
    ):
        tvc.filter_patterns(model, "linear", [0, 1], **SMALL)
    made = tvc.filter_patterns(model, "linear", [0, 1], **SMALL, batch_size=1)
    assert torch.equal(made.values[:1], tvc.filter_patterns(model, "linear", 0, **SMALL).values)


def test_images_that_depend_on_each_other_are_warned_of() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 3))
    with pytest.warns(TorchvizWarning, match="'1' normalises by the batch"):
        tvc.filter_patterns(model, "2", [0, 1], **SMALL)
    tvc.filter_patterns(model, "2", [0, 1], batch_size=1, **SMALL)


def test_an_objective_may_call_the_model() -> None:
    model = networks.vgg_like()

    def value(given: Evaluation) -> Tensor:
        tvc.grad_cam(model, images(1), "features.5", target=0)
        scores: Tensor = model(given.images)[:, 1]
        return scores + 0 * given.activations["features.2"].mean((1, 2, 3))

    with unchanged(model):
        made = tvc.maximize(model, Objective("mine", value, ("features.2",)), size=32, steps=3)
    expected = tvc.maximize(model, objectives.class_score(1), size=32, steps=3)
    assert torch.allclose(made.values, expected.values, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda given: 3.0, "float"),
        (lambda given: given.images.mean(), r"\(torch.float32,\)"),
        (lambda given: given.images.mean((2, 3)), r"\(2, 3, torch.float32\)"),
        (lambda given: given.images.mean((1, 2, 3)) * 1j, r"\(2, torch.complex64\)"),
    ],
)
def test_what_an_objective_gives_is_checked(value: Callable[[Evaluation], Tensor], kind: str) -> None:
    with pytest.raises(InputError, match=rf"mine gives {kind}, not a number for each image: \(2,\)"):
        tvc.maximize(networks.vgg_like(), Objective("mine", value), 2, **SMALL)
