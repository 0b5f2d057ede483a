"""Processes that share a run: each knows its place, all hear the same, and none waits for one that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed

from torchviz_cnn.core.errors import InputError, RankError
from torchviz_cnn.runs.ranks import Ranks, joined

ROOT = Path(__file__).parents[2]


def torchrun(script: str, count: int, tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """Start a script in `count` processes; `-u` so that what one printed before it died is there."""
    file = tmp_path / "ranked.py"
    file.write_text(script)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        *options,
        str(file),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
    )


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cuda:3") as ranks:
        assert ranks == Ranks(0, 1, "cuda:3")
        assert ranks.first
        assert not distributed.is_initialized()
        assert ranks.gather({"a": 1}) == [{"a": 1}]
        ranks.gather(None)
        assert ranks.once(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            ranks.once(lambda: 1 // 0)


def test_an_environment_that_makes_no_sense_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="WORLD_SIZE is 'many'"), joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="RANK is ''"), joined():
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(InputError, match=r"process 99 .* no CUDA device"), joined("cuda"):
        pass


def test_a_group_that_the_caller_made_is_used_and_left(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with joined("meta") as ranks:
            assert ranks == Ranks(0, 1, "meta")
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads a process's threads from /proc")
def test_no_thread_of_the_group_is_left(tmp_path: Path) -> None:
    """A thread that is left may abort the process as it ends: PyTorch then takes a finished run for a failed one."""
    script = """
from pathlib import Path
import torch
import torchviz_cnn as tvc
from torchviz_cnn.runs.ranks import joined

def threads():
    return [place.read_text().strip() for place in Path("/proc/self/task").glob("*/comm")]

with joined() as ranks:
    ranks.gather(ranks.rank)
    tvc.filter_patterns(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), "0", [0], size=8, steps=1)
    assert any("gloo" in name for name in threads()), threads()
print([name for name in threads() if "gloo" in name])
"""
    run = torchrun(script, 2, tmp_path)
    out, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert out.splitlines() == ["[]", "[]"]


@pytest.mark.slow
def test_ranks_gather_in_order_and_share_errors(tmp_path: Path) -> None:
    script = """
import torch.distributed
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.runs.ranks import joined

def fail():
    raise LayerError("only the first says so")

with joined() as ranks:
    assert ranks.gather(ranks.rank * 10) == [0, 10, 20] and ranks.count == 3 and ranks.device == "cpu"
    assert ranks.once(lambda: "written") == ("written" if ranks.first else None)
    ranks.gather(None)
    for attempt in (lambda: ranks.once(fail), lambda: ranks.agree(LayerError("mine") if ranks.rank == 1 else None)):
        try:
            attempt()
        except LayerError as error:
            print(f"rank {ranks.rank}: {error}\\n", end="")
        else:
            raise SystemExit("not told")
assert not torch.distributed.is_initialized()
"""
    run = torchrun(script, 3, tmp_path)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    expected = [f"rank {r}: {text}" for r in range(3) for text in ("only the first says so", "mine")]
    assert sorted(out.splitlines()) == sorted(expected)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_rank_that_dies_ends_the_others_with_one_clear_line(tmp_path: Path) -> None:
    script = """
import os, signal, time
from torchviz_cnn.core.errors import RankError
from torchviz_cnn.runs.ranks import joined

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun would end the others before they notice
with joined() as ranks:
    ranks.gather(None)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        ranks.gather(ranks.rank)
    except RankError as error:
        print(f"rank {ranks.rank} heard: {error}\\n", end="")
        os._exit(3)
"""
    started = time.monotonic()
    run = torchrun(script, 3, tmp_path)
    out, err = run.communicate(timeout=120)
    assert run.returncode != 0
    assert time.monotonic() - started < 60
    heard = [line for line in out.splitlines() if "heard" in line]
    assert len(heard) == 2, out + err
    assert all("cannot reach the others" in line and "is kept" in line for line in heard)
    assert "SIGKILL" in err or str(int(signal.SIGKILL)) in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_values_are_told_over_nccl_too(tmp_path: Path) -> None:
    """In a group of the caller's, of one process, without the short way that a single rank takes."""
    script = """
import os, torch
from torch import distributed, nn
import torchviz_cnn as tvc
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.runs.ranks import Ranks

def fail():
    raise LayerError("what is wrong")

told = []
distributed.init_process_group("nccl", init_method=f"file://{os.getcwd()}/store", rank=0, world_size=1)
one = Ranks(0, 1, "cuda:0")
assert Ranks._gathered(one, {"a": torch.ones(2), "b": [None, "text"]})[0]["a"].tolist() == [1, 1]
Ranks.gather = lambda self, value: (told.append(value), self._gathered(value))[1]
assert one.once(lambda: "written") == "written"
with one.agreeing():
    pass
try:
    one.once(fail)
except LayerError as error:
    assert str(error) == "what is wrong"
else:
    raise SystemExit("not told")
assert len(told) == 3
torch.manual_seed(0)
model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).cuda(), torch.rand(20, 3, 16, 16)
top = tvc.top_activations(model, images, ["1"], k=3, batch_size=4, save_every=2, out="top", exact=True)
assert top.count == 20 and len(told) > 6
survey = tvc.survey(nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images, truth="none", k=1, layer="0.0")
assert len(survey) == 20
assert distributed.is_initialized()
distributed.destroy_process_group()
print("told")
"""
    (tmp_path / "alone.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "alone.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "told\n", done.stderr


def test_rank_errors_are_runtime_errors() -> None:
    assert issubclass(RankError, RuntimeError)
