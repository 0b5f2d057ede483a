"""The figures under each heatmap of the report."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

import torchviz_cnn as tvc
from tests.networks import CLASSES, vgg_like
from tests.page.test_report import Page, network, photos
from torchviz_cnn.page.collect import Collected, collect
from torchviz_cnn.page.trust import CENTRE, STEPS, maps_of, measure_maps

pytestmark = pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")  # of small random networks


def collected(net: tvc.Network) -> Collected:
    return collect(net, [list(photos(2))], None, CLASSES, lambda done: None)


@pytest.mark.parametrize("method", ["grad_cam", "competitive_cam", "saliency", "guided_grad_cam"])
def test_the_figures_are_those_of_the_metrics(method: str) -> None:
    net = network(vgg_like())
    numbers = collected(net)
    measured = measure_maps(net, photos(2), numbers, until=float("inf"), done=lambda done: None)
    options = {"layer": numbers.explained} if method not in ("saliency",) else {}
    explain = getattr(tvc, method)
    heat = explain(net, photos(2), target=numbers.classes, **options)
    inserted = tvc.metrics.insertion(net, photos(2), heat, steps=STEPS)
    deleted = tvc.metrics.deletion(net, photos(2), heat, steps=STEPS)
    compared = 0
    for photo in range(2):
        for rank in range(CLASSES):
            own = measured.areas[method][photo][rank]
            if own is None:
                assert heat.values[photo, rank].any() == 0
                continue
            areas = (float(inserted.values[photo, rank]), float(deleted.values[photo, rank]))
            assert own == pytest.approx(areas, abs=1e-4)
            compared += 1
    assert compared


def test_there_is_time_for_the_first_maps_only() -> None:
    net = network(vgg_like())
    numbers, ticks = collected(net), count()
    measured = measure_maps(net, photos(2), numbers, until=5, done=lambda done: None, clock=lambda: float(next(ticks)))
    done = {(method, photo) for method, by in measured.areas.items() for photo in by}
    assert done == {(CENTRE, 0), (CENTRE, 1), ("grad_cam", 0), ("grad_cam", 1), ("competitive_cam", 0)}


def test_every_map_on_the_page_is_measured_in_time(tmp_path: Path) -> None:
    net = network(vgg_like())
    page = Page(tvc.report(net, photos(2), tmp_path, layers="features.0", budget=None, k=1, classes=2))
    methods = {method["name"] for method in page.data["methods"]}
    for photo in page.data["photos"]:
        assert set(photo["figures"]) == methods | {CENTRE}
        values = [one["insertion"] for several in photo["figures"].values() for one in several if one]
        assert len(values) >= 4
        assert all(0 <= value <= 1 for value in values)


def test_without_time_nothing_is_measured_and_without_a_layer_the_pixels_are(tmp_path: Path) -> None:
    page = Page(tvc.report(network(vgg_like()), photos(1), tmp_path, budget=0))
    assert page.data["photos"][0]["figures"] == {}


def test_a_function_is_measured_by_its_own_numbers() -> None:
    net = network(vgg_like())

    def twice(output):  # type: ignore[no-untyped-def]
        return output[:, :2] * 2

    numbers = collect(net, [list(photos(1))], None, 2, lambda done: None, targets=twice)
    measured = measure_maps(net, photos(1), numbers, targets=twice, until=float("inf"), done=lambda done: None)
    sal = tvc.saliency(net, photos(1), target=twice)
    deleted = tvc.metrics.deletion(net, photos(1), sal, target=twice, steps=STEPS)
    for rank in range(2):
        own = measured.areas["saliency"][0][rank]
        assert own is not None
        assert own[1] == pytest.approx(float(deleted.values[0, rank]), abs=1e-4)


def test_maps_that_most_look_at_stand_first() -> None:
    assert list(maps_of(collected(network(vgg_like()))))[:5] == [
        "grad_cam",
        "competitive_cam",
        "saliency",
        "guided",
        "guided_grad_cam",
    ]
