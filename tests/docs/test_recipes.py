"""Recipes of docs/scale.md for clusters: what their lines compute, and the one for Ray, where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import torchviz_cnn as tvc
from tests.docs.pages import PAGES, ROOT, blocks
from tests.topk.test_folder import photos

PAGE = PAGES["docs/scale.md"]


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
@pytest.mark.parametrize(("count", "tasks"), [(1281167, 16), (1281167, 7), (100, 3), (64, 2)])
def test_tasks_of_an_array_job_have_all_photos_between_them(count: int, tasks: int, tmp_path: Path) -> None:
    (script,) = (one for one in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S) if "SBATCH" in one)
    script = script.replace("PHOTOS=1281167", f"PHOTOS={count}").replace("torchviz-cnn top", "echo")
    cuts = []
    for task in range(tasks):
        given = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(tasks)}
        done = subprocess.run(
            ["bash"], input=script, capture_output=True, text=True, env=os.environ | given, check=True
        )
        if done.stdout:
            start, end = map(int, re.findall(r"--(?:start|end) (\d+)", done.stdout))
            assert start % 32 == 0
            cuts.append((start, end))
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == count


def require_same(merged: tvc.TopActivations, whole: tvc.TopActivations) -> None:
    for layer in ("relu3", "relu4"):
        assert merged.values[layer].equal(whole.values[layer])
        assert merged.images[layer].equal(whole.images[layer])
        assert merged.statistics[layer].mean.equal(whole.statistics[layer].mean)


SBATCH = """#!/bin/bash
while [ $# -gt 0 ]; do
  case $1 in --parsable|--dependency=*) ;; --wrap) sh -c "$2"; exit ;; *) script=$1 ;; esac
  shift
done
last=$(sed -n 's/^#SBATCH.*--array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$((last + 1)) bash "$script" >&2
done
echo 1
"""
"""Slurm's command on one machine: tasks run one after the other, and then the job that waits for them."""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_recipes_are_followed_one_after_the_other_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines in Python, those for the command line and the jobs for Slurm, word for word but for the count."""
    photos(tmp_path / "photos", 70)
    text = PAGE.read_text(encoding="utf-8")
    script, submit = re.findall(r"```bash\n(.*?)```", text, re.S)
    assert script.splitlines()[1] == "# pieces.sh"
    (tmp_path / "pieces.sh").write_text(script.replace("PHOTOS=1281167", "PHOTOS=70"))
    (tmp_path / "bin").mkdir()
    for name, lines in {
        "sbatch": SBATCH,
        "torchviz-cnn": f'#!/bin/sh\nexec {sys.executable} -m torchviz_cnn "$@"\n',
    }.items():
        (tmp_path / "bin" / name).write_text(lines)
        (tmp_path / "bin" / name).chmod(0o755)
    python = [block.code for block in blocks(PAGE) if block.reason is None and "photos/" in block.code]
    commands = re.findall(r"^    (torchviz-cnn (?:top photos/|merge) .*)$", text, re.M)
    assert len(commands) == 4
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in python[:2]:
        exec(compile(code, str(PAGE), "exec"), names)
    for lines in (*commands, submit):
        subprocess.run(["bash", "-c", lines], env=environment, check=True, timeout=300)
    whole = tvc.TopActivations.load("top")
    for merged in ("merged", "merged_array"):
        require_same(tvc.TopActivations.load(merged), whole)
    exact = tvc.top_activations(names["net"], "photos", ["relu3", "relu4"], exact=True, workers=0)
    require_same(tvc.TopActivations.load("whole"), exact)


@pytest.mark.slow
def test_the_recipe_for_ray_gives_the_result_of_a_single_run(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    photos(tmp_path / "photos", 9)
    (block,) = (block for block in blocks(PAGE) if "import os, ray" in block.code)
    (tmp_path / "recipe.py").write_text("import ray\nray.init(num_cpus=2, include_dashboard=False)\n" + block.code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "recipe.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert "of 9 images" in done.stdout, done.stderr
    net = tvc.load_model("cats_and_dogs")
    whole = tvc.top_activations(net, tmp_path / "photos", ["relu3", "relu4"], batch_size=2, workers=0)
    require_same(tvc.TopActivations.load(tmp_path / "merged_tasks"), whole)
