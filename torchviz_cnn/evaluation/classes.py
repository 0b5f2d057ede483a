"""Which class is explained of each photo: its true one, where it is given, or the network's own."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torchviz_cnn.core.errors import InputError, are, counted, did_you_mean, kind_of
from torchviz_cnn.hooks.network import Model, Network, class_index

Truth = str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any] | Callable[[str], Any] | None
"""The true class of each photo, by index or name: in the order of the photos, by the photo's name, as a function of the
name, in a CSV file of `file,class`, or `"folders"` for the name of the folder that each photo lies in."""


def classes_of(model: Model, names: Sequence[str], truth: Truth) -> list[int] | None:
    """The class of each photo as an index; None where the network's top class is explained.

    Raises InputError for classes that do not fit the photos, TargetError for a class that the network does not have.
    """
    if truth is None:
        return None
    given = _given(names, truth)
    missing = [name for name, one in zip(names, given, strict=True) if one is None or one == ""]
    if missing:
        raise InputError(f"truth has no class for {len(missing)} of {counted(len(names), 'photo')}, as {missing[0]!r}")
    categories = model.categories if isinstance(model, Network) else None
    own = model.name if isinstance(model, Network) else "the model"
    known: dict[Any, int] = {}
    for one in given:
        if one not in known:
            known[one] = class_index(categories, one, own)
    return [known[one] for one in given]


def _given(names: Sequence[str], truth: Any) -> list[Any]:
    """A class for each photo, or None where there is none."""
    if isinstance(truth, str) and truth == "folders":
        return [PurePosixPath(name.replace(os.sep, "/")).parent.name for name in names]
    if isinstance(truth, (str, os.PathLike)):
        truth = read_classes(truth)
    if isinstance(truth, Mapping):
        return _by_name(names, truth)
    if callable(truth):
        return [truth(name) for name in names]
    values = truth.tolist() if hasattr(truth, "tolist") else truth
    if not isinstance(values, Sequence):
        raise InputError(f"truth is a sequence, a mapping, a function, a CSV file or 'folders', not {kind_of(truth)}")
    if len(values) != len(names):
        raise InputError(f"there {are(len(names), 'photo')}, and truth has {counted(len(values), 'class')}")
    return list(values)


def _by_name(names: Sequence[str], truth: Mapping[str, Any]) -> list[Any]:
    """The classes of photos by their path, or by their file's name alone."""
    given = [truth.get(name, truth.get(Path(name).name)) for name in names]
    if truth and all(one is None for one in given):
        first = next(iter(truth))
        near = did_you_mean(str(first), names)
        raise InputError(f"no photo is called as one in truth, which has {first!r} and others{near}")
    return given


def read_classes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The classes of files from a CSV file of `file,class`; a first line that says so is left out.

    Raises InputError for a file that cannot be read, or has other columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the classes in {path}: {getattr(error, 'strerror', None) or error}") from error
    for line, row in rows:
        if len(row) != 2:
            raise InputError(
                f"{path}, line {line}: {_short(','.join(row))!r} has {counted(len(row), 'column')}; a line is a file "
                f"and its class with one comma between them, as photo.jpg,cat{_other_separator(row)}"
            )
    if rows and [cell.strip().casefold() for cell in rows[0][1]] == ["file", "class"]:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path} has no classes: it needs lines of file,class")
    return {file.strip(): name.strip() for _, (file, name) in rows}


def _other_separator(row: Sequence[str]) -> str:
    """What separates the columns of a line in place of a comma, in words."""
    mark = next((mark for mark in (";", "\t", "|") if mark in row[0]), None)
    return "" if mark is None or len(row) > 1 else f", not {mark!r}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
