"""What goes wrong around a run costs nothing of what it has: a full disk, a second process on its folder."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import torchviz_cnn as tvc
from tests import networks
from tests.topk.test_folder import LAYERS, StopsAt, photos, same_files
from tests.topk.test_ranks import start
from torchviz_cnn.core.errors import OutputError
from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.topk.passes import RunState


class Calls(StopsAt):
    """A dataset that does something the n-th time that an image is read."""

    def __init__(self, images: Tensor, number: int, action: Callable[[], object]) -> None:
        super().__init__(images)
        self.number, self.action = number, action

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.read == self.number:
            self.action()
        return super().__getitem__(index)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """A file system of a megabyte; how it is filled, and emptied."""
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("file systems cannot be mounted here")

    def fill() -> None:
        with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(512))

    try:
        yield fill, (folder / "filler").unlink
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_files(folder: Path) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """How the size of files is limited, and is not any more, as by a quota."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def end() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1])), end
    finally:
        end()


@pytest.mark.parametrize(("disk", "words"), [(small_disk, "No space left"), (small_files, "File too large")])
@pytest.mark.parametrize("number", [20, 45, 60])
def test_a_full_disk_ends_the_run_and_what_is_done_is_kept(number: int, disk: Any, words: str, tmp_path: Path) -> None:
    """Before the first state is written, between two, and before the result is, of which candidates are read again."""
    images, model = networks.images(33), networks.vgg_like()
    how: Any = {"batch_size": 4, "save_every": 2, "exact": True}
    tvc.top_activations(model, StopsAt(images), LAYERS, 4, out=tmp_path / "whole", **how)
    with disk(tmp_path / "disk") as (fill, empty):
        out = tmp_path / "disk" / "part"
        with pytest.raises(OutputError, match=rf"cannot write .*part.*: {words}") as caught:
            tvc.top_activations(model, Calls(images, number, fill), LAYERS, 4, out=out, **how)
        assert "\n" not in str(caught.value)
        folder = ResultFolder.read(out, "top")
        done = folder.manifest["progress"].get("images", 0)
        assert done == (RunState.load(folder).done if folder.has("state") else 0)
        assert not list(out.glob("*.part"))
        empty()
        rest = StopsAt(images)
        tvc.top_activations(model, rest, LAYERS, 4, out=out, **how)
        assert same_files(tmp_path / "whole", out)
        assert {20: 0, 45: 24, 60: 33}[number] == done


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_of_two_processes_that_start_on_one_folder_one_has_it(tmp_path: Path) -> None:
    folder, one = photos(tmp_path / "photos", 100), tmp_path / "one"
    alone, *both = [start(folder, tmp_path / name, 1, "--save-every", "2") for name in ("alone", "one", "one")]
    while not (one / "state.safetensors").exists() and both[0].poll() is None:
        time.sleep(0.01)
    owner = json.loads((one / ".lock.json").read_text())["process"]
    both.sort(key=lambda run: run.pid != owner)
    both[0].send_signal(signal.SIGSTOP)
    said, _ = both[1].communicate(timeout=120)
    assert both[1].returncode == 2
    assert f"is in use by process {owner} on " in said.splitlines()[-1]
    both[0].send_signal(signal.SIGCONT)
    assert both[0].wait(timeout=300) == alone.wait(timeout=300) == 0
    assert same_files(tmp_path / "alone", one)
    assert json.loads((one / "manifest.json").read_text())["progress"]["images"] == 100
