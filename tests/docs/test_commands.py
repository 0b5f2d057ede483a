"""Every command that README and docs show is one that the program takes, with the options that it has."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from torchviz_cnn.cli.main import _commands, _parser

_PATTERNS = (r"(?m)^ {4}(?:torchviz-cnn|torchrun .*-m torchviz_cnn) (.*)$", r"`torchviz-cnn ([a-z]+ (?!\.\.\.)[^`]+)`")
"""A line of its own, and one in a sentence or a table."""
LINES = [
    (f"{path.relative_to(ROOT)}: {line}", line)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for pattern in _PATTERNS
    for line in re.findall(pattern, path.read_text(encoding="utf-8"))
]

_FOLDERS = r"""(?:\bout=f?|\bfilter_atlas\(net, |--out |os\.path\.abspath\()["']?(?!photos\b)([\w{}]+)"""
"""The first part of what is named as a folder of results, in Python, in a script or as an option."""
SHARED = {
    ("README.md", "survey"),
    ("docs/filters.md", "every"),
    ("docs/scale.md", "pieces"),
    ("docs/scale.md", "top"),
    ("docs/scale.md", "top_of_shards"),
    ("docs/survey.md", "survey"),
    ("docs/top.md", "top"),
}
"""Folders that a page names more than once for one and the same run, or its pieces."""


def test_they_are_collected() -> None:
    assert len(LINES) > 40


def test_no_page_gives_one_folder_to_two_runs() -> None:
    """Who follows a page from top to bottom would be refused by the second."""
    twice = set()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        names = Counter(re.findall(_FOLDERS, path.read_text(encoding="utf-8")))
        twice |= {(path.relative_to(ROOT).as_posix(), name) for name, count in names.items() if count > 1}
    assert twice == SHARED


@pytest.mark.parametrize("line", [line for _, line in LINES], ids=[where for where, _ in LINES])
def test_a_line_is_one_of_its_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are in a file: the command line takes no list of names."""
    try:
        args = _parser(_commands()).parse_args(shlex.split(line, comments=True))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    labels = getattr(args, "labels", None)
    assert labels is None or Path(labels).suffix in (".txt", ".json")
