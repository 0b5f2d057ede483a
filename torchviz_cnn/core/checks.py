"""Checks of options that many functions take, each with one message that says what was asked and what there is."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

from torchviz_cnn.core.errors import InputError, counted, did_you_mean, kind_of


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as an int; raises InputError for what is not a whole number of at least `least`.

    >>> whole_number("batch_size", 8)
    8
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name} is a whole number of at least {least}, not {value!r}")
    return number


def number(name: str, value: Any, least: float = -math.inf) -> float:
    """The value, if it is a finite number of at least `least`; raises InputError otherwise."""
    wrong = isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value)
    if wrong or value < least:
        at_least = f" of at least {least:g}" if math.isfinite(least) else ""
        raise InputError(f"{name} is a finite number{at_least}, not {value!r}")
    return float(value)


def path(name: str, value: Any) -> Path:
    """The value as a path; raises InputError for what names no file or folder.

    >>> path("out", "pictures/cat.png").name
    'cat.png'
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InputError(f"{name} names a file or folder by a str or a Path, not by {kind_of(value)}")
    return Path(text)


def one_of(name: str, value: Any, known: Iterable[str]) -> Any:
    """The value, if it is one of the known names; raises InputError, with the nearest one, otherwise."""
    names = list(known)
    if value not in names:
        near = did_you_mean(value, names) if isinstance(value, str) else ""
        raise InputError(f"no {name} {value!r}{near or ';'} there are {', '.join(names)}")
    return value


def channel_numbers(channels: Any) -> list[int]:
    """Channels by their numbers, each once; raises InputError for what is not a list of them, or an empty one."""
    numbers = [] if isinstance(channels, str) or not isinstance(channels, Iterable) else list(channels)
    if not numbers:
        raise InputError(
            f"channels selects channels by number, as [3, 5], not {channels!r}; k=, as report has it, says how many "
            "are shown"
        )
    return list(dict.fromkeys(whole_number("a channel", number, least=0) for number in numbers))


def indices(name: str, value: Any) -> int | list[int]:
    """An index, or several as a list, from whole numbers of any kind, also in a tensor or an array; raises InputError.

    >>> indices("channel", 3), indices("channel", range(2))
    (3, [0, 1])
    """
    try:
        values = value.tolist() if hasattr(value, "tolist") else value
        several = isinstance(values, Iterable) and not isinstance(values, (str, bytes))
        each = list(values) if several else [values]
        if not each or any(isinstance(one, bool) for one in each):
            raise TypeError
        numbers = [operator.index(one) for one in each]
    except (TypeError, RuntimeError):  # as a tensor on the meta device has no values
        raise InputError(f"a {name} is an index, or several, not {value!r}") from None
    return numbers if several else numbers[0]


def require_channels(channels: int | Iterable[int], layer: object, count: int) -> None:
    """Raise InputError for the first of these channels that a layer of `count` channels does not have."""
    for channel in [channels] if isinstance(channels, int) else channels:
        if not 0 <= channel < count:
            raise InputError(
                f"channel {channel} is out of range: layer {layer!r} has {counted(count, 'channel')}, 0 to {count - 1}"
            )


def place(name: str, value: Any, count: int) -> int:
    """The place of one of `count`, counted from the end where it is negative; raises InputError for any other."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not -count <= operator.index(value) < count:
        raise InputError(f"{name} {value} is out of range: there {'is' if count == 1 else 'are'} {count}")
    return operator.index(value) % count


def sides(name: str, value: Any, unit: str = "pixel") -> tuple[int, int]:
    """Height and width from one side or both; raises InputError for sides that are not whole and at least 1."""
    given = value if isinstance(value, (tuple, list)) else (value, value)
    try:
        pair = tuple(operator.index(side) for side in given if not isinstance(side, bool))
    except TypeError:
        pair = ()
    if len(pair) != 2 or len(given) != 2 or min(pair) < 1:
        raise InputError(f"{name} is a side of at least 1 {unit}, or (height, width), not {value!r}")
    return pair[0], pair[1]
