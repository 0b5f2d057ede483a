"""Insertion, deletion and average drop on networks whose answer is known, and beside other packages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.attribution.metrics.corner import Corner, CornerOfOneOutput, inverted, perfect, random
from torchviz_cnn.attribution.metrics.perturbation import blurred, ranks
from torchviz_cnn.attribution.metrics.result import Measurement
from torchviz_cnn.core.errors import InputError

ONES = torch.ones(1, 1, 16, 16)
CURVES = [tvc.metrics.insertion, tvc.metrics.deletion]
ALL = [*CURVES, tvc.metrics.average_drop]


def test_deletion_of_a_perfect_map_is_the_area_under_the_known_curve() -> None:
    measured = tvc.metrics.deletion(Corner(), ONES, perfect(), target=0, steps=256)
    logits = torch.cat([torch.arange(16, -1, -1.0), torch.zeros(240)])
    expected = torch.trapezoid(logits.sigmoid(), dx=1 / 256)
    assert measured.values[0] == pytest.approx(float(expected), abs=1e-6)
    assert measured.curves is not None
    torch.testing.assert_close(measured.curves.y[0], logits.sigmoid())


def test_insertion_of_a_perfect_map_is_the_area_under_the_known_curve() -> None:
    measured = tvc.metrics.insertion(Corner(), ONES, perfect(), target=0, steps=256, baseline=-1.0)
    logits = torch.cat([torch.arange(-16, 17, 2.0), torch.full((240,), 16.0)])
    assert measured.curves is not None
    torch.testing.assert_close(measured.curves.y[0], logits.sigmoid())
    assert measured.values[0] == pytest.approx(float(torch.trapezoid(logits.sigmoid(), dx=1 / 256)), abs=1e-6)


def test_a_perfect_map_beats_a_random_one_and_that_an_inverted_one() -> None:
    for metric, sign in ((tvc.metrics.insertion, -1), (tvc.metrics.deletion, 1)):
        values = [
            sign * metric(Corner(), ONES, maps, target=0, baseline=0.0).mean
            for maps in (perfect(), random(), inverted())
        ]
        assert values == sorted(values)
        assert values[0] < values[1] < values[2]
    corner = (perfect() > 0).float()
    drops = [
        tvc.metrics.average_drop(Corner(0.2), ONES, maps, target=0).mean for maps in (corner, random(), 1 - corner)
    ]
    assert drops[0] == 0
    assert drops[0] < drops[1] < drops[2]


@pytest.mark.parametrize("metric", ALL)
def test_an_empty_map_is_not_measured_and_says_why(metric: Callable[..., Measurement]) -> None:
    maps = torch.cat([perfect(), torch.zeros(1, 16, 16)])
    measured = metric(Corner(), torch.ones(2, 1, 16, 16), maps)
    assert measured.values.isfinite().tolist() == [True, False]
    assert measured.reasons == {1: "the map is all zeros"}
    assert measured.count == 1


def test_average_drop_is_the_share_of_the_probability_that_is_lost() -> None:
    """A map of 1 on half of the corner and 0 elsewhere leaves 8 of 16 pixels, and the drop is known."""
    maps = torch.zeros(1, 16, 16)
    maps[0, :2, :4] = 3.0
    measured = tvc.metrics.average_drop(Corner(0.25), ONES, maps, target=torch.tensor([0]))
    whole, seen = torch.tensor(4.0).sigmoid(), torch.tensor(2.0).sigmoid()
    assert measured.values[0] == pytest.approx(float((whole - seen) / whole), abs=1e-6)
    assert measured.details["increase"].tolist() == [0.0]
    other = tvc.metrics.average_drop(Corner(0.25), ONES, maps, target=1)
    assert other.values.tolist() == [0.0]
    assert other.details["increase"].tolist() == [1.0]


def test_average_drop_measures_no_map_without_positive_values_and_none_that_is_the_same_everywhere() -> None:
    maps = torch.cat([-perfect() - 1, torch.full((1, 16, 16), 0.5), perfect()])
    measured = tvc.metrics.average_drop(Corner(), torch.ones(3, 1, 16, 16), maps, target=0)
    assert measured.values.isnan().tolist() == [True, True, False]
    assert measured.reasons == {0: "the map is nowhere above 0", 1: "the map is the same everywhere"}


def test_average_drop_is_not_measured_where_the_class_has_no_probability() -> None:
    measured = tvc.metrics.average_drop(Corner(1e4), ONES, random(), target=1)
    assert measured.reasons == {0: "the score of the whole photo is not above 0"}
    assert np.isnan(measured.mean)


@pytest.mark.parametrize("metric", ALL)
def test_huge_logits_give_finite_numbers(metric: Callable[..., Measurement]) -> None:
    assert bool(metric(Corner(1e30), ONES, perfect(), target=0).values.isfinite().all())


@pytest.mark.parametrize("metric", CURVES)
def test_a_negative_map_is_measured_by_its_order(metric: Callable[..., Measurement]) -> None:
    maps = random()
    torch.testing.assert_close(
        metric(Corner(), ONES, maps - 5, target=0).values, metric(Corner(), ONES, maps, target=0).values
    )


def test_equal_pixels_come_in_an_order_that_the_seed_decides_and_the_batch_does_not() -> None:
    maps = torch.ones(3, 1, 4, 4)
    places = ranks(maps, seed=0)
    assert (places == places[:1]).all()
    assert places[0, 0].sort().values.tolist() == list(range(16))
    assert places[0, 0].tolist() != list(range(16))
    assert (ranks(maps, seed=1) != places).any()
    strong = maps.clone()
    strong[:, :, 2, 3] = 2
    assert (ranks(strong, seed=0)[..., 11] == 0).all()


@pytest.mark.parametrize("metric", CURVES)
def test_more_steps_than_pixels_add_no_more_than_copies_of_points(
    metric: Callable[..., Measurement],
) -> None:
    x, maps = ONES[..., :4, :4], random(side=4)
    coarse, fine = (metric(Corner(0.2), x, maps, target=0, steps=steps, baseline=0.0) for steps in (16, 160))
    assert coarse.curves is not None
    assert fine.curves is not None
    torch.testing.assert_close(fine.curves.y[:, ::10], coarse.curves.y)
    assert len(set(fine.curves.y[0].tolist())) <= 17


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("metric", ALL)
def test_inputs_of_few_pixels_are_measured(metric: Callable[..., Measurement], side: int) -> None:
    x = torch.ones(2, 1, side, side + 1)
    maps = torch.arange(1.0, side * (side + 1) + 1).view(1, side, side + 1).expand(2, -1, -1)
    assert bool(metric(Corner(), x, maps, target=0).values.isfinite().all())
    assert metric(Corner(), x[..., :1, :1], maps[..., :1, :1], target=0).values.shape == (2,)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2), (40, 300)])
def test_a_blurred_image_has_the_size_and_a_constant_one_the_colour_of_the_image(size: tuple[int, int]) -> None:
    x = torch.full((2, 3, *size), 0.7)
    torch.testing.assert_close(blurred(x), x)


def test_a_blur_is_a_weighted_mean_of_51_pixels_in_both_directions_at_a_side_of_224() -> None:
    x = torch.zeros(1, 1, 224, 224)
    x[0, 0, 100, 100] = 1
    weights = torch.exp(-0.5 * (torch.arange(-25, 26) / 50) ** 2)
    weights /= weights.sum()
    expected = torch.zeros(224, 224)
    expected[75:126, 75:126] = weights[:, None] * weights
    torch.testing.assert_close(blurred(x)[0, 0], expected)


@pytest.mark.parametrize("baseline", ["median", float("nan"), torch.zeros(2), object(), {}])
def test_what_is_no_baseline_is_reported(baseline: Any) -> None:
    with pytest.raises(InputError, match="baseline"):
        tvc.metrics.deletion(Corner(), ONES, perfect(), baseline=baseline)


def test_a_colour_stands_for_each_channel() -> None:
    x = torch.ones(1, 3, 16, 16)
    measured = tvc.metrics.deletion(
        Corner(0.1, 3), x, perfect(), target=0, baseline=torch.tensor([1.0, 1.0, 0.0]), steps=256
    )
    assert measured.curves is not None
    logits = torch.cat([4.8 - 0.1 * torch.arange(17.0), torch.full((240,), 3.2)])
    torch.testing.assert_close(measured.curves.y[0], logits.sigmoid())


def test_a_binary_network_of_one_output_is_measured_as_that_of_two() -> None:
    one = tvc.metrics.deletion(CornerOfOneOutput(), ONES, random(), target=0)
    two = tvc.metrics.deletion(Corner(), ONES, random(), target=0)
    torch.testing.assert_close(one.values, two.values)


class Extractor:
    """What torchcam's metrics take for the extractor of maps: maps that are made already."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> Any:
        return nullcontext()


def scaled(maps: Tensor) -> Tensor:
    """Positive maps as 0..1, as torchcam and grad-cam give them."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def case(count: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network whose probabilities differ, inputs, maps of them and classes."""
    x = 3 * networks.images(count)
    return networks.vgg_like(), x, random(count, 32), torch.arange(count) % networks.CLASSES


def test_average_drop_and_increase_equal_torchcams() -> None:
    metrics = pytest.importorskip("torchcam.metrics")
    model, x, maps, target = case()
    theirs = metrics.ClassificationMetric(Extractor(model, scaled(maps)), partial(torch.softmax, dim=-1))
    theirs.update(x, target.tolist())
    ours = tvc.metrics.average_drop(model, x, maps, target)
    assert ours.mean == pytest.approx(theirs.summary()["avg_drop"], abs=1e-4)
    assert float(ours.details["increase"].mean()) == pytest.approx(theirs.summary()["conf_increase"], abs=1e-6)


def test_insertion_and_deletion_equal_torchcams() -> None:
    """Where its steps are ours: the pixels are a multiple of them, and no two are equally strong."""
    metrics = pytest.importorskip("torchcam.metrics")
    if not hasattr(metrics, "DeletionInsertionMetric"):
        pytest.skip("this torchcam has no insertion and deletion")
    model, x, maps, target = case()
    theirs = metrics.DeletionInsertionMetric(Extractor(model, scaled(maps)), partial(torch.softmax, dim=-1), steps=32)
    theirs.update(x, target.tolist())
    for metric, name in ((tvc.metrics.insertion, "insertion_auc"), (tvc.metrics.deletion, "deletion_auc")):
        assert metric(model, x, maps, target, baseline="mean").mean == pytest.approx(theirs.summary()[name], abs=1e-4)


def test_drop_and_increase_equal_grad_cams_but_for_the_division() -> None:
    """grad-cam gives the loss of probability itself, of which ours is the share."""
    metrics = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    model, x, maps, target = case()

    class Probability:
        def __init__(self, index: int) -> None:
            self.index = index

        def __call__(self, output: Tensor) -> Tensor:
            return output.softmax(-1)[self.index]

    # It multiplies by (h, w), which stands for all channels.
    given = (x, scaled(maps).numpy(), [Probability(int(index)) for index in target], model)
    ours = tvc.metrics.average_drop(model, x, maps, target)
    probabilities = tvc.predict(model, x).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(
        ours.values * probabilities, torch.from_numpy(metrics.DropInConfidence()(*given)), atol=1e-4, rtol=0
    )
    assert ours.details["increase"].tolist() == metrics.IncreaseInConfidence()(*given).tolist()


@pytest.mark.slow
def test_deletion_equals_the_pixel_flipping_of_quantus() -> None:
    """At the same order and baseline; it has no point for the whole image. One channel: it flips values, not pixels."""
    quantus = pytest.importorskip("quantus")
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    x, maps = networks.images(4, 16, channels=1), random(4)
    target = torch.arange(4)
    theirs = quantus.PixelFlipping(features_in_step=8, perturb_baseline=0.0, disable_warnings=True)(
        model=model, x_batch=x.numpy(), y_batch=target.numpy(), a_batch=maps[:, None].numpy(), softmax=True
    )
    ours = tvc.metrics.deletion(model, x, maps, target, baseline=0.0, steps=32)
    assert ours.curves is not None
    torch.testing.assert_close(ours.curves.y[:, 1:], torch.tensor(np.array(theirs)).float(), atol=1e-4, rtol=0)
