"""The page of a survey as text: what it says, that names are escaped, how large it is."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchviz_cnn as tvc
from tests.surveys.folders import CAUTION, HOSTILE, folder_of_photos, surveyed
from torchviz_cnn.surveys.written.content import SIDES, listed, shown_text
from torchviz_cnn.surveys.written.page import html, write_page
from torchviz_cnn.surveys.written.words import over_confidence, percent


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def survey(photos: Path) -> tvc.Survey:
    return surveyed(photos)


def data_of(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    return found


def test_the_first_screen_says_how_many_are_right_and_where_a_class_lives(survey: tvc.Survey) -> None:
    page = html(survey)
    assert survey.correct is not None
    assert f"is right on {survey.correct.sum()} of 40 photos" in page
    assert f"<strong>{percent(survey.accuracy or 0)}</strong>" in page
    first = page.partition('id="/photos"')[0]
    assert CAUTION in first
    assert "bottom right corner" in first
    assert "One class seems to rely on a corner or an edge" in first


def test_the_numbers_are_those_of_the_survey(survey: tvc.Survey) -> None:
    data = data_of(html(survey))
    columns, places = data["columns"], listed(survey)
    assert [one.index for one in survey.shown] == places[: len(survey.shown)]
    assert sorted(places) == list(range(len(survey)))
    assert columns["name"] == [shown_text(survey.names[place]) for place in places]
    assert survey.loss is not None
    assert columns["loss"] == pytest.approx(survey.loss[places].tolist(), rel=1e-3)
    border = survey.border[places]
    assert [value is None for value in columns["border"]] == np.isnan(border).tolist()
    known = [value for value in columns["border"] if value is not None]
    assert known == pytest.approx(border[~np.isnan(border)].tolist(), rel=1e-3)
    for row, (photo, shown) in enumerate(zip(data["photos"], survey.shown, strict=True)):
        wrong = columns["true"][row] != columns["predicted"][row]
        assert len(photo["high"]) == (2 if wrong else 1)
        assert photo["high"][0] == pytest.approx(float(shown.heatmap.max()), rel=1e-3)
        if wrong and shown.true_heatmap is not None:
            assert photo["high"][1] == pytest.approx(float(shown.true_heatmap.max()), rel=1e-3)
    rest = range(len(survey.shown), len(places))
    assert set(data["small"]) == {str(row) for row in rest if columns["true"][row] != columns["predicted"][row]}


def test_every_name_is_escaped_and_nothing_is_loaded(survey: tvc.Survey, tmp_path: Path) -> None:
    page = write_page(survey, tmp_path / "new").read_text(encoding="utf-8")
    assert "<b>net" not in page
    assert "<i>elk" not in page
    assert "<img" not in page
    assert page.count("</script>") == 2 + page.count('type="text/plain"')
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert f"ape/{HOSTILE}" in data_of(page)["columns"]["name"]
    assert "bee/\\udce9.png" in data_of(page)["columns"]["name"]
    assert "broken.png" in page.partition('id="/skipped"')[2]


def test_without_labels_nothing_speaks_of_them(photos: Path) -> None:
    survey = surveyed(photos, labelled=False)
    page = html(survey)
    body = page.partition("<body>")[2].partition('<script type="application/json"')[0]
    for word in ("ccuracy", "True class", "Confusions", "Calibration", "Loss", "is right on"):
        assert word not in body, word
    assert "predicts these classes for <strong>40 photos</strong>" in body
    columns = data_of(page)["columns"]
    assert columns["true"] is columns["loss"] is columns["chance"] is None


def test_a_survey_without_cautions_has_no_section_for_them(photos: Path) -> None:
    page = html(surveyed(photos, caution=False))
    assert "/cautions" not in page.partition("<script")[0]


def test_a_survey_without_its_photos_says_what_is_missing(survey: tvc.Survey, tmp_path: Path) -> None:
    with pytest.raises(tvc.InputError, match="the photos are needed"):
        write_page(dataclasses.replace(survey, source=None), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_photos_are_small(survey: tvc.Survey) -> None:
    """Seven hundred photos with heatmaps, of 640 x 480 pixels of coloured spots, take less than 12 MB."""
    from PIL import Image

    noise = np.random.default_rng(0)
    coarse = [Image.fromarray(noise.integers(0, 255, (24, 32, 3), dtype=np.uint8)) for _ in range(20)]
    several = [one.resize((640, 480), Image.Resampling.BICUBIC) for one in coarse]

    class Many(type(survey)):  # type: ignore[misc]
        def photos(self, names: Sequence[str]) -> Iterator[Image.Image]:
            return (several[int(name) % len(several)] for name in names)

    count, fields = 700, {field.name: getattr(survey, field.name) for field in dataclasses.fields(survey)}
    repeated = np.arange(count) % len(survey)
    columns = {name: value[repeated] for name, value in fields.items() if name in COLUMNS}
    shown = [dataclasses.replace(survey.shown[0], index=place, name=str(place)) for place in range(count)]
    many = Many(**fields | columns | {"names": tuple(map(str, range(count))), "shown": tuple(shown)})
    assert len(shown) > SIDES[1][0]
    assert len(html(many)) < 12e6


COLUMNS = (
    *("predicted", "confidence", "margin", "top", "top_probabilities", "true", "true_probability", "loss"),
    *("border", "corner", "regions", "predicted_border", "predicted_corner"),
)


def test_the_confidence_is_put_in_words(survey: tvc.Survey) -> None:
    accuracy = survey.accuracy or 0.0
    for confidence, words in ((accuracy, "as high as"), (accuracy + 0.3, "too sure"), (accuracy - 0.1, "not sure")):
        told = dataclasses.replace(survey, confidence=np.full(len(survey), confidence))
        assert words in over_confidence(told)
