"""`scripts/benchmark.py`: how it measures, what it says, and that every contender runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def timing(scripts: None) -> ModuleType:
    return importlib.import_module("timing")


@pytest.fixture
def results(scripts: None) -> ModuleType:
    return importlib.import_module("benchmarks.results")


@pytest.fixture
def tables(scripts: None) -> ModuleType:
    return importlib.import_module("benchmarks.tables")


class Clock:
    """A clock that runs do not read but move: each takes what it says, and all alike are slowed in some rounds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: Sequence[float]) -> Any:
        """A run that takes the next of these seconds each time."""
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0)

        return run


def test_contenders_take_turns_and_each_other_round_is_reversed(timing: ModuleType) -> None:
    clock = Clock()
    runs = {name: clock.takes(name, [1] * 9) for name in "abc"}
    timing.alternate(runs, rounds=3, warmup=1, clock=clock)
    assert "".join(clock.calls) == "cba" + "abc" + "cba" + "abc"


def test_medians_quartiles_and_warming_up(timing: ModuleType) -> None:
    clock = Clock()
    runs = {"a": clock.takes("a", [100, 1, 5, 2, 4, 3]), "b": clock.takes("b", [100, 10, 10, 10, 10, 70])}
    a, b = timing.alternate(runs, rounds=5, warmup=1, clock=clock).values()
    assert a.seconds == (1, 5, 2, 4, 3)
    assert (a.median, a.quartiles, a.fastest) == (3, (2, 4), 1)
    assert (b.median, b.quartiles) == (10, (10, 10))
    assert timing.Timing((2.0,)).quartiles == (2, 2)


def test_a_ratio_is_by_round_so_that_a_slow_phase_of_the_machine_falls_out(timing: ModuleType) -> None:
    """Everything takes nine times as long in the last rounds: medians of one or the other may lie on either side."""
    phases = [1, 1, 9, 9]
    a, b = timing.Timing(tuple(2.0 * phase for phase in phases)), timing.Timing(tuple(1.0 * phase for phase in phases))
    assert a.over(b) == 2
    assert b.over(a) == 0.5


def test_no_round_begins_after_the_limit(timing: ModuleType) -> None:
    clock = Clock()
    runs = {name: clock.takes(name, [3] * 99) for name in "ab"}
    times = timing.alternate(runs, rounds=10, warmup=0, limit=10, clock=clock)
    assert [len(each.seconds) for each in times.values()] == [2, 2]
    times = timing.alternate(runs, rounds=10, warmup=0, limit=1, least=4, clock=clock)
    assert [len(each.seconds) for each in times.values()] == [4, 4]


def test_a_lap_tells_its_own_time(timing: ModuleType) -> None:
    clock = Clock()

    def lap() -> Any:
        clock.now += 7
        return timing.Lap(0.5)

    times = timing.alternate({"a": clock.takes("a", [2, 2]), "lap": lap}, 2, 0, clock=clock)
    assert times["a"].seconds == (2, 2)
    assert times["lap"].seconds == (0.5, 0.5)


def test_peaks_of_memory(timing: ModuleType) -> None:
    def run() -> torch.Tensor:
        kept = torch.zeros(1000, 1000)
        torch.zeros(2000, 1000)
        return kept

    assert timing.peak_bytes(run) == 3_000_000 * 4

    def held() -> None:
        kept = torch.ones(100_000_000)
        time.sleep(0.5)  # the peak is looked at now and then, and on a busy machine less often
        assert kept[-1] == 1

    assert 300e6 < timing.process_peak(held) < 600e6


def record(results: ModuleType, name: str, **seconds: list[float]) -> Any:
    """A case of Grad-CAM with these seconds of each contender."""
    kinds = {"torchviz_cnn": "ours", "forward": "floor"}
    entries = [results.Entry(who, kinds.get(who, "peer"), times, peak=2**20) for who, times in seconds.items()]
    return results.Record("grad_cam", name, "call", entries)


def test_ratios_are_to_the_best_peer_and_losses_are_said(results: ModuleType, tables: ModuleType) -> None:
    lost = record(results, "lost", forward=[0.5], torchviz_cnn=[3.0], captum=[2.0], torchcam=[9.0])
    close = record(results, "close", forward=[0.5], torchviz_cnn=[1.05], captum=[1.0])
    won = record(results, "won", forward=[0.5], torchviz_cnn=[1.0], captum=[2.0])
    alone = record(results, "alone", forward=[0.5], torchviz_cnn=[1.0])
    assert tables.against_peer(lost) == "1.50 (captum)"
    assert tables.against_peer(alone) == ""
    clear, near = tables.losses([won, close, lost, alone])
    assert clear.startswith("Of 6 times and peaks of memory that are compared with the best peer's, 1 is more than a")
    assert clear.endswith(":\n\n- lost, to captum: 1.50")
    assert near == "1 is above it by a tenth at most:\n\n- close, to captum: 1.05"
    text = tables.section([lost, alone])
    assert "| lost  | 500 (500 to 500) | 3000 (3000 to 3000)" in text
    assert "6.00" in text  # to the forward pass


def test_the_file_of_a_run_goes_on_and_is_not_that_of_another(results: ModuleType, tmp_path: Path) -> None:
    tasks = importlib.import_module("benchmarks.tasks")
    path = tmp_path / "results.json"
    first = results.Results(path, {"rounds": 5})
    kept = results.Record("growth", "one", "call", [results.Entry("torchviz_cnn", "ours", [1.0])], ("classes", 2))
    first.add(kept)
    again = results.Results(path, {"rounds": 5})
    assert again.records == [kept]
    assert again.has(tasks.Case("growth", "one", tuple))
    assert not again.has(tasks.Case("memory", "one", tuple))
    with pytest.raises(ValueError, match="rounds differ"):
        results.Results(path, {"rounds": 7})


def test_a_peer_that_is_not_installed_is_left_out(scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = importlib.import_module("benchmarks.tasks")
    task = tasks.Task()
    task.add("torchviz_cnn", "ours")(lambda setting: lambda: setting)
    task.peer("no-such-package")(lambda setting: pytest.fail("it is not installed"))
    task.peer("by hand, batched")(lambda setting: lambda: setting)
    assert [one.name for one in task.contenders(1)] == ["torchviz_cnn", "by hand, batched"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["grad_can"], "no section 'grad_can'; there are grad_cam, family"),
        (["--set", "filter=3"], "no size 'filter'; there are batches"),
        (["--set", "filters=x"], "filters takes whole numbers, not 'x'"),
        (["--set", "filters=1,2"], "filters takes one number above 0"),
        (["--rounds", "0"], "--rounds is at least 1, not 0"),
        (["--weights", "nowhere"], "nowhere is no folder"),
    ],
)
def test_mistakes(scripts: None, capsys: pytest.CaptureFixture[str], given: list[str], problem: str) -> None:
    script = importlib.import_module("benchmark")
    with pytest.raises(SystemExit) as ended:
        script.main(given)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_measured(
    scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, tasks = (importlib.import_module(name) for name in ("benchmark", "benchmarks.tasks"))
    ran: list[str] = []

    def contenders(name: str) -> list[Any]:
        ran.append(name)
        if name == "second" and len(ran) == 2:
            raise KeyboardInterrupt
        return [tasks.Contender("torchviz_cnn", "ours", lambda: None)]

    def cases(options: object) -> Iterator[Any]:
        for name in ("first", "second"):
            yield tasks.Case("capture", name, lambda name=name: contenders(name))

    monkeypatch.setattr(script, "SECTIONS", {"capture": cases})
    command = ["--quick", "--json", str(tmp_path / "results.json"), "--markdown", str(tmp_path / "page.md")]
    (tmp_path / "page.md").write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    assert script.main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [one["case"] for one in json.loads((tmp_path / "results.json").read_text())["records"]] == ["first"]
    assert script.main(command) == 0
    assert ran == ["first", "second", "second"]
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(f"before\n{script.BEGIN}\n")
    assert page.endswith(f"\n{script.END}\nafter\n")
    assert "| second" in page
    assert "old" not in page


@pytest.mark.slow
def test_all_sections_run_and_peers_agree(scripts: None, tmp_path: Path) -> None:
    """A process of its own, as some peers change PyTorch for the whole process."""
    script, tasks = (importlib.import_module(name) for name in ("benchmark", "benchmarks.tasks"))
    out, figure = tmp_path / "results.json", tmp_path / "growth.png"
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--quick", "--json", str(out), "--figure", str(figure)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads(out.read_text())["records"]
    assert {one["section"] for one in records} == set(script.SECTIONS)
    entries = [entry for one in records for entry in one["entries"]]
    assert all(entry["seconds"] or entry["peak"] for entry in entries)
    names = {entry["name"].partition(",")[0] for entry in entries if entry["kind"] == "peer"}
    assert names == {"by hand"} | {name for name in tasks.PEERS if tasks.version(name)}
    compared = [(entry["difference"], entry["name"], one["case"]) for one in records for entry in one["entries"]
                if entry["difference"] is not None]  # fmt: skip
    assert len(compared) >= 4
    assert max(compared)[0] < 1e-4, max(compared)
    assert figure.stat().st_size > 10_000
    assert "### Growth of memory" in done.stdout
