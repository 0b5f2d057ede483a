"""Pieces, batches and shares: every image is in one batch, every batch has one rank, whatever the numbers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchviz_cnn.core.errors import InputError
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.pieces.cutting import Batches, Piece

SMALL = st.integers(1, 9)


@given(st.integers(0, 60), st.integers(0, 60), SMALL, SMALL, SMALL)
def test_every_image_is_in_one_batch_of_one_rank(start: int, count: int, size: int, chunk: int, ranks: int) -> None:
    batches = Batches(start, start + count, size, chunk)
    assert [place for batch in batches for place in batch] == list(range(start, start + count))
    assert [number for numbers in batches.chunks() for number in numbers] == list(range(len(batches)))
    shares = [batches.shares(Ranks(rank, ranks)) for rank in range(ranks)]
    assert sorted(number for share in shares for number in share) == list(range(len(batches)))
    for rank, share in enumerate(shares):
        chunks = [list(batches.share(numbers, Ranks(rank, ranks))) for numbers in batches.chunks()]
        assert list(share) == [number for of_chunk in chunks for number in of_chunk]
        assert len(share) == len(list(share))
        assert share[::2] == list(share)[::2]
        for of_chunk in chunks:
            assert of_chunk == list(range(of_chunk[0], of_chunk[-1] + 1) if of_chunk else [])
    for numbers in batches.chunks():
        sizes = [len(batches.share(numbers, Ranks(rank, ranks))) for rank in range(ranks)]
        assert max(sizes) - min(sizes) <= 1


def test_batches_of_a_large_dataset_take_no_room() -> None:
    batches = Batches(0, 10_000_000, 32, 50)
    assert batches[-1] == range(9_999_968, 10_000_000)
    assert len(pickle.dumps((batches, batches.shares(Ranks(1, 3))))) < 500


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-1, None, "start is a whole number of at least 0, not -1"),
        (0, -3, "end is a whole number of at least 1, not -3"),
        (0.5, None, "start is a whole number"),
        (10, None, "start=10 is out of range: the dataset has 10 images"),
        (0, 11, "end=11 is out of range: the dataset has 10 images"),
        (4, 4, "a piece has at least one image, and start=4 is not below end=4"),
        (5, 4, "start=5 is not below end=4"),
    ],
)
def test_what_is_no_piece_is_told(start: Any, end: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Piece.of(start, end, 10)


def test_all_of_a_dataset_is_no_piece() -> None:
    assert Piece.of(0, None, 10) == Piece.of(0, 10, 10)
    assert Piece.of(0, 10, 10).identity() == {}
    assert Piece.of(1, None, 10).identity() == {"piece": [1, 10]}
    assert str(Piece.of(5000, 10_000, 20_000)) == "images 5,000 to 9,999 of 20,000"
