"""Checks of options: what passes, and one message that says what was asked and what there is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers(value: Any) -> None:
    number = checks.whole_number("k", value)
    assert number == 3
    assert type(number) is int
    assert checks.whole_number("workers", 0, least=0) == 0


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True, [3]])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(InputError) as raised:
        checks.whole_number("k", value)
    assert str(raised.value) == f"k is a whole number of at least 1, not {value!r}"


@pytest.mark.parametrize("value", [0, 0.25, -3, np.float64(0.5), np.float32(0.5), np.int8(2)])
def test_numbers(value: Any) -> None:
    number = checks.number("noise", value)
    assert number == value
    assert type(number) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(InputError) as raised:
        checks.number("noise", value)
    assert str(raised.value) == f"noise is a finite number, not {value!r}"
    with pytest.raises(InputError, match=r"noise is a finite number of at least 0, not -0\.5"):
        checks.number("noise", -0.5, 0)


def test_one_of_known_names() -> None:
    assert checks.one_of("score", "logit", ("logit", "probability")) == "logit"
    with pytest.raises(InputError, match="no score 'logits'; did you mean 'logit'") as raised:
        checks.one_of("score", "logits", ("logit", "probability"))
    assert str(raised.value).endswith("there are logit, probability")
    for wrong in ("zebra", 3, None):
        with pytest.raises(InputError, match=f"no score {wrong!r}; there are logit, probability"):
            checks.one_of("score", wrong, iter(("logit", "probability")))


@pytest.mark.parametrize(
    ("value", "both"),
    [(32, (32, 32)), ((32, 48), (32, 48)), ([32, 48], (32, 48)), (torch.tensor(7), (7, 7)), ((1, 1), (1, 1))],
)
def test_sides(value: Any, both: tuple[int, int]) -> None:
    assert checks.sides("size", value) == both


@pytest.mark.parametrize("value", [0, -1, 2.5, "32", None, True, (1,), (1, 2, 3), (0, 4), (4, 2.5), (True, 3), ()])
def test_what_are_no_sides(value: Any) -> None:
    with pytest.raises(InputError) as raised:
        checks.sides("size", value, "pixel")
    assert str(raised.value) == f"size is a side of at least 1 pixel, or (height, width), not {value!r}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        ([3, 0], [3, 0]),
        ((np.int8(3), torch.tensor(0)), [3, 0]),
        (np.array([3, 0]), [3, 0]),
        (torch.tensor([3]), [3]),
        (range(2), [0, 1]),
        (iter([1, 1]), [1, 1]),
        (-1, -1),
        (10**30, 10**30),
    ],
)
def test_indices_of_any_kind(value: Any, expected: int | list[int]) -> None:
    assert checks.indices("channel", value) == expected


@pytest.mark.parametrize(
    "value", ["3", b"3", 1.0, True, None, [], [1.5], [True], [[1]], torch.zeros(0), torch.tensor([1.0]), {"a": 1}]
)
def test_what_is_no_index(value: Any) -> None:
    with pytest.raises(InputError, match="a channel is an index, or several, not "):
        checks.indices("channel", value)
    with pytest.raises(InputError, match="a channel is an index, or several, not "):
        checks.indices("channel", torch.zeros(2, device="meta"))


def test_channels_of_a_layer() -> None:
    checks.require_channels(3, "conv", 4)
    checks.require_channels([0, 3], "conv", 4)
    for wrong, first in ((4, 4), (-1, -1), ([0, 9, 7], 9), (10**30, 10**30)):
        with pytest.raises(InputError, match=f"channel {first} is out of range: layer 'conv' has 4 channels, 0 to 3"):
            checks.require_channels(wrong, "conv", 4)


def test_places_are_counted_from_either_end() -> None:
    assert [checks.place("image", value, 3) for value in (0, 2, -1, -3, np.int64(1))] == [0, 2, 2, 0, 1]
    for wrong in (3, -4, 0.5, "1", None, True):
        with pytest.raises(InputError, match=f"image {wrong} is out of range: there are 3"):
            checks.place("image", wrong, 3)
