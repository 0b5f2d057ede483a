"""A Measurement: its mean and interval, its files and its plot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from torchviz_cnn.attribution.metrics.result import Curves, Measurement, bootstrap_interval
from torchviz_cnn.core.errors import InputError, OutputError

NAN = float("nan")


def measurement(values: Tensor, curves: Curves | None = None) -> Measurement:
    """Of images a, b and so on; that of b could not be measured, if it is NaN."""
    reasons = {i: "the map is all zeros" for i in range(len(values)) if bool(values[i].isnan().any())}
    return Measurement(
        metric="deletion",
        better="lower",
        values=values,
        names=tuple("abcdefghij"[: len(values)]),
        reasons=reasons,
        details={"increase": (values > 0.5).float()},
        curves=curves,
    )


def test_the_interval_is_that_of_scipys_percentile_bootstrap() -> None:
    values = torch.rand(80, generator=torch.Generator().manual_seed(0)) ** 2
    theirs = stats.bootstrap(
        (values.double().numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = bootstrap_interval(values)
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.06 * width)
    assert high == pytest.approx(theirs.high, abs=0.06 * width)
    assert bootstrap_interval(values) == (low, high)


def test_values_that_are_not_measured_count_for_nothing() -> None:
    some, all_ = measurement(torch.tensor([0.2, NAN, 0.4])), measurement(torch.tensor([0.2, 0.4]))
    assert some.mean == pytest.approx(0.3)
    assert (some.count, some.interval) == (2, all_.interval)
    one = measurement(torch.tensor([0.2, NAN]))
    assert np.isnan(one.interval).all()
    assert one.mean == pytest.approx(0.2)


def test_of_k_classes_an_image_counts_once() -> None:
    measured = measurement(torch.tensor([[0.2, 0.4], [NAN, 0.9], [NAN, NAN]]))
    assert measured.count == 2
    assert measured.mean == pytest.approx((0.3 + 0.9) / 2)


def test_its_text_says_the_mean_the_interval_and_how_many_were_measured() -> None:
    assert repr(measurement(torch.tensor([0.5, NAN, 0.5]))) == (
        "Measurement(deletion: 0.500 (0.500 to 0.500), 2 of 3 images; lower is better)"
    )
    assert repr(measurement(torch.tensor([0.25]))) == "Measurement(deletion: 0.250, 1 image; lower is better)"
    nothing = measurement(torch.tensor([NAN]))
    assert repr(nothing) == "Measurement(deletion: not measured, 0 of 1 image; lower is better)"


def test_the_figure_of_one_image_is_its_curve_alone() -> None:
    curves = Curves(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0], [1.0, 0.5]]), "share", "probability")
    one = Curves(curves.x, curves.y[:1], "share", "probability")
    both = measurement(torch.tensor([0.5, 0.75]), curves).plot()
    alone = measurement(torch.tensor([0.5]), one).plot()
    assert alone.width < 0.6 * both.width
    assert measurement(torch.tensor([0.5])).plot().width == alone.width


def test_json_has_null_with_a_reason_where_nothing_was_measured(tmp_path: Path) -> None:
    curves = Curves(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0], [NAN, NAN]]), "share", "probability")
    path = measurement(torch.tensor([0.25, NAN]), curves).save(tmp_path / "m.json")
    record = json.loads(path.read_text())
    assert record["values"] == [
        {"name": "a", "value": 0.25, "reason": None, "increase": 0.0},
        {"name": "b", "value": None, "reason": "the map is all zeros", "increase": 0.0},
    ]
    assert (record["mean"], record["interval"], record["measured"], record["images"]) == (0.25, [None, None], 1, 2)
    assert record["curve"] == {"share": [0.0, 1.0], "probability": [1.0, 0.0]}


def test_csv_has_an_empty_field_with_a_reason_and_a_column_for_each_class(tmp_path: Path) -> None:
    path = measurement(torch.tensor([[0.25, 0.5], [NAN, 0.75]])).save(tmp_path / "m.csv")
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "deletion[0]", "deletion[1]", "reason"],
            ["a", "0.25", "0.5", ""],
            ["b", "", "0.75", "the map is all zeros"],
        ]


def test_another_kind_of_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.json or \.csv"):
        measurement(torch.tensor([0.5])).save(tmp_path / "m.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        measurement(torch.tensor([0.5])).save(tmp_path / "file" / "m.csv")


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("with_curve", [False, True])
def test_the_plot_is_a_picture_with_and_without_a_curve(classes: bool, with_curve: bool) -> None:
    values = torch.rand(6, generator=torch.Generator().manual_seed(0))
    values[2] = NAN
    y = values[:, None].expand(6, 5)
    if classes:
        values, y = values[:, None].expand(6, 2), y[:, None].expand(6, 2, 5)
    curves = Curves(torch.linspace(0, 1, 5), y, "share", "probability") if with_curve else None
    picture = measurement(values, curves).plot()
    assert picture.width > (800 if with_curve else 400)
    assert len(set(np.asarray(picture.convert("L")).flatten().tolist())) > 20


@pytest.mark.parametrize("with_curve", [False, True])
def test_where_nothing_was_measured_the_plot_says_why(with_curve: bool) -> None:
    curves = Curves(torch.zeros(2), torch.full((1, 2), NAN), "share", "probability") if with_curve else None
    with pytest.raises(InputError, match="deletion could be measured for no image: the map is all zeros"):
        measurement(torch.tensor([NAN]), curves).plot()
