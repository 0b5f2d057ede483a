"""Worker processes: those that are started anew, as on macOS and Windows, and what forked ones leave alone."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

import torchviz_cnn as tvc
from torchviz_cnn.cli.main import main
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.runs import workers as processes

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
SCRIPT = """
import multiprocessing, torch
import torchviz_cnn as tvc
def work():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU())
    net = tvc.Network(model, tvc.Preprocess((16, 16), "stretch", window=(0, 9)))
    return tvc.top_activations(net, "photos", ["0"], k=2, batch_size=2, workers={workers})
{guard}
    if multiprocessing.current_process().name == "MainProcess":
        multiprocessing.set_start_method("spawn", force=True)
    print("count", work().count)
"""


def ran(folder: Path, guard: str, workers: int | None) -> subprocess.CompletedProcess[str]:
    (folder / "photos").mkdir()
    for i in range(5):
        Image.new("RGB", (20, 20), (50 * i, 9, 9)).save(folder / "photos" / f"{i}.png")
    (folder / "script.py").write_text(SCRIPT.format(guard=guard, workers=workers))
    command = [sys.executable, "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


@pytest.mark.slow
def test_a_script_with_a_guard_gets_its_answer(tmp_path: Path) -> None:
    assert ran(tmp_path, "if __name__ == '__main__':", 1).stdout == "count 5\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 2])
def test_a_script_without_one_is_told_or_runs_without_workers(workers: int | None, tmp_path: Path) -> None:
    result = ran(tmp_path, "if True:", workers)
    if workers is None:
        assert result.stdout == "count 5\n"
    else:
        assert "workers=0" in result.stderr.splitlines()[-1]
        assert result.stderr.count("Traceback") == 1


def test_whether_workers_can_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    main: Any = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.setattr(main, "__file__", str(tmp_path / "script.py"), raising=False)
    (tmp_path / "script.py").write_text("print(1)")
    monkeypatch.setattr(processes, "starts_by_fork", lambda: True)
    assert processes.checked_workers(None, 3) == 3
    monkeypatch.setattr(processes, "starts_by_fork", lambda: False)
    assert processes.checked_workers(None, 3) == 0
    assert processes.checked_workers(0, 3) == 0
    with pytest.raises(InputError, match="workers=0"):
        processes.checked_workers(2, 3)
    (tmp_path / "script.py").write_text("if __name__ == '__main__':\n    print(1)")
    assert processes.checked_workers(2, 3) == 2
    (tmp_path / "script.py").unlink()
    assert processes.checked_workers(2, 3) == 2


class Broken:
    num_workers = 1

    def __init__(self, at_start: Exception | None, later: Exception | None = None, count: int = 0) -> None:
        self.at_start, self.later, self.count = at_start, later, count

    def __iter__(self) -> Any:
        if self.at_start is not None:
            raise self.at_start
        return self.batches()

    def batches(self) -> Any:
        yield from range(self.count)
        raise self.later or StopIteration


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (Broken(AttributeError("Can't get local object 'f.<locals>.D'")), "cannot be sent to worker processes"),
        (Broken(RuntimeError("bootstrapping phase")), "__main__.*workers=0"),
        (Broken(BrokenPipeError("broken")), "__main__.*workers=0"),
        (Broken(None, RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")), "__main__.*workers=0"),
    ],
)
def test_workers_that_did_not_start_are_one_line(loader: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(processes._from_started(loader))


class Deadly:
    """Images of which one ends the worker process that reads it."""

    def __init__(self, how: int | None) -> None:
        self.how = how

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        if index == 25 and get_worker_info() is not None:
            if self.how is None:
                os._exit(3)
            os.kill(os.getpid(), self.how)
        return torch.full((3, 8, 8), index / 40)


DEATHS = [
    (signal.SIGKILL, "was ended by the signal 'Killed', most likely by the system as memory ran out"),
    (signal.SIGBUS, r"was ended by the signal 'Bus error', most likely as shared memory \(/dev/shm\) ran out"),
    (signal.SIGTERM, "was ended by the signal 'Terminated'"),
    (None, "ended with exit code 3"),
]
MODEL = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.skipif(not processes.starts_by_fork(), reason="workers here are started anew")
@pytest.mark.parametrize(("how", "words"), DEATHS)
def test_a_worker_that_dies_is_named_with_what_is_saved(how: int | None, words: str, tmp_path: Path) -> None:
    def mined(out: Path | None, workers: int) -> Any:
        return tvc.top_activations(MODEL, Deadly(how), ["1"], out=out, batch_size=2, workers=workers, save_every=3)

    def surveyed(out: Path, workers: int) -> Any:
        return tvc.survey(MODEL, Deadly(how), out=out, batch_size=2, workers=workers, save_every=3)

    ends = "fewer workers take less memory, and workers=0 starts none$"
    begins = rf"^the process \d+, which reads photos, {words}"
    with pytest.raises(tvc.WorkerError, match=f"{begins}: nothing is saved, as no out= is given; {ends}"):
        mined(None, 2)
    saved = rf"{begins}: (\d+) of 40 images are saved, and the same call goes on with the next; {ends}"
    for run, what in ((mined, "images"), (surveyed, "photos")):
        with pytest.raises(tvc.WorkerError, match=saved) as error:
            run(tmp_path / what, 2)
        progress = json.loads((tmp_path / what / "manifest.json").read_text())["progress"]
        assert re.findall(saved, str(error.value)) == [str(progress[what])]
        assert 0 < progress[what] <= 24
        run(tmp_path / what, 0)


@pytest.mark.skipif(not processes.starts_by_fork(), reason="workers here are started anew")
def test_the_command_line_says_it_in_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stored(self: tvc.PhotoFolder, index: int) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    read = tvc.PhotoFolder.stored
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.new("RGB", (20, 20), (50 * i, 9, 9)).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.setattr(tvc.PhotoFolder, "stored", stored)
    line = ["--model", "cats_and_dogs", "--workers", "1", "--batch-size", "2", "--out", str(tmp_path / "out")]
    assert main(["top", str(tmp_path / "photos"), "--layers", "relu1", *line]) == 2
    (said,) = (one for one in capsys.readouterr().err.splitlines() if "error:" in one)
    assert said.startswith("torchviz-cnn: error: the process ")
    assert said.endswith(
        "was ended by the signal 'Killed', most likely by the system as memory ran out: 0 of 5 images are saved, and "
        "the same call goes on with the next; fewer workers take less memory, and --workers 0 starts none"
    )


@pytest.mark.parametrize("lost", [ConnectionResetError("reset"), EOFError()])
def test_a_worker_that_dies_while_its_batch_is_taken_over_is_named(
    lost: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch gives the error of the connection then."""
    worker = multiprocessing.get_context("fork").Process(target=os._exit, args=(3,))
    alive = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    alive.start()
    with pytest.raises(tvc.WorkerError, match=f"^the process {worker.pid}, .* ended with exit code 3$"):
        list(processes._taken_over(Broken(None, lost).batches(), [alive, worker]))
    monkeypatch.setattr(processes, "_DYING", 0.1)
    with pytest.raises(type(lost)):
        list(processes._taken_over(Broken(None, lost).batches(), [alive]))
    alive.kill()
    alive.join()


def test_a_worker_that_dies_later_was_started() -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="is killed by signal"):
        list(processes._from_started(Broken(None, error, 1)))  # type: ignore[arg-type]


def test_other_errors_of_workers_stay_as_they_are() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(processes._from_started(Broken(None, torch.OutOfMemoryError("out of memory"))))  # type: ignore[arg-type]


class _FreedInACopy:
    """Ends a process that frees it and did not make it, as CUDA does with what is pinned or on a GPU."""

    def __init__(self) -> None:
        self.maker, self.itself = os.getpid(), self

    def __del__(self) -> None:
        if os.getpid() != self.maker:
            os._exit(3)


class _MakesGarbage(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if get_worker_info() is not None:
            gc.collect()
        return torch.full((3, 8, 8), float(index))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
def test_workers_free_nothing_that_they_were_given() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    gc.disable()  # so that it is still there when the copies are made
    try:
        _FreedInACopy()
        top = tvc.top_activations(model, _MakesGarbage(), ["1"], k=2, batch_size=2, workers=2)
    finally:
        gc.enable()
    assert top.count == 8
