"""Ranks share the photos and come to the files of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import torchviz_cnn as tvc
from tests.runs.test_ranks import torchrun
from tests.surveys.generated import PREPARE, network, photos
from tests.surveys.test_folder import contents
from tests.topk.test_ranks import Together
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.surveys.maps import Explainer
from torchviz_cnn.surveys.passes import Classes, Look, State, run_pass

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_together_come_to_what_one_has_alone(count: int, tmp_path: Path) -> None:
    source = ImageSource(photos(tmp_path / "photos", 23), PREPARE)

    saved = list[int]()
    nets = [network() for _ in range(count)]  # made here, as threads share the random state

    def work(ranks: Ranks) -> State:
        explainer = Explainer(nets[ranks.rank], "grad_cam", "4")
        state = State()
        look = Look(explainer, source, Classes(of_labels={0: 0, 1: 1, 2: 2}))
        run_pass(look, state, ranks, partial(saved.append, ranks.rank), batch_size=3, workers=0, save_every=2)
        return state

    def shared(count: int) -> list[State]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(work, Together(count).ranks()))

    (alone,) = shared(1)
    saved.clear()
    states = shared(count)
    assert set(saved) == {0}  # the first rank alone writes
    for state in states:
        assert state.done == alone.done == 23
        for name in alone.columns:
            np.testing.assert_array_equal(state.column(name), alone.column(name))
        for number, cells in alone.cells.items():
            np.testing.assert_array_equal(state.cells[number], cells)
        np.testing.assert_array_equal(state.coverage, alone.coverage)


@pytest.mark.slow
def test_one_and_two_ranks_write_the_same_files(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 20, ("cat", "dog"))
    (folder / "cat" / "broken.png").write_bytes(b"no picture")
    for count in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
        command = [sys.executable, *launcher, "-m", "torchviz_cnn", "survey", str(folder), "--model", "cats_and_dogs"]
        command += ["--batch-size", "3", "--k", "2", "--workers", "0", "--out", str(tmp_path / str(count))]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == (count == 1), done.stderr  # torchrun would take 1 for a failed run
        assert done.stdout.count("20 photos, 1 left out") == 1  # the first rank alone speaks
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


DIES = """
import os, signal
import torch
import torchviz_cnn as tvc
from tests.surveys.generated import PREPARE, network
from torchviz_cnn.runs.ranks import joined

torch.set_num_threads(1)
calls = 0

def dies(module, args):
    global calls
    calls += 1
    if ranks.rank == 1 and calls == CALLS:
        os.kill(os.getpid(), signal.SIGKILL)

net = network()
net.model.register_forward_pre_hook(dies)
with joined() as ranks:
    tvc.survey(net, "photos", layer="4", k=2, batch_size=2, save_every=3, workers=0, out="shared")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_survey_goes_on_after_a_rank_died(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 40)
    started = time.monotonic()
    run = torchrun(DIES.replace("CALLS", "6"), 3, tmp_path)
    _, said = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "SIGKILL" in said or "-9" in said
    assert time.monotonic() - started < 100
    progress = json.loads((tmp_path / "shared" / "manifest.json").read_text())["progress"]
    assert 0 < progress["photos"] < 40
    run = torchrun(DIES.replace("CALLS", "0"), 2, tmp_path)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    tvc.survey(network(), folder, layer="4", k=2, batch_size=2, workers=0, out=tmp_path / "alone")
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")
