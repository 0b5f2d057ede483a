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


@pytest.mark.parametrize("value", [0, 0.25, -3, np.float64(0.5)])
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
