"""What differs between systems: the names of files that commands write, and the encoding of text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import NET
from torchviz_cnn.runs import files

ROOT = Path(__file__).parents[2]
NOT_ON_WINDOWS = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
CODE = """
import sys, warnings
from torchviz_cnn.cli.main import main
warnings.filterwarnings("error", category=EncodingWarning, module="torchviz_cnn")
codes = [main(line.split("|")) for line in sys.argv[1:]]
assert not any(codes), codes
"""
ODD = """
from torch import nn
def odd():
    made = nn.Sequential()
    layers = {"aux": nn.Conv2d(3, 4, 3), "a:b": nn.ReLU(), "con": nn.Conv2d(4, 4, 3), "r?": nn.ReLU()}
    layers["nul"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made
"""


@pytest.mark.parametrize(
    "name", ["aux", "NUL", "con.0", "com1", "a:b", "relu#1", "a?", "x.", "<b>", "Prn.txt", "lpt9.x.y"]
)
def test_any_name_makes_a_name_that_every_system_takes(name: str) -> None:
    assert not NOT_ON_WINDOWS.search(files.safe_name(name))
    assert files.safe_name(files.safe_name(name)) == files.safe_name(name)


def test_names_differ_in_more_than_capitals() -> None:
    names = files.file_names([Path("a/Cat.png"), Path("b/cat.png"), Path("c/CAT.jpg")])
    assert [*names.values()] == ["Cat", "cat-2", "CAT-3"]


@pytest.mark.slow
def test_every_command_writes_names_for_every_system_and_text_in_utf8(here: Path) -> None:
    """On a network whose layers, and photos whose names, are hard to write."""
    (here / "oddnet.py").write_text(ODD, encoding="utf-8")
    (here / "labels.txt").write_text("aux\nзебра\n<b>?*:|\n", encoding="utf-8")
    Path("photo.png").rename("aux.png")
    Path("other/photo.png").rename("other/фото.png")
    odd = "|".join(["--model", "oddnet:odd", *NET[2:]])
    both = f"aux.png|other|{odd}"
    lines = [
        f"layers|{odd}",
        f"predict|{both}",
        f"activations|{both}|--save|--out|acts",
        f"cam|{both}|--target|0|2|--layer|a:b|--out|cam",
        f"saliency|{both}|--method|guided|--out|sal",
        f"occlusion|{both}|--patch|16|--out|occ",
        f"deconvnet|{both}|--layers|con|--out|dec",
        f"filters|{odd}|--layers|all|--k|2|--size|32|--steps|2|--out|atlas",
        f"top|other|{odd}|--layers|aux|con|--workers|0|--out|top",
        f"report|{both}|--atlas|atlas|--budget|0|--out|page",
        f"trust|other|{odd}|--methods|grad-cam|saliency|--perturbed|1|--steps|2|--mosaics|0|--out|trust",
    ]
    command = [sys.executable, "-X", "warn_default_encoding", "-c", CODE, *lines]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    folders = [here / name for name in ("acts", "cam", "sal", "occ", "dec", "atlas", "top", "page", "trust")]
    assert [folder.name for folder in folders if not any(folder.rglob("*"))] == []
    written = {part for folder in folders for path in folder.rglob("*") for part in path.relative_to(here).parts}
    assert len(written) > 40
    assert [name for name in written if NOT_ON_WINDOWS.search(name)] == []
