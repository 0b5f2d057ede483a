"""The comparison as text, CSV, JSON, Markdown and a page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import images, vgg_like


def nothing(model: nn.Module, x: Tensor, target: object = None) -> Tensor:
    return torch.zeros(len(x), 4, 4)


@pytest.fixture(scope="module")
def result() -> tvc.Trust:
    marked = torch.zeros(4, 32, 32, dtype=torch.bool)
    marked[:, 4:20, 8:28] = True
    methods = ["cam", "layer_cam", "saliency", "guided", "full_grad", {"<b>no|thing</b>": nothing}]
    net = tvc.Network(vgg_like(), tvc.Preprocess((32, 32), resize=36), ("a", "b", "c", "d", "</script>"), "<i>vgg</i>")
    return tvc.trust(net, images(4), methods=methods, masks=marked, steps=2)


def test_the_text_fits_its_width(result: tvc.Trust) -> None:
    for width in (100, 60):
        lines = result.table(width).splitlines()
        assert max(map(len, lines)) <= width
    text = result.table()
    for column in result.shown:
        assert column.title in text
    assert "– CAM: " in text
    assert "– <b>no|thing</b>: the map is all zeros" in text
    assert str(result).count("\n- ") == 0


def test_the_csv_has_a_row_for_each_method(result: tvc.Trust, tmp_path: Path) -> None:
    text = result.save(tmp_path / "trust.csv").read_text(encoding="utf-8")
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    assert list(rows) == [row.method for row in result.rows]
    assert float(rows["saliency"]["deletion"]) == pytest.approx(result["saliency", "deletion"].mean)
    assert rows["layer_cam"]["layer"] == "features.8"
    assert rows["cam"]["deletion"] == "" != rows["cam"]["deletion_reason"]
    assert rows["cam"]["deletion_n"] == "0"
    assert rows["centre"]["deletion_rank"] == ""


def test_the_json_has_the_values_of_each_photo(result: tvc.Trust, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = result.save(tmp_path / "trust.json").read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text, parse_constant=refuse)
    assert record["photos"] == [f"image {i}" for i in range(4)]
    (row,) = [row for row in record["rows"] if row["method"] == "saliency"]
    values = result["saliency", "road"].values.tolist()
    assert row["cells"]["road"]["values"] == pytest.approx(values)
    assert row["cells"]["insertion"]["curve"]["x"] == [0, 0.5, 1]
    assert row["sentence"] == result.sentences["saliency"]
    assert record["agreement"][0]["columns"] == ["insertion", "deletion"]
    assert record["agreement"][0]["kendall"] == pytest.approx(result.agreement["insertion", "deletion"])


def test_markdown_shows_names_as_they_are(result: tvc.Trust, tmp_path: Path) -> None:
    text = result.save(tmp_path / "trust.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + len(result.rows)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<b>" not in text.replace("\\<b>", "")


def test_the_page_is_whole_and_escapes_names(result: tvc.Trust, tmp_path: Path) -> None:
    text = result.save(tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<i>vgg" not in text
    assert "<b>no|thing" not in text
    assert text.count("</script>") == 1
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    for column in result.shown:
        assert column.title in text


def test_ranks_leave_out_references_and_dashes(result: tvc.Trust) -> None:
    ranks = result.ranks["deletion"]
    assert set(ranks) == {row.key for row in result.methods}
    assert math.isnan(ranks["cam"])
    assert sorted(rank for rank in ranks.values() if not math.isnan(rank)) == pytest.approx([1, 2, 3, 4])


def test_another_kind_of_file_is_an_error(result: tvc.Trust, tmp_path: Path) -> None:
    with pytest.raises(tvc.OutputError, match=r"a comparison is saved as \.csv, \.json, \.md, \.html"):
        result.save(tmp_path / "trust.xlsx")


def test_what_is_not_there_has_its_nearest(result: tvc.Trust) -> None:
    with pytest.raises(tvc.InputError, match="no method 'salience' here; did you mean 'saliency'"):
        result["salience", "deletion"]
    with pytest.raises(tvc.InputError, match="no column 'delition'; did you mean 'deletion'"):
        result["saliency", "delition"]
    assert "6 methods" in repr(result)
