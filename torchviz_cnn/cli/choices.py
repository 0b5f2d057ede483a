"""What options can be, as plain data: `make docs-table` writes it from the library's tables, and a test compares them.

The library's own types and tables say the same, but they are imported with PyTorch, for which no help should wait.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FILE = Path(__file__).with_name("choices.json")


@cache
def _all() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return data


def choices(name: str) -> list[str]:
    """What an option can be.

    >>> choices("blend")
    ['add', 'mix']
    """
    values: list[str] = _all()[name]
    return values


def suits() -> dict[str, str]:
    """The two heatmaps to begin with, and the photos that each is the better one for."""
    rows: dict[str, str] = _all()["suits"]
    return rows


def methods_of(kind: str) -> Mapping[str, Any]:
    """The methods of one kind by the names of the command line; each has `options`, `shows` and `paper`.

    Where the library's own table is imported already, it is read: it has the methods that a user registered, too.
    """
    table = sys.modules.get("torchviz_cnn.attribution.methods")
    if table:
        rows = table.methods_of(kind)
    else:
        rows = {name: SimpleNamespace(**row) for name, row in _all()["methods"].items() if row["kind"] == kind}
    return {name.replace("_", "-"): row for name, row in rows.items()}
