"""Every command that README and docs show is one that the program takes, with the options that it has."""

from __future__ import annotations

import re
import shlex
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


def test_they_are_collected() -> None:
    assert len(LINES) > 40


@pytest.mark.parametrize("line", [line for _, line in LINES], ids=[where for where, _ in LINES])
def test_a_line_is_one_of_its_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are in a file: the command line takes no list of names."""
    try:
        args = _parser(_commands()).parse_args(shlex.split(line, comments=True))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    labels = getattr(args, "labels", None)
    assert labels is None or Path(labels).suffix in (".txt", ".json")
