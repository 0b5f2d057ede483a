"""Which class is explained of each photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchviz_cnn import Network, Preprocess
from torchviz_cnn.core.errors import InputError, SkippedWarning, TargetError
from torchviz_cnn.evaluation.classes import classes_of

NAMES = ("cat/1.jpg", "dog/7.jpg", "cat/2.jpg")
NET = Network(nn.Conv2d(3, 3, 1), Preprocess((8, 8), resize=8), ("bird", "cat", "dog"), "pets")


@pytest.mark.parametrize(
    "truth",
    [
        "folders",
        ["cat", "dog", "cat"],
        (1, 2, 1),
        torch.tensor([1, 2, 1]),
        lambda name: name.partition("/")[0],
        {"cat/1.jpg": "cat", "7.jpg": 2, "2.jpg": "cat"},
    ],
)
def test_true_classes_are_given_in_many_ways(truth: Any) -> None:
    assert classes_of(NET, NAMES, truth) == [1, 2, 1]


def test_names_of_no_photo_are_left_out_with_a_warning(tmp_path: Path) -> None:
    table = {"cat/1.jpg": "cat", "7.jpg": "dog", "2.jpg": "cat"}
    (tmp_path / "truth.csv").write_text("".join(f"{file},{name}\n" for file, name in {**table, "x.jpg": "cat"}.items()))
    with pytest.warns(SkippedWarning, match=r"^1 name in truth is that of no photo, and left out: 'x\.jpg'$"):
        assert classes_of(NET, NAMES, tmp_path / "truth.csv") == [1, 2, 1]
    more = {"dog/8.jpg": 2, "y": 1, 7: 1, "cat/1.jpeg": 1, "1.jpg": 0}
    words = r"^5 names in truth are those of no photo, and left out: 'dog/8\.jpg', 'y', '7' and others; did you mean"
    with pytest.warns(SkippedWarning, match=words):
        assert classes_of(NET, NAMES, {**table, **more}) == [1, 2, 1]  # type: ignore[dict-item]


def test_a_photo_without_a_class_is_told_with_the_name_that_is_near() -> None:
    with pytest.raises(InputError, match=r"no class for 1 of 3 photos, as 'dog/7\.jpg'; did you mean 'dog/7\.jpeg'\?$"):
        classes_of(NET, NAMES, {"cat/1.jpg": "cat", "cat/2.jpg": "cat", "dog/7.jpeg": "dog"})


def test_without_true_classes_the_network_says() -> None:
    assert classes_of(NET, NAMES, None) is None


@pytest.mark.parametrize("head", ["", "file,class\n", "\ufeffFile, Class\n"])
def test_a_table_of_classes_is_read(tmp_path: Path, head: str) -> None:
    (tmp_path / "truth.csv").write_text(f"{head}cat/1.jpg,cat\n7.jpg, dog\n\n2.jpg,1\n", encoding="utf-8")
    assert classes_of(NET, NAMES, tmp_path / "truth.csv") == [1, 2, 1]


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (["cat"], "there are 3 photos, and truth has 1 class"),
        ({"1.jpg": "cat"}, "truth has no class for 2 of 3 photos, as 'dog/7.jpg'"),
        ({"cat/1.png": "cat"}, "no photo is called as one in truth, .* did you mean 'cat/1.jpg'"),
        (lambda name: None, "truth has no class for 3 of 3 photos"),
        (3, "truth is a sequence, a mapping, a function, a CSV file or 'folders', not an int"),
        ("no.csv", "cannot read the classes in no.csv: No such file"),
        ("folder", "cannot read the classes in folder: No such file or directory; did you mean 'folders'"),
        (torch.eye(3), r"truth is one class for each photo, by name or index, not a list: \[1.0, 0.0, 0.0\]"),
    ],
)
def test_classes_that_do_not_fit_are_one_line(truth: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        classes_of(NET, NAMES, truth)


def test_a_broken_table_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("file,class\ncat/1.jpg,cat,2\n")
    with pytest.raises(InputError, match=r"truth\.csv, line 2: 'cat/1.jpg,cat,2' has 3 columns; a line is a file"):
        classes_of(NET, NAMES, tmp_path / "truth.csv")
    (tmp_path / "empty.csv").write_text("file,class\n")
    with pytest.raises(InputError, match="has no classes"):
        classes_of(NET, NAMES, tmp_path / "empty.csv")


@pytest.mark.parametrize(("mark", "said"), [(";", ", not ';'"), ("\t", r", not '\\t'"), (" ", "as photo.jpg,cat$")])
def test_another_separator_is_named(tmp_path: Path, mark: str, said: str) -> None:
    (tmp_path / "truth.csv").write_text(f"file{mark}class\ncat/1.jpg{mark}cat\n")
    with pytest.raises(InputError, match="has 1 column; a line is a file and its class with one comma .*" + said):
        classes_of(NET, NAMES, tmp_path / "truth.csv")


def test_a_class_that_the_network_does_not_have_has_its_nearest() -> None:
    with pytest.raises(TargetError, match="pets has no class 'dgo'; did you mean 'dog'"):
        classes_of(NET, NAMES, ["cat", "dgo", "cat"])


def test_a_file_name_that_several_photos_have_is_refused() -> None:
    names = ("cat/1.jpg", "dog/1.jpg")
    with pytest.raises(
        InputError, match=r"several photos are called so: 'cat/1.jpg' and 'dog/1.jpg'; give their paths"
    ):
        classes_of(NET, names, {"1.jpg": "cat"})
    assert classes_of(NET, names, {"cat/1.jpg": "cat", "1.jpg": "dog"}) == [1, 2]


def test_a_photo_with_two_classes_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "truth.csv"
    table.write_text("cat/1.jpg,cat\n7.jpg,dog\n2.jpg,cat\n7.jpg,cat\n")
    with pytest.raises(InputError, match=r"line 4: '7.jpg' is 'cat', and 'dog' in a line above"):
        classes_of(NET, NAMES, table)
    table.write_text("cat/1.jpg,cat\n7.jpg,dog\n2.jpg,cat\n7.jpg,dog\n")
    assert classes_of(NET, NAMES, table) == [1, 2, 1]


def test_a_table_in_another_encoding_says_which_is_read(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_bytes("1.jpg,L\xf6we\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"it is not text in UTF-8; save it as that$"):
        classes_of(NET, NAMES, tmp_path / "truth.csv")


def test_what_is_wrong_with_all_labels_alike_is_said_once() -> None:
    net = Network(nn.Conv2d(3, 10, 1), Preprocess((8, 8), resize=8), None, "pets")
    with pytest.raises(TargetError, match=r"^the class names of pets are not known: [^;]*$"):
        classes_of(net, NAMES, ["cat", "dog", "cow"])


def test_columns_that_are_swapped_are_named(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("label,filename\ncat,cat/1.jpg\n")
    with pytest.raises(InputError, match=r"its columns are label,filename, and the file comes before its class$"):
        classes_of(NET, NAMES, tmp_path / "truth.csv")


def test_names_may_be_paths() -> None:
    assert classes_of(NET, NAMES, {Path(name): name.partition("/")[0] for name in NAMES}) == [1, 2, 1]  # type: ignore[misc]
