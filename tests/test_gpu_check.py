"""`scripts/gpu_check.py`: it runs to its end on a CPU, keeps what it has, and says what failed or was left out."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def check(scripts: None) -> ModuleType:
    return importlib.import_module("gpu_check")


@pytest.fixture
def tasks(scripts: None) -> ModuleType:
    return importlib.import_module("gpu.tasks")


@pytest.fixture
def bounds(scripts: None) -> ModuleType:
    return importlib.import_module("gpu.bounds")


def test_what_fails_is_a_row_and_the_others_go_on(check: ModuleType, tasks: ModuleType, bounds: ModuleType) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken() -> None:
        raise TypeError("another version")

    lap = importlib.import_module("timing").Lap
    group = tasks.Group(
        {"plain forward": lambda: lap(0.01), "full": full, "broken": broken, "slow": lambda: lap(0.03)},
        {"slow": bounds.Work(4e6, 2e9)},
    )
    case = tasks.Case("vgg16", "explaining", "float32", 1, 5, lambda: group)
    reached = bounds.Ceilings({"float32": 1e12, "bfloat16": 1e12}, 1e12)
    rows = {row.what: row for row in check.measured(case, reached)}
    assert "there is not enough memory" in rows["full"].error
    assert "TypeError: another version" in rows["broken"].error
    assert rows["slow"].ratio == pytest.approx(3)
    assert rows["slow"].bound == "memory"
    assert rows["slow"].milliseconds == pytest.approx(30)
    assert rows["slow"].share == pytest.approx(2 / 30)
    for written in (rows.values(), [row for row in rows.values() if row.what != "plain forward"]):
        widths = [text.count("|") for text in check.tables(list(written)) if text.startswith("|")]
        assert len(widths) >= 3
        assert len(set(widths)) == 1


def test_a_group_that_cannot_be_made_is_a_row(check: ModuleType, tasks: ModuleType, bounds: ModuleType) -> None:
    case = tasks.Case("vgg16", "explaining", "float32", 1, 5, lambda: 1 / 0)
    (row,) = check.measured(case, bounds.Ceilings({}, 1))
    assert row.error == "ZeroDivisionError: division by zero"


def test_nothing_is_begun_that_may_end_too_late(check: ModuleType, tasks: ModuleType, bounds: ModuleType) -> None:
    outcome = check.Outcome("a card", reached=bounds.Ceilings({"float32": 1.0}, 1.0))
    begun = []

    def build() -> object:
        begun.append(1)
        return tasks.Group({})

    check.run_case(tasks.Case("vgg16", "explaining", "float32", 1, 9, build), outcome, 8)
    assert (begun, len(outcome.left_out)) == ([], 1)
    check.run_case(tasks.Case("vgg16", "explaining", "float32", 1, 7, build), outcome, 8)
    assert (begun, len(outcome.left_out)) == ([1], 1)


def test_goals_are_met_missed_or_not_measured(check: ModuleType) -> None:
    def row(what: str, batch: int, ratio: float) -> object:
        return check.Row("vgg16", what, "bfloat16", batch, 1.0, ratio=ratio)

    lines = check.of_goals([row("grad_cam", 1, 1.1), row("grad_cam", 32, 1.02), row("grad_cam", 256, 1.04)])
    assert "**met** (1 of 1 rows, 1.10)" in lines[0]
    assert "**missed** (1 of 2 rows, 1.02 to 1.04)" in lines[1]
    assert "**not measured**" in lines[2]


def test_photos_are_compared_with_the_slower_of_both(check: ModuleType, tasks: ModuleType) -> None:
    timing = importlib.import_module("timing").Timing
    times = {tasks.READING: timing((4.0,)), tasks.COMPUTING: timing((2.0,)), "mining": timing((5.0,))}
    row = check.with_photos(check.Row("vgg16", "mining", "bfloat16", 64), times["mining"], times, 1000)
    assert (row.per_second, row.of_slower) == (200, 0.8)


def test_work_is_counted_as_one_would_by_hand(bounds: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 8, 1, bias=False))
    own, shared = bounds.forward_work(model, torch.zeros(2, 3, 6, 6))
    first, second = 2 * 27 * 4 * 16, 2 * 4 * 8 * 16
    assert own.operations == first + second
    assert own.bytes == 4 * ((108 + 64) + (64 + 64) + (64 + 128))
    assert shared.bytes == 4 * (108 + 32)
    part, weights = bounds.forward_work(model, torch.zeros(2, 3, 6, 6), "2")
    assert part.operations == first + second / 8
    assert part.bytes == 4 * ((108 + 64) + (64 + 64) + (64 + 16))
    assert weights.bytes == 4 * 108
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path: Path) -> None:
    """A process of its own, as peers change PyTorch for the whole process."""
    command = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--tiny", "--out", str(tmp_path / "checked")]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    written = json.loads((tmp_path / "checked.json").read_text())
    assert written["left_out"] == []
    assert "skipped" in written["tests"]
    assert [row for row in written["rows"] if row["error"]] == []
    measured = {row["what"].partition(",")[0].partition(" of ")[0] for row in written["rows"]}
    assert {
        "plain forward",
        "grad_cam",
        "competitive_cam",
        "saliency",
        "filter_patterns",
        "top_activations",
    } <= measured
    assert all(row["milliseconds"] > 0 for row in written["rows"])
    assert all(row["share"] > 0 for row in written["rows"] if row["share"] is not None)
    table = (tmp_path / "checked.md").read_text()
    groups = {(row["network"], row["precision"], row["batch"]) for row in written["rows"] if row["per_second"] is None}
    assert table.count("\n| ") >= len(groups)
    assert table.count("top_activations of") >= 2
    assert "at batch 1: **" in table
