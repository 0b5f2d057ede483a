"""Ranks share a dataset and come to the answer of one process; one that dies ends the run, and what is done is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import torchviz_cnn as tvc
from tests import networks
from tests.topk.test_folder import photos, same_files
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.exact import in_exact_order
from torchviz_cnn.topk.passes import RunState, probe, run_pass
from torchviz_cnn.topk.pieces.sums import Sums
from torchviz_cnn.topk.tally import Candidates

ROOT = Path(__file__).parents[2]


class Together:
    """What several threads tell each other, each in the place of a process."""

    def __init__(self, count: int) -> None:
        self.barrier, self.values = threading.Barrier(count), [None] * count

    def ranks(self) -> list[Ranks]:
        return [_Thread(rank, len(self.values), "cpu", self) for rank in range(len(self.values))]


@dataclass(frozen=True)
class _Thread(Ranks):
    together: Any = None

    def gather(self, value: Any) -> list[Any]:
        self.together.values[self.rank] = value
        self.together.barrier.wait(60)
        values = list(self.together.values)
        self.together.barrier.wait(60)
        return values


def run_shared(source: ImageSource, count: int, exact: bool) -> list[dict[str, Candidates | Sums]]:
    """What each of several ranks has in the end."""

    models = [networks.vgg_like() for _ in range(count)]

    def work(ranks: Ranks) -> dict[str, Candidates | Sums]:
        with untouched(models[ranks.rank]) as model:
            state = RunState.new(probe(model, source, ["features.1", "features.8"]), 6)
            run_pass(model, source, state, ranks, batch_size=3, save_every=4)
            kept = {layer: tally.activation.candidates for layer, tally in state.tallies.items()}
            kept = in_exact_order(model, source, kept, ranks, 0) or {} if exact else kept
        return {**kept, **{f"sums of {layer}": tally.sums for layer, tally in state.tallies.items()}}

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, Together(count).ranks()))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_ranks_together_come_to_what_one_has_alone(count: int, exact: bool) -> None:
    images = torch.cat([networks.images(9), networks.images(9), networks.images(5, seed=3)])  # with ties
    source = ImageSource([(image, i % 4) for i, image in enumerate(images)])
    (alone,) = run_shared(source, 1, exact)
    for shared in run_shared(source, count, exact):
        for key, whole in alone.items():
            for name, tensor in vars(whole).items():
                assert torch.equal(tensor, vars(shared[key])[name]), (key, name)


def start(folder: Path, out: Path, count: int, *more: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    network = ["--model", "cats_and_dogs", "--layers", "conv1", "relu3"]
    command = [sys.executable, *launcher, "-m", "torchviz_cnn", "top", str(folder), *network]
    return subprocess.Popen(
        [*command, "--k", "4", "--workers", "0", "--batch-size", "2", "--pages", "0", "--out", str(out), *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.slow
def test_one_two_and_three_ranks_write_the_same_files(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 25, broken=4)
    for count in (1, 2, 3):
        run = start(folder, tmp_path / str(count), count, "--save-every", "3")
        out, _ = run.communicate(timeout=300)
        assert run.returncode == (count == 1), out  # torchrun would take 1 for a failed run
        assert out.count("25 photos, 1 of them not readable") == 1  # the first rank alone speaks
        assert same_files(tmp_path / "1", tmp_path / str(count))
    run = start(folder, tmp_path / "3", 2, "--k", "5")
    out, _ = run.communicate(timeout=300)
    assert run.returncode != 0
    assert "its k is 4, this one's is 5" in out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads what processes run from /proc")
def test_a_rank_that_dies_ends_the_run_and_what_is_done_is_kept(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 200)
    run = start(folder, tmp_path / "whole", 1, "--save-every", "3")
    assert run.wait(timeout=300) == 0
    run = start(folder, tmp_path / "part", 3, "--save-every", "3")
    state = tmp_path / "part" / "state.safetensors"
    while not state.exists() and run.poll() is None:
        time.sleep(0.02)
    ranks = [int(p) for p in _children(run.pid)]
    os.kill(max(ranks), signal.SIGKILL)
    started = time.monotonic()
    out, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    assert time.monotonic() - started < 60
    assert "SIGKILL" in out or "-9" in out
    done = json.loads((tmp_path / "part" / "manifest.json").read_text())["progress"]["images"]
    assert 0 < done < 200
    run = start(folder, tmp_path / "part", 2, "--save-every", "3")
    assert run.wait(timeout=300) == 0
    assert same_files(tmp_path / "whole", tmp_path / "part")
    assert tvc.TopActivations.load(tmp_path / "part").count == 200


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
