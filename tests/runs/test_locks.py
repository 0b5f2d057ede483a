"""A folder of results belongs to one run at a time; what is killed leaves it to the next."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from torchviz_cnn.core.errors import OutputError, TorchvizWarning
from torchviz_cnn.runs import locks
from torchviz_cnn.runs.folder import MANIFEST, ResultFolder
from torchviz_cnn.runs.locks import LOCK, OWNER, locked

OTHER = """
import sys, time
from pathlib import Path
from torchviz_cnn.runs.locks import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
"""Another process that has a folder until it is killed."""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_another_process_is_named_and_its_death_opens_the_folder(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT", 0.1)
    name = rf"in use by process {other.pid} on .*, since 2.*: wait for that run"
    with pytest.raises(OutputError, match=name), ResultFolder.run(tmp_path, "top", {}):
        pass
    for text in ("", "[]", "{}", '{"process": "x", "host": 1}'):  # it is just written, or of another version
        (tmp_path / OWNER).write_text(text)
        with pytest.raises(OutputError, match="in use by another process"), locked(tmp_path, wait=0):
            pass
    assert not (tmp_path / MANIFEST).exists()
    monkeypatch.setattr(locks, "UNTOLD", 600.0)
    threading.Timer(0.3, other.kill).start()
    with locked(tmp_path, wait=20):  # which is while it waits
        assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_that_another_run_is_waited_for_is_told(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "UNTOLD", 0.0)
    words = rf"is in use by process {other.pid} on .*: it is waited for, up to 0\.1 s more$"
    with (
        pytest.warns(TorchvizWarning, match=words),
        pytest.raises(OutputError, match="wait for that run"),
        locked(tmp_path, wait=0.1),
    ):
        pass


def test_a_thread_has_it_twice_and_another_thread_not(tmp_path: Path) -> None:
    told = list[str]()

    def attempt() -> None:
        try:
            with locked(tmp_path, wait=0.05):
                told.append("locked")
        except OutputError as error:
            told.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert (tmp_path / OWNER).exists()
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(told) == 1
    assert f"in use by process {os.getpid()}" in told[0]
    attempt()
    assert told[1] == "locked"


def test_what_is_refused_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="is not empty"), ResultFolder.run(tmp_path, "top", {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with ResultFolder.run(tmp_path / "new", "top", {"k": 1}) as folder:
        folder.save("a", {"x": torch.ones(1)})
    with pytest.raises(OutputError, match="its k is 1"), ResultFolder.run(tmp_path / "new", "top", {"k": 2}):
        pass
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [LOCK, "a.safetensors", MANIFEST]
    with (
        pytest.raises(OutputError, match="cannot write results"),
        ResultFolder.run(tmp_path / "thesis.txt" / "a", "top", {}),
    ):
        pass


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EROFS, False)])
def test_a_file_system_without_locks_is_logged(
    number: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", fails)
    entered = list[int]()
    with caplog.at_level(logging.INFO, "torchviz_cnn"):
        if goes_on:
            with locked(tmp_path):
                entered.append(1)
            assert entered
            assert "is not locked against other runs" in caplog.text
        else:
            with pytest.raises(OutputError, match="Read-only file system"), locked(tmp_path):
                pass
