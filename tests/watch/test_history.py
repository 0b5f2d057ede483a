"""What is kept of a training: evenly spread, in whole files, and gone on with."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import torchviz_cnn as tvc
from torchviz_cnn.watch.checkpoint import Checkpoint, peaks
from torchviz_cnn.watch.history import History, spread, thinned

ONE = {"photos": "these"}


def checkpoint(step: int, loss: float | None = None, heat: float = 1.0) -> Checkpoint:
    half = torch.full((2,), 0.5)
    numbers = torch.tensor([3, 5])
    return Checkpoint(
        step, loss, torch.full((2, 3, 3), heat), numbers, half, numbers, half, ("a", "b"), numbers, numbers + 1
    )


def test_steps_are_thinned_evenly_with_the_first_and_the_last() -> None:
    kept: list[int] = []
    for step in range(0, 5000, 10):
        kept = thinned([*kept, step], 20)
        assert kept[0] == 0
        assert kept[-1] == step
        gaps = [after - before for before, after in itertools.pairwise(kept[:-1])]  # the last is the newest
        assert len(kept) <= 20
        assert not gaps or max(gaps) <= 4 * min(gaps)
    assert len(kept) == 20


def test_columns_are_spread_over_all_steps() -> None:
    assert spread(100, 5) == [0, 25, 50, 74, 99]
    for count in range(1, 40):
        places = spread(count, 12)
        assert places[0] == 0
        assert places[-1] == count - 1
        assert sorted(set(places)) == places
        assert len(places) == min(count, 12)


def test_what_was_kept_is_read_back(tmp_path: Path) -> None:
    history = History(tmp_path, ONE, 10)
    history.add(checkpoint(0, 0.1, 2.0), {"layer": "a"})
    history.add(checkpoint(7), {"layer": "a"})
    again = History(tmp_path, ONE, 10)
    assert again.facts == {"layer": "a"}
    assert [(one.step, one.loss, one.layers) for one in again.kept] == [(0, 0.1, ("a", "b")), (7, None, ("a", "b"))]
    for one, other in zip(history.kept, again.kept, strict=True):
        assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    assert peaks(again.kept).tolist() == [2.0, 2.0]


def test_a_restart_drops_what_training_left(tmp_path: Path) -> None:
    first = History(tmp_path, ONE, 10)
    for step in (0, 10, 20, 30):
        first.add(checkpoint(step), {})
    again = History(tmp_path, ONE, 10)
    again.add(checkpoint(15), {})
    again.add(checkpoint(20), {})
    assert [one.step for one in again.kept] == [0, 10, 15, 20]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{n}.safetensors" for n in (0, 10, 15, 20)]


def test_files_that_a_kill_left_are_not_read_and_go(tmp_path: Path) -> None:
    history = History(tmp_path, ONE, 10)
    history.add(checkpoint(0), {})
    (tmp_path / "step-99.safetensors").write_bytes(b"half of it")
    again = History(tmp_path, ONE, 10)
    assert [one.step for one in again.kept] == [0]
    again.add(checkpoint(1), {})
    assert not (tmp_path / "step-99.safetensors").exists()


def test_a_folder_of_other_photos_or_a_broken_file_is_named(tmp_path: Path) -> None:
    history = History(tmp_path, ONE, 10)
    history.add(checkpoint(0), {})
    with pytest.raises(tvc.OutputError, match="its photos is 'these', this one's is 'others'"):
        History(tmp_path, {"photos": "others"}, 10)
    history.folder.save("step-0", {"something": torch.ones(1)})
    with pytest.raises(tvc.OutputError, match=r"step-0\.safetensors holds no step of a training"):
        History(tmp_path, ONE, 10)
