"""Sums over images that are exact, so that batches, ranks and pieces in any order give the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_UNITS = (2.0**20, 2.0**-20, 2.0**-60)
"""What one of each word of a number is worth."""
_BITS = 40
"""How many bits each word but the first has: by so many the units differ."""
_SHARE = 2.0**-40
"""What one stands for in sums of shares."""
_CARRIED = 1 << 20
"""After how many images words are carried at the latest: sums of 2^23 fit."""
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
    """The numbers (..., C), in float64, that carried words (..., 3, C) stand for, whatever follows them."""
    high, middle, low = (words.select(-2, i).double() * unit for i, unit in enumerate(_UNITS))
    return high + (middle + low)


def carried(words: Tensor) -> Tensor:
    """The same numbers, with all words but the first from -2^39 to 2^39 - 1: there is one such form, and sums fit.

    What follows the three words of (..., 3, C) stays as it is.

    >>> carried(torch.tensor([[0], [-1], [2**41 + 3], [7]])).tolist()
    [[0], [1], [3], [7]]
    """
    half = 1 << (_BITS - 1)
    high, middle, low, *more = words.unbind(-2)
    carry = (low + half) >> _BITS
    middle, low = middle + carry, low - (carry << _BITS)
    carry = (middle + half) >> _BITS
    return torch.stack([high + carry, middle - (carry << _BITS), low, *more], -2)


@dataclass(eq=False)
class Sums:
    """What statistics need of all images so far, or of some. All are whole numbers, in int64."""

    totals: Tensor
    """(4, C): in words, the sum of each image's mean; then how many images: those whose mean is a finite number."""
    inactive: Tensor
    """The sum of each image's share of values that are zero or below, in units of 2^-40: (C,)."""
    labels: Tensor
    """The classes that occurred, sorted: (u,)."""
    by_class: Tensor
    """`totals` by class: (u, 4, C)."""

    @classmethod
    def none(cls, channels: int) -> Sums:
        """Return sums over zero images."""
        totals, empty = torch.zeros(4, channels, dtype=torch.long), torch.zeros(0, dtype=torch.long)
        return cls(totals, totals[0], empty, totals.new_zeros(0, 4, channels))

    @classmethod
    def of(cls, means: Tensor, inactive: Tensor, labels: Sequence[int | None]) -> Sums:
        """Return the sums of a batch: means and shares of values zero or below (B, C), and the label of each image."""
        adding = Adding(means.shape[1])
        adding.add(means, inactive, labels)
        return adding.sums()

    def plus(self, others: Iterable[Sums]) -> Sums:
        """The sum of these and others, to the last bit the same in every order."""
        parts = [self, *others]
        labels = torch.cat([part.labels for part in parts]).unique()  # type: ignore[no-untyped-call]
        by_class = self.by_class.new_zeros(len(labels), *self.by_class.shape[1:])
        for part in parts:
            by_class.index_add_(0, torch.searchsorted(labels, part.labels), part.by_class)
        totals, inactive = (
            torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("totals", "inactive")
        )
        return Sums(carried(totals), inactive, labels, carried(by_class))

    @property
    def mean(self) -> Tensor:
        """The mean over the images, each of which counts alike, in float64: (C,)."""
        return as_numbers(self.totals) / self.totals[3]

    @property
    def class_means(self) -> Tensor:
        """The same by class, NaN for a class without images: (u, C)."""
        return as_numbers(self.by_class) / self.by_class[:, 3]

    @property
    def sparsity(self) -> Tensor:
        """The mean share of values that are zero or below, in float64: (C,)."""
        return self.inactive.double() * _SHARE / self.totals[3]


class Adding:
    """Sums to which batches are added in place."""

    def __init__(self, channels: int) -> None:
        self.totals = torch.zeros(4, channels, dtype=torch.long)
        self.inactive, self.by_class = self.totals[0].clone(), self.totals.new_zeros(0, 4, channels)
        self.rows: dict[int, int] = {}
        """The row of each class in `by_class`, which has more."""
        self.images = 0
        """How many were added since words were carried."""

    def add(self, means: Tensor, inactive: Tensor, labels: Sequence[int | None]) -> None:
        """Add a batch: see `Sums.of`."""
        means, inactive = means.cpu().double(), inactive.cpu().double()
        finite = means.abs() < LIMIT
        words = torch.cat([as_words(means.where(finite, 0)), finite[:, None].long()], 1)
        self.totals += words.sum(0)
        self.inactive += (inactive * finite / _SHARE).round().long().sum(0)
        known = [place for place, label in enumerate(labels) if label is not None]
        if known:
            rows = [self.rows.setdefault(label, len(self.rows)) for label in labels if label is not None]
            if len(self.rows) > len(self.by_class):
                more = max(len(self.rows), 2 * len(self.by_class)) - len(self.by_class)
                self.by_class = torch.cat([self.by_class, self.totals.new_zeros(more, *self.totals.shape)])
            some = words if len(known) == len(words) else words[known]
            self.by_class.index_add_(0, torch.tensor(rows), some)
        self.images += len(words)
        if self.images > _CARRIED:
            self.totals, self.by_class, self.images = carried(self.totals), carried(self.by_class), 0

    def sums(self) -> Sums:
        """All that was added."""
        labels = torch.tensor(sorted(self.rows), dtype=torch.long)
        rows = torch.tensor([self.rows[label] for label in labels.tolist()], dtype=torch.long)
        totals, by_class = carried(self.totals), carried(self.by_class[rows])
        return Sums(totals, self.inactive.clone(), labels, by_class)
