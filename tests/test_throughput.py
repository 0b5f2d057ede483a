"""The measurement of photos a second runs, and writes its table where a page has its markers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_it_writes_a_row_for_each_contender(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- throughput: begin -->\nold\n<!-- throughput: end -->\nafter\n")
    command = [sys.executable, str(ROOT / "scripts" / "throughput.py"), "--tiny", "--markdown", str(page)]
    known = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    done = subprocess.run([*command, "--latency", "5"], capture_output=True, text=True, **known)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    rows = re.findall(r"^\| (.+?) \| ([\d,]+) \| ([\d.]*) \|$", text, re.M)
    assert [row[0] for row in rows] == [
        *("decoding alone", "network alone", "a folder", "shards", "shards over HTTP, 5 ms an answer")
    ]
    assert all(int(rate.replace(",", "")) > 0 for _, rate, _ in rows)
    assert [bool(share) for _, _, share in rows] == [False, False, True, True, True]
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    assert len(list((tmp_path / "throughput" / "tiny" / "photos").rglob("*.jpg"))) == 24
