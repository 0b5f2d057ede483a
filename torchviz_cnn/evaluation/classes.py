"""Which class is explained of each photo: the one that a label gives, or the network's own."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torchviz_cnn.core.errors import InputError, did_you_mean, kind_of
from torchviz_cnn.hooks.network import Model, Network, class_index

Labels = str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any] | Callable[[str], Any] | None
"""The class of each photo, by index or name: in the order of the photos, by the photo's name, as a function of the
name, in a CSV file of `file,class`, or `"folders"` for the name of the folder that each photo lies in."""


def classes_of(model: Model, names: Sequence[str], labels: Labels) -> list[int] | None:
    """The class of each photo as an index; None where the network's top class is explained.

    Raises InputError for labels that do not fit the photos, TargetError for a class that the network does not have.
    """
    if labels is None:
        return None
    given = _given(names, labels)
    missing = [name for name, label in zip(names, given, strict=True) if label is None or label == ""]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} photos have no label, as {missing[0]!r}")
    categories = model.categories if isinstance(model, Network) else None
    own = model.name if isinstance(model, Network) else "the model"
    known: dict[Any, int] = {}
    for label in given:
        if label not in known:
            known[label] = class_index(categories, label, own)
    return [known[label] for label in given]


def _given(names: Sequence[str], labels: Any) -> list[Any]:
    """A label for each photo, or None where there is none."""
    if labels == "folders":
        return [PurePosixPath(name.replace(os.sep, "/")).parent.name for name in names]
    if isinstance(labels, (str, os.PathLike)):
        labels = read_labels(labels)
    if isinstance(labels, Mapping):
        return _by_name(names, labels)
    if callable(labels):
        return [labels(name) for name in names]
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(values, Sequence):
        raise InputError(
            f"labels are a sequence, a mapping, a function, a CSV file or 'folders', not {kind_of(labels)}"
        )
    if len(values) != len(names):
        raise InputError(f"there are {len(names)} photos, and {len(values)} labels")
    return list(values)


def _by_name(names: Sequence[str], labels: Mapping[str, Any]) -> list[Any]:
    """The labels of photos by their path, or by their file's name alone."""
    given = [labels.get(name, labels.get(Path(name).name)) for name in names]
    if labels and all(label is None for label in given):
        first = next(iter(labels))
        near = did_you_mean(str(first), names)
        raise InputError(f"no photo has the name of a label: labels are for {first!r} and others{near}")
    return given


def read_labels(path: str | os.PathLike[str]) -> dict[str, str]:
    """The classes of files from a CSV file of `file,class`; a first line that says so is left out.

    Raises InputError for a file that cannot be read, or has other columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the labels {path}: {getattr(error, 'strerror', None) or error}") from error
    if rows and [cell.strip().casefold() for cell in rows[0]] == ["file", "class"]:
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise InputError(f"{path} has {len(row)} columns in row {number}, where file,class are needed")
    if not rows:
        raise InputError(f"{path} has no labels: it needs lines of file,class")
    return {file.strip(): label.strip() for file, label in rows}
