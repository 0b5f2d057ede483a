"""A network that has learned a mark in the corner: the survey and its page say so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_page_says_first_that_one_class_lives_from_a_corner(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/planted_shortcut.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    with_square, covered = (int(share) for share in re.findall(r"(\d+)% of (?:triangle|these)", done.stdout))
    assert with_square > 90 > covered + 20
    page = (tmp_path / "survey" / "index.html").read_text(encoding="utf-8")
    before = page.partition('id="/photos"')[0]
    assert "One class seems to rely on a corner or an edge" in before
    assert re.search(r"<h3><bdi>triangle</bdi>: bottom right corner</h3>", before)
