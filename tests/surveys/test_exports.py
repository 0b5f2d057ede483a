"""What other tools read of a survey: FiftyOne's samples and COCO's boxes."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchviz_cnn as tvc
from tests.surveys.generated import CLASSES, network, photos


@pytest.fixture
def made(tmp_path: Path) -> tuple[tvc.Survey, Path]:
    """A survey, and its folder."""
    result = tvc.survey(network(), photos(tmp_path / "photos", 12), workers=0, k=2, out=tmp_path / "out")
    return result, tmp_path / "out"


def test_samples_are_those_of_fiftyone(made: tuple[tvc.Survey, Path]) -> None:
    result, out = made
    samples = json.loads((out / "samples.json").read_text())["samples"]
    shown = {one.name: one for one in result.shown}
    assert result.true is not None
    for place, sample in enumerate(samples):
        name = result.names[place]
        assert Path(sample["filepath"]).is_file()
        assert sample["filepath"].endswith(name)
        assert sample["prediction"]["_cls"] == sample["ground_truth"]["_cls"] == "Classification"
        assert sample["prediction"]["label"] == CLASSES[result.predicted[place]]
        assert sample["ground_truth"]["label"] == CLASSES[result.true[place]]
        assert ("heatmap" in sample) == (name in shown)
        if name in shown:
            assert sample["tags"] == list(shown[name].reasons)
            heat = tvc.grad_cam(network(), sample["filepath"], target=int(result.predicted[place]))
            values = np.load(
                io.BytesIO(zlib.decompress(base64.b64decode(sample["heatmap"]["map"]))), allow_pickle=False
            )
            assert values.dtype == np.uint8
            width, height = result.photo(name).size
            assert abs(values.shape[0] / values.shape[1] - height / width) < 0.05
            row, column = np.unravel_index(values.argmax(), values.shape)
            x, y = heat.peak()
            assert abs((column + 0.5) / values.shape[1] - x / width) < 0.1
            assert abs((row + 0.5) / values.shape[0] - y / height) < 0.1


def test_boxes_are_those_of_the_heatmap_in_the_format_of_coco(made: tuple[tvc.Survey, Path]) -> None:
    result, out = made
    boxes: dict[str, Any] = json.loads((out / "boxes.json").read_text())
    images = {image["id"]: image for image in boxes["images"]}
    categories = {one["id"]: one["name"] for one in boxes["categories"]}
    assert len({one["id"] for one in boxes["annotations"]}) == len(boxes["annotations"])
    assert result.true is not None
    folder = Path(str(result.settings.folder))
    for number, image in images.items():
        place = result.place(image["file_name"])
        assert (image["width"], image["height"]) == result.photo(image["file_name"]).size
        explained = {"predicted": int(result.predicted[place]), "true": int(result.true[place])}
        for what, index in explained.items():
            own = [one for one in boxes["annotations"] if one["image_id"] == number and one["explains"] == what]
            if what == "true" and index == explained["predicted"]:
                assert own == []
                continue
            heat = tvc.grad_cam(network(), str(folder / image["file_name"]), target=index)
            expected = [[b.left, b.top, b.right - b.left, b.bottom - b.top] for b in heat.box()]
            assert [one["bbox"] for one in own] == expected
            assert all(categories[one["category_id"]] == CLASSES[index] for one in own)
            assert all(one["area"] == one["bbox"][2] * one["bbox"][3] and one["iscrowd"] == 0 for one in own)


def test_photos_that_are_no_files_have_no_such_lists(tmp_path: Path) -> None:
    import torch

    tvc.survey(network(), torch.rand(6, 3, 32, 32), k=1, out=tmp_path / "out")
    assert not (tmp_path / "out" / "samples.json").exists()
    assert (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1].startswith("image 0,")
    assert len(list((tmp_path / "out" / "heatmaps").iterdir())) >= 1
