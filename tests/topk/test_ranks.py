"""Ranks share a dataset and come to the answer of one process; one that dies ends the run, and what is done is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import torchviz_cnn as tvc
from tests import networks
from tests.topk.test_folder import photos, same_files
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.passes import State, _join, _plain, probe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_join_to_the_whole_whoever_found_them(count: int) -> None:
    """Several ranks in turn in one process: what each finds, joined, is what one finds, to the last bit."""
    from torchviz_cnn.hooks.manager import HookManager
    from torchviz_cnn.media.dataset import ImageSource
    from torchviz_cnn.topk.passes import _collector, run_pass

    images = torch.cat([networks.images(9), networks.images(9), networks.images(5, seed=3)])  # with ties
    source = ImageSource([(image, i % 4) for i, image in enumerate(images)])
    with untouched(networks.vgg_like()) as lent:
        found = probe(lent, source, ["features.1", "features.8"])
        whole, shared = State.new(found, 6), State.new(found, 6)
        run_pass(lent, source, whole, batch_size=3, workers=0, save_every=4, ranks=Ranks(), save=None, progress=False)
        for first in range(0, 8, 4):
            parts: list[tuple[Any, dict[int, str]]] = []
            for rank in range(count):
                collector = _collector(lent, shared, torch.device("cpu"))
                with torch.no_grad(), HookManager(lent) as hooks:
                    hooks.on_forward(list(shared.tallies), collector.take)
                    for number in [n for n in range(first, first + 4) if n % count == rank]:
                        places = torch.arange(number * 3, min(number * 3 + 3, 23))
                        collector.begin(number, places, [int(i) % 4 for i in places])
                        hooks.run(images[places])
                parts.append((_plain(collector), {}))
            _join(shared, parts[::-1])
    for layer, tally in whole.tallies.items():
        for name, tensor in tally.tensors(layer).items():
            assert torch.equal(tensor, shared.tallies[layer].tensors(layer)[name]), name


def start(folder: Path, out: Path, count: int, *more: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *launcher, "-m", "torchviz_cnn", "top", str(folder), "--layers", "conv1", "relu3"]
    return subprocess.Popen(
        [*command, "--k", "4", "--workers", "0", "--batch-size", "2", "--pages", "0", "--out", str(out), *more], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_one_two_and_three_ranks_write_the_same_files(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 25, broken=4)
    for count in (1, 2, 3):
        run = start(folder, tmp_path / str(count), count, "--save-every", "3")
        out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out
        assert out.count("25 photos, 1 of them not readable") == 1  # the first rank alone speaks
        assert same_files(tmp_path / "1", tmp_path / str(count))
    run = start(folder, tmp_path / "3", 2, "--k", "5")
    out, _ = run.communicate(timeout=300)
    assert run.returncode != 0
    assert "its k is 4, this one's is 5" in out


@pytest.mark.slow
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
