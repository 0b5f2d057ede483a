"""Sums over images that are exact, so that batches, ranks and pieces in any order give the same bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_UNITS = (2.0**20, 2.0**-20, 2.0**-60)
"""What one of each word of a number is worth."""
_BITS = 40
"""How many bits each word but the first has: by so many the units differ."""
LIMIT = 2.0**50
"""Means of this size (1e15) and more are left out, as those that are not finite."""


def as_words(values: Tensor) -> Tensor:
    """Numbers (..., C) of a size below LIMIT as three whole numbers each: (..., 3, C) int64, in units of _UNITS.

    Sums of whole numbers do not depend on their order. What is smaller than half of 2^-60 (4e-19) is rounded away, and
    nothing else.
    """
    rest, words = values.double(), []
    for unit in _UNITS[:-1]:
        whole = (rest / unit).trunc()
        rest = rest - whole * unit  # without rounding: both are multiples of the last bit of what was there
        words.append(whole)
    words.append((rest / _UNITS[-1]).round())
    return torch.stack(words, -2).long()


def as_numbers(words: Tensor) -> Tensor:
    """The numbers (..., C), in float64, that carried words (..., 3, C) stand for."""
    high, middle, low = (words.select(-2, i).double() * unit for i, unit in enumerate(_UNITS))
    return high + (middle + low)


def carried(words: Tensor) -> Tensor:
    """The same numbers, with all words but the first from -2^39 to 2^39 - 1: there is one such form, and sums fit.

    >>> carried(torch.tensor([[0], [-1], [2**41 + 3]])).tolist()
    [[0], [1], [3]]
    """
    half = 1 << (_BITS - 1)
    high, middle, low = words.unbind(-2)
    carry = (low + half) >> _BITS
    middle, low = middle + carry, low - (carry << _BITS)
    carry = (middle + half) >> _BITS
    return torch.stack([high + carry, middle - (carry << _BITS), low], -2)


@dataclass(eq=False)
class Sums:
    """What statistics need of the images of one batch, or of all so far. All are whole numbers, in int64."""

    mean: Tensor
    """The sum of each image's mean, in words: (3, C)."""
    inactive: Tensor
    """The sum of each image's share of values that are zero or below, in words: (3, C)."""
    counted: Tensor
    """How many images: those whose mean is a finite number (C,)."""
    labels: Tensor
    """The classes that occurred, sorted: (u,)."""
    by_class: Tensor
    """`mean` by class, in words: (u, 3, C)."""
    class_counted: Tensor
    """`counted` by class: (u, C)."""

    @classmethod
    def none(cls, channels: int) -> Sums:
        """Return sums over zero images."""
        words, count = torch.zeros(3, channels, dtype=torch.long), torch.zeros(channels, dtype=torch.long)
        empty = torch.zeros(0, dtype=torch.long)
        return cls(words, words, count, empty, words.new_zeros(0, 3, channels), count.new_zeros(0, channels))

    @classmethod
    def of(cls, means: Tensor, inactive: Tensor, labels: list[int | None]) -> Sums:
        """Return the sums of a batch: means and shares of values zero or below (B, C), and the label of each image."""
        means, inactive = means.cpu().double(), inactive.cpu().double()
        finite = means.abs() < LIMIT
        words, counts = as_words(means.where(finite, 0)), finite.long()
        known = torch.tensor([i for i, label in enumerate(labels) if label is not None], dtype=torch.long)
        classes = torch.tensor([label for label in labels if label is not None], dtype=torch.long)
        present, place = classes.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        by_class = (
            part.new_zeros(len(present), *part.shape[1:]).index_add_(0, place, part[known]) for part in (words, counts)
        )
        return cls(words.sum(0), as_words(inactive * counts).sum(0), counts.sum(0), present, *by_class)

    def plus(self, others: Iterable[Sums]) -> Sums:
        """The sum of these and others, to the last bit the same in every order."""
        parts = [self, *others]
        labels = torch.cat([part.labels for part in parts]).unique()  # type: ignore[no-untyped-call]
        by_class = self.by_class.new_zeros(len(labels), *self.by_class.shape[1:])
        class_counted = self.class_counted.new_zeros(len(labels), *self.class_counted.shape[1:])
        for part in parts:
            place = torch.searchsorted(labels, part.labels)
            by_class.index_add_(0, place, part.by_class)
            class_counted.index_add_(0, place, part.class_counted)
        mean, inactive, counted = (
            torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("mean", "inactive", "counted")
        )
        return Sums(carried(mean), carried(inactive), counted, labels, carried(by_class), class_counted)
