"""Worker processes: those that are started anew, as on macOS and Windows, and what forked ones leave alone."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.topk import reading

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
    monkeypatch.setattr(reading, "starts_by_fork", lambda: True)
    assert reading.checked_workers(None, 3) == 3
    monkeypatch.setattr(reading, "starts_by_fork", lambda: False)
    assert reading.checked_workers(None, 3) == 0
    assert reading.checked_workers(0, 3) == 0
    with pytest.raises(InputError, match="workers=0"):
        reading.checked_workers(2, 3)
    (tmp_path / "script.py").write_text("if __name__ == '__main__':\n    print(1)")
    assert reading.checked_workers(2, 3) == 2
    (tmp_path / "script.py").unlink()
    assert reading.checked_workers(2, 3) == 2


class Broken:
    num_workers = 1

    def __init__(self, at_start: Exception | None, later: Exception | None = None) -> None:
        self.at_start, self.later = at_start, later

    def __iter__(self) -> Any:
        if self.at_start is not None:
            raise self.at_start
        return self.batches()

    def batches(self) -> Any:
        yield 1
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
        list(reading._from_started(loader))


def test_other_errors_of_workers_stay_as_they_are() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(reading._from_started(Broken(None, torch.OutOfMemoryError("out of memory"))))  # type: ignore[arg-type]


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
