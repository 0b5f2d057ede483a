"""The figures under each heatmap of the report."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import torchviz_cnn as tvc
from tests.networks import CLASSES, vgg_like
from tests.page.test_report import Page, network, photos
from torchviz_cnn.evaluation.rows import CENTRE
from torchviz_cnn.layers.random_weights import random_copy
from torchviz_cnn.page.collect import Collected, collect
from torchviz_cnn.page.trust import STEPS, Figures, Measured, maps_of, measure_maps, measure_weights


def all_figures(net: tvc.Network, numbers: Collected, photo_count: int, **options: Any) -> dict[Any, Figures | None]:
    measured = Measured()
    options = {"until": float("inf"), "done": lambda done: None, **options}
    measure_maps(net, photos(photo_count), numbers, measured, **options)
    return measured.figures


pytestmark = pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")  # of small random networks


def collected(net: tvc.Network) -> Collected:
    return collect(net, [list(photos(2))], None, CLASSES, lambda done: None)


@pytest.mark.parametrize("method", ["grad_cam", "competitive_cam", "saliency", "guided_grad_cam"])
def test_the_figures_are_those_of_the_metrics(method: str) -> None:
    net = network(vgg_like())
    numbers = collected(net)
    figures = all_figures(net, numbers, 2)
    options = {"layer": numbers.explained} if method not in ("saliency",) else {}
    explain = getattr(tvc, method)
    heat = explain(net, photos(2), target=numbers.classes, **options)
    inserted = tvc.metrics.insertion(net, photos(2), heat, steps=STEPS)
    deleted = tvc.metrics.deletion(net, photos(2), heat, steps=STEPS)
    compared = 0
    for photo in range(2):
        for rank in range(CLASSES):
            own = figures[method, photo, rank]
            if own is None:
                assert heat.values[photo, rank].any() == 0
                continue
            areas = (float(inserted.values[photo, rank]), float(deleted.values[photo, rank]))
            assert (own["insertion"], own["deletion"]) == pytest.approx(areas, abs=1e-4)
            compared += 1
    assert compared


def test_there_is_time_for_the_first_maps_only() -> None:
    net = network(vgg_like())
    numbers, ticks = collected(net), count()
    figures = all_figures(net, numbers, 2, until=5, clock=lambda: float(next(ticks)))
    done = {(method, photo) for method, photo, _ in figures}
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
    figures = all_figures(net, numbers, 1, targets=twice)
    sal = tvc.saliency(net, photos(1), target=twice)
    deleted = tvc.metrics.deletion(net, photos(1), sal, target=twice, steps=STEPS)
    for rank in range(2):
        own = figures["saliency", 0, rank]
        assert own is not None
        assert own["deletion"] == pytest.approx(float(deleted.values[0, rank]), abs=1e-4)


def test_the_structure_that_is_kept_is_that_of_the_cascade() -> None:
    net = network(vgg_like())
    numbers, measured = collected(net), Measured()
    measure_weights(net, photos(1)[0], numbers, measured, until=float("inf"))
    cascade = tvc.metrics.randomization(net, photos(1), "saliency", target=numbers.classes[:1, 0])
    steps = cascade.details["structure"][0]
    assert measured.kept["saliency"] == pytest.approx(float(steps.nanmean()), abs=1e-4)
    assert all(-1 <= share <= 1 for share in measured.kept.values())


def test_guided_maps_of_a_network_with_other_activations_are_judged_as_they_are_drawn() -> None:
    model, measured = vgg_like(), Measured()
    model.features[1] = nn.Hardswish()
    net = network(model)
    measure_weights(net, photos(1)[0], collected(net), measured, until=float("inf"))
    assert "guided" in measured.kept


def test_without_time_no_map_is_made_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    net, measured = network(vgg_like()), Measured()
    numbers = collected(net)
    monkeypatch.setattr("torchviz_cnn.page.trust.RandomLayers", lambda *_: pytest.fail("there is no time"))
    measure_weights(net, photos(1)[0], numbers, measured, until=0.0)
    assert measured.kept == {}


def test_without_time_for_all_steps_nothing_is_said_of_the_weights() -> None:
    ticks, measured, net = count(), Measured(), network(vgg_like())
    measure_weights(net, photos(1)[0], collected(net), measured, until=9, clock=lambda: float(next(ticks)))
    assert measured.kept == {}


def test_a_comparison_that_was_made_gives_the_figures(tmp_path: Path) -> None:
    net, names = network(vgg_like()), [str(tmp_path / f"{i}.png") for i in range(2)]
    for name, photo in zip(names, photos(2), strict=True):
        photo.save(name)
    judged = tvc.trust(net, names, methods=["saliency"], mosaics=0, perturbed=2, steps=4, out=tmp_path / "trust")
    page = Page(tvc.report(net, names, tmp_path, budget=0, trust=tmp_path / "trust", classes=1))
    assert page.data["kept"]["saliency"] == pytest.approx(judged["saliency", "structure"].mean, rel=1e-3)
    for number, shown in enumerate(page.data["photos"]):
        (figures,) = shown["figures"]["saliency"]
        assert figures["insertion"] == pytest.approx(float(judged["saliency", "insertion"].values[number]), rel=1e-3)
        assert set(shown["figures"]) == {"saliency", "centre"}
    other = random_copy(net)
    assert isinstance(other, tvc.Network)
    with pytest.raises(tvc.InputError, match="other weights"):
        tvc.report(other, names, tmp_path, budget=0, trust=tmp_path / "trust")


def test_figures_of_another_layer_or_photo_are_not_taken(tmp_path: Path) -> None:
    net, name = network(vgg_like()), str(tmp_path / "one.png")
    photos(2)[0].save(name)
    options: dict[str, Any] = {"methods": ["grad_cam"], "mosaics": 0, "steps": 2, "layers": "features.2"}
    judged = tvc.trust(net, [name], out=tmp_path / "other", **options)
    assert judged["grad_cam", "insertion"].count
    page = Page(tvc.report(net, name, tmp_path, budget=0, trust=judged, classes=1))
    assert set(page.data["photos"][0]["figures"]) == {"centre"}  # which is of no layer
    photos(2)[1].resize((20, 20)).save(name)
    page = Page(tvc.report(net, name, tmp_path, budget=0, trust=judged, classes=1))
    assert page.data["photos"][0]["figures"] == {}
    with pytest.raises(tvc.InputError, match="trust is a Trust or its folder, not an int"):
        tvc.report(net, name, tmp_path, budget=0, trust=5)  # type: ignore[arg-type]
    other = random_copy(net)
    assert isinstance(other, tvc.Network)
    with pytest.raises(tvc.InputError, match="the comparison is of a network with other weights"):
        tvc.report(other, name, tmp_path, budget=0, trust=judged)


def test_maps_that_most_look_at_stand_first() -> None:
    assert list(maps_of(collected(network(vgg_like()))))[:5] == [
        "grad_cam",
        "competitive_cam",
        "saliency",
        "guided",
        "guided_grad_cam",
    ]
