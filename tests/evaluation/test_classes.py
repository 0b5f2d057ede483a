"""Which class is explained of each photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchviz_cnn import Network, Preprocess
from torchviz_cnn.core.errors import InputError, TargetError
from torchviz_cnn.evaluation.classes import classes_of

NAMES = ("cat/1.jpg", "dog/7.jpg", "cat/2.jpg")
NET = Network(nn.Conv2d(3, 3, 1), Preprocess((8, 8), resize=8), ("bird", "cat", "dog"), "pets")


@pytest.mark.parametrize(
    "labels",
    [
        "folders",
        ["cat", "dog", "cat"],
        (1, 2, 1),
        torch.tensor([1, 2, 1]),
        lambda name: name.partition("/")[0],
        {"cat/1.jpg": "cat", "7.jpg": 2, "2.jpg": "cat", "another.jpg": "bird"},
    ],
)
def test_labels_are_given_in_many_ways(labels: Any) -> None:
    assert classes_of(NET, NAMES, labels) == [1, 2, 1]


def test_without_labels_the_network_says() -> None:
    assert classes_of(NET, NAMES, None) is None


@pytest.mark.parametrize("head", ["", "file,class\n", "\ufeffFile, Class\n"])
def test_a_table_of_labels_is_read(tmp_path: Path, head: str) -> None:
    (tmp_path / "labels.csv").write_text(f"{head}cat/1.jpg,cat\n7.jpg, dog\n\n2.jpg,1\n", encoding="utf-8")
    assert classes_of(NET, NAMES, tmp_path / "labels.csv") == [1, 2, 1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["cat"], "there are 3 photos, and 1 labels"),
        ({"1.jpg": "cat"}, "2 of 3 photos have no label, as 'dog/7.jpg'"),
        ({"cat/1.png": "cat"}, "no photo has the name of a label: .* did you mean 'cat/1.jpg'"),
        (lambda name: None, "3 of 3 photos have no label"),
        (3, "labels are a sequence, a mapping, a function, a CSV file or 'folders', not an int"),
        ("no.csv", "cannot read the labels no.csv: No such file"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        classes_of(NET, NAMES, labels)


def test_a_broken_table_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class\ncat/1.jpg,cat,2\n")
    with pytest.raises(InputError, match="3 columns in row 1, where file,class are needed"):
        classes_of(NET, NAMES, tmp_path / "labels.csv")
    (tmp_path / "empty.csv").write_text("file,class\n")
    with pytest.raises(InputError, match="has no labels"):
        classes_of(NET, NAMES, tmp_path / "empty.csv")


def test_a_class_that_the_network_does_not_have_has_its_nearest() -> None:
    with pytest.raises(TargetError, match="pets has no class 'dgo'; did you mean 'dog'"):
        classes_of(NET, NAMES, ["cat", "dgo", "cat"])
