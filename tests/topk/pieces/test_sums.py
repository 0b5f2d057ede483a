"""Sums are those of exact arithmetic, and the same to the last bit in every order and cut."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchviz_cnn.topk.pieces.sums import LIMIT, Sums, as_numbers, as_words, carried

GRID = Fraction(1, 2**60)
SMALL = st.floats(-1e6, 1e6, width=32)
ANY = st.floats(-LIMIT, LIMIT, exclude_min=True, exclude_max=True)


def exactly(words: Tensor) -> list[Fraction]:
    """What words (3, C) stand for, as fractions."""
    high, middle, low = words.tolist()
    return [h * 2**20 + Fraction(m, 2**20) + Fraction(n, 2**60) for h, m, n in zip(high, middle, low, strict=True)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(SMALL, ANY), min_size=1, max_size=20))
def test_words_are_the_number_itself_but_for_what_is_below_their_grid(values: list[float]) -> None:
    for value, fraction in zip(values, exactly(as_words(torch.tensor(values, dtype=torch.float64))), strict=True):
        assert abs(Fraction(value) - fraction) <= GRID / 2
        if Fraction(value) % GRID == 0:
            assert fraction == Fraction(value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(SMALL, ANY), min_size=1, max_size=40))
def test_a_sum_is_that_of_fractions(values: list[float]) -> None:
    words = as_words(torch.tensor(values, dtype=torch.float64)[:, None])
    total = carried(words.sum(0))
    whole = sum((Fraction(round(Fraction(value) / GRID), 2**60) for value in values), Fraction(0))
    assert exactly(total) == [whole]
    assert all(-(2**39) <= word < 2**39 for word in total[1:].flatten().tolist())
    assert float(as_numbers(total)) == pytest.approx(float(whole), rel=3e-16, abs=0)


def batch(count: int, seed: int, labelled: bool = True) -> tuple[Tensor, Tensor, list[int | None]]:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 7, generator=generator) * torch.logspace(-9, 9, 7)
    means[0, 0], means[-1, 1], means[0, 2] = torch.nan, torch.inf, 2.0**50
    labels = torch.randint(0, 5, (count,), generator=generator).tolist()
    labels[count // 2] = None
    return means, torch.rand(count, 7, generator=generator), labels if labelled else [None] * count


def assert_same(one: Sums, other: Sums) -> None:
    for name, tensor in vars(one).items():
        assert torch.equal(tensor, getattr(other, name)), name


def test_the_order_and_the_cuts_change_no_bit() -> None:
    means, inactive, labels = batch(60, 1)
    whole = Sums.none(7).plus([Sums.of(means, inactive, labels)])
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 32, 60):
        for _ in range(3):
            order = torch.randperm(60, generator=generator)
            parts = [Sums.of(means[i], inactive[i], [labels[j] for j in i]) for i in torch.split(order, size)]
            assert_same(whole, Sums.none(7).plus(parts))
            middle = len(parts) // 2
            assert_same(whole, Sums.none(7).plus(parts[middle:]).plus([Sums.none(7).plus(parts[:middle])]))


def test_they_are_the_sums_of_the_images_that_give_numbers() -> None:
    means, inactive, labels = batch(60, 2)
    sums = Sums.of(means, inactive, labels)
    counted = (means.abs() < LIMIT).sum(0)
    assert counted.tolist() == [59, 59, 59, 60, 60, 60, 60]
    assert torch.equal(sums.counted, counted)
    for channel in range(7):
        rows = [i for i in range(60) if abs(float(means[i, channel])) < LIMIT]
        assert float(as_numbers(sums.mean)[channel]) == pytest.approx(
            math.fsum(float(means[i, channel]) for i in rows), rel=1e-12, abs=60 * 2**-61
        )
        assert float(as_numbers(sums.inactive)[channel]) == pytest.approx(
            math.fsum(float(inactive[i, channel]) for i in rows), rel=1e-15
        )
        for place, label in enumerate(sums.labels.tolist()):
            of_class = [i for i in rows if labels[i] == label]
            assert int(sums.class_counted[place, channel]) == len(of_class)
            assert float(as_numbers(sums.by_class)[place, channel]) == pytest.approx(
                math.fsum(float(means[i, channel]) for i in of_class), rel=1e-12, abs=60 * 2**-61
            )


def test_a_thousand_million_images_do_not_overflow() -> None:
    means = torch.tensor([[LIMIT / 1.5, -LIMIT / 1.5, 0.1, -1e-17]], dtype=torch.float64)
    one = sums = Sums.of(means, torch.rand(1, 4), [3])
    for _ in range(30):
        sums = sums.plus([sums])
    assert int(sums.counted[0]) == int(sums.class_counted[0, 0]) == 2**30
    assert exactly(sums.mean) == exactly(sums.by_class[0]) == [2**30 * value for value in exactly(one.mean)]


def test_images_without_labels() -> None:
    sums = Sums.none(7).plus([Sums.of(*batch(5, 3, labelled=False)), Sums.of(*batch(5, 4))])
    assert len(sums.labels) == len(sums.by_class) == len(sums.class_counted) > 0
    assert int(sums.class_counted[:, 6].sum()) == 4
