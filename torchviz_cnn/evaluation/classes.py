"""Which class is explained of each photo: its true one, where it is given, or the network's own."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from torchviz_cnn.core.errors import InputError, SkippedWarning, TargetError, are, counted, did_you_mean, kind_of
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.network import Model, Network, class_index

Truth = str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any] | Callable[[str], Any] | None
"""The true class of each photo, by index or name: in the order of the photos, by the photo's name, as a function of the
name, in a CSV file of `file,class`, or `"folders"` for the name of the folder that each photo lies in."""


def classes_of(model: Model, names: Sequence[str], truth: Truth) -> list[int] | None:
    """The class of each photo as an index; None where the network's top class is explained.

    Raises InputError for classes that do not fit the photos, TargetError for a class that the network does not have;
    warns of names that are those of no photo.
    """
    if truth is None:
        return None
    given = given_classes(names, truth)
    known = matched(model, given).known
    return [known[one] for one in given]


def given_classes(names: Sequence[str], truth: Truth) -> list[Any]:
    """The class of each photo as it is given. Raises InputError where one has none; warns of what is of no photo."""
    if isinstance(truth, (str, os.PathLike)) and truth != "folders":
        truth = read_classes(truth)
    if isinstance(truth, Mapping):
        truth = {one.as_posix() if isinstance(one, PurePath) else one: value for one, value in truth.items()}
    given = _given(names, truth)
    missing = [name for name, one in zip(names, given, strict=True) if one is None or one == ""]
    unused = _unused(names, truth) if isinstance(truth, Mapping) else []
    if missing:
        near = did_you_mean(missing[0], map(str, unused))
        raise InputError(
            f"truth has no class for {len(missing)} of {counted(len(names), 'photo')}, as {missing[0]!r}{near}"
        )
    if unused:
        listed = ", ".join(repr(str(one)) for one in unused[:_FEW]) + (" and others" if len(unused) > _FEW else "")
        near = did_you_mean(str(unused[0]), names)
        many = counted(len(unused), "name in truth is that of no photo", "names in truth are those of no photo")
        warn(f"{many}, and left out: {listed}{near}", SkippedWarning)
    return given


def _unused(names: Sequence[str], truth: Mapping[str, Any]) -> list[Any]:
    """What of a mapping is of no photo."""
    used = {name if name in truth else Path(name).name for name in names}
    return [one for one in truth if one not in used]


class Matches(NamedTuple):
    """Which class of a network each label means."""

    known: dict[Any, int]
    """The index of the class, by the label."""
    how: str
    """How they were matched, in words."""


_WORDNET_ID = re.compile(r"n\d{8}")
_LISTED = 8
_FEW = 3


def matched(model: Model, labels: Iterable[Any], outputs: int | None = None, hint: str = "") -> Matches:
    """The class that each label means: by its name or index, its WordNet id, or its name but for case and separators.

    Where the network's classes have no names, and there are as many labels as outputs, they are in the order of the
    labels, as torchvision's `ImageFolder` has them; so are all 1,000 WordNet ids of ImageNet.

    Args:
        model: a module or a Network, whose categories are the names.
        labels: names or indices, each as often as it comes.
        outputs: how many classes the network has, where it is known.
        hint: what else one could do, for the error.

    Raises:
        TargetError: for labels that the network does not have, with the nearest names.
    """
    categories = model.categories if isinstance(model, Network) else None
    own = model.name if isinstance(model, Network) else "the model"
    several = _hashable(labels)
    texts = [str(one).strip() for one in several]
    every = len(several) == outputs and all(isinstance(one, str) for one in several)
    if every and ((categories is None and not all(map(_is_index, texts))) or _are_imagenet(texts)):
        order = {one: place for place, one in enumerate(sorted(several))}
        ids = "ImageNet's WordNet ids" if _are_imagenet(texts) else "labels"
        return Matches(order, f"{counted(outputs or 0, 'class')} in the order of their {ids}")
    known, ways, errors = dict[Any, int](), Counter[str](), list[TargetError]()
    names = _Names.of(categories)
    for one, text in zip(several, texts, strict=True):
        index, way = names.find(text)
        try:
            known[one] = class_index(categories, one, own) if index is None else index
            if outputs is not None and not 0 <= known[one] < outputs:
                raise TargetError(f"{own} has no class {known[one]}: its classes are 0 to {outputs - 1}")
            ways[way or "by index"] += 1
        except TargetError as error:
            errors.append(error)
    if errors:
        raise TargetError(_of_all(errors, own, hint))
    return Matches(known, ", ".join(f"{counted(count, 'class')} {way}" for way, count in ways.items()))


def _hashable(labels: Iterable[Any]) -> list[Any]:
    """Each label once. Raises InputError for what is no single class, such as a row of a one-hot table."""
    several = list(labels)
    wrong = next((one for one in several if isinstance(one, (list, dict, set))), None)
    if wrong is not None:
        raise InputError(
            f"truth is one class for each photo, by name or index, not {kind_of(wrong)}: {_short(str(wrong))}"
        )
    return list(dict.fromkeys(several))


def _of_all(errors: Sequence[TargetError], own: str, hint: str) -> str:
    """What is wrong with labels, in one line."""
    hint = f"; {hint}" if hint else ""
    if len({str(error) for error in errors}) == 1:
        return f"{errors[0]}{hint}"
    words = [str(error).removeprefix(f"{own} has ").replace("; give a name or an index", "") for error in errors]
    more = f"; and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
    return f"{own} lacks {counted(len(errors), 'label')}: {'; '.join(words[:_LISTED])}{more}{hint}"


class _Names(NamedTuple):
    """Indices of classes by their names."""

    exact: Mapping[str, list[int]]
    wordnet: Mapping[str, list[int]]
    folded: Mapping[str, list[int]]

    @classmethod
    def of(cls, categories: Sequence[str] | None) -> _Names:
        exact, wordnet, folded = dict[str, list[int]](), dict[str, list[int]](), dict[str, list[int]]()
        for index, name in enumerate(categories or ()):
            exact.setdefault(name, []).append(index)
            folded.setdefault(_folded(name), []).append(index)
            for word in _WORDNET_ID.findall(name):
                wordnet.setdefault(word, []).append(index)
        return cls(exact, wordnet, folded)

    def find(self, text: str) -> tuple[int | None, str]:
        """The index of the only class that is called so, and how it was matched; None for none or several."""
        unnumbered = re.sub(r"^\d+[\s._-]+(?=\D)", "", text)
        ways = [
            (self.exact, text, "by name"),
            (self.wordnet, text, "by WordNet id"),
            (self.folded, _folded(text), "by name but for case and separators"),
            (self.folded, _folded(unnumbered), "by name but for case, separators and the number before it"),
        ]
        for table, key, way in ways:
            if len(table.get(key, ())) == 1:
                return table[key][0], way
        return None, ""


def _folded(name: str) -> str:
    """A name without case, accents and what separates its words.

    >>> _folded("Great_white-shark"), _folded("Kuvasz")
    ('great white shark', 'kuvasz')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode() or name
    return re.sub(r"[\W_]+", " ", plain).strip().casefold()


def _is_index(text: str) -> bool:
    return text.isdigit()


def _are_imagenet(texts: Sequence[str]) -> bool:
    return len(texts) == 1000 and all(map(_WORDNET_ID.fullmatch, texts))


def _given(names: Sequence[str], truth: Any) -> list[Any]:
    """A class for each photo, or None where there is none; a file is read before."""
    if isinstance(truth, str) and truth == "folders":
        return [PurePosixPath(name.replace(os.sep, "/")).parent.name for name in names]
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
    """The classes of photos by their path, or by their file's name alone, which must then be that of one photo."""
    given = [truth.get(name, truth.get(Path(name).name)) for name in names]
    meant: dict[str, str] = {}
    for name in names:
        file = Path(name).name
        if name in truth or file not in truth:
            continue
        if file in meant:
            raise InputError(
                f"truth has a class for {file!r}, and several photos are called so: {meant[file]!r} and {name!r}; "
                "give their paths below the folder"
            )
        meant[file] = name
    if truth and all(one is None for one in given):
        first = next(iter(truth))
        near = did_you_mean(str(first), names)
        raise InputError(f"no photo is called as one in truth, which has {first!r} and others{near}")
    return given


def read_classes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The classes of files from a CSV file of `file,class`; a first line that says so is left out.

    Raises InputError for a file that cannot be read, has other columns, or gives a photo two classes.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the classes in {path}: it is not text in UTF-8; save it as that") from error
    except (OSError, csv.Error) as error:
        near = did_you_mean(str(path), ["folders", "none"]) if isinstance(error, FileNotFoundError) else ""
        raise InputError(
            f"cannot read the classes in {path}: {getattr(error, 'strerror', None) or error}{near}"
        ) from error
    for line, row in rows:
        if len(row) != 2:
            raise InputError(
                f"{path}, line {line}: {_short(','.join(row))!r} has {counted(len(row), 'column')}; a line is a file "
                f"and its class with one comma between them, as photo.jpg,cat{_other_separator(row)}"
            )
    head = [cell.strip().casefold() for cell in rows[0][1]] if rows else ["", ""]
    if head[0] in _HEAD[0] and head[1] in _HEAD[1]:
        rows = rows[1:]
    elif head[1] in _HEAD[0] and head[0] in _HEAD[1]:
        raise InputError(f"{path}: its columns are {','.join(head)}, and the file comes before its class")
    if not rows:
        raise InputError(f"{path} has no classes: it needs lines of file,class")
    classes: dict[str, str] = {}
    for line, row in rows:
        photo, name = (cell.strip() for cell in row)
        known = classes.setdefault(photo, name)
        if known != name:
            raise InputError(f"{path}, line {line}: {_short(photo)!r} is {name!r}, and {known!r} in a line above")
    return classes


_HEAD = ({"file", "filename", "filepath", "image", "name", "path", "photo"}, {"category", "class", "label", "target"})
"""What the first line of a table may call its columns."""


def _other_separator(row: Sequence[str]) -> str:
    """What separates the columns of a line in place of a comma, in words."""
    mark = next((mark for mark in (";", "\t", "|") if mark in row[0]), None)
    return "" if mark is None or len(row) > 1 else f", not {mark!r}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
