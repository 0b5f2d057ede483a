"""The pages of README and docs, and the blocks of Python in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```python" in path.read_text(encoding="utf-8")
}
ELSEWHERE = {"docs/from_the_textbook.md": "tests/test_textbook.py, beside Keras"}
"""Pages whose blocks run in another test."""
_BLOCK = re.compile(r"(?:^<!-- not run: *(?P<reason>.*?) *-->\n)?^```python\n(?P<code>.*?)^```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """Lines of Python on a page, with the line that they begin at."""

    code: str
    line: int
    reason: str | None
    """Why it is not run, where the page says `<!-- not run: reason -->` above it."""


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        yield Block(match["code"], text.count("\n", 0, match.start("code")) + 1, match["reason"])
