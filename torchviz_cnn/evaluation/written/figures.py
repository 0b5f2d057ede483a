"""What a comparison says of one photo's map, for those who write it beside the map."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchviz_cnn.core.errors import InputError, OutputError, did_you_mean
from torchviz_cnn.evaluation.result import Trust
from torchviz_cnn.evaluation.written.tables import json_record

_OF_THE_NETWORK = ("structure", "randomization", "grid_pointing_game")
"""Columns that say something of the method for this network, and not of one photo."""


def figures_of(
    trust: Trust | Mapping[str, Any] | str | os.PathLike[str], photo: str, method: str, target: int | None = None
) -> dict[str, float | None]:
    """What the metrics say of one photo's map, by the name of the column; None where it was not measured.

    `structure`, `randomization` and `grid_pointing_game` are means over the photos, as they say
    something of the method.

    Args:
        trust: a Trust, the folder that it was written to, or what `record_of` gives of either.
        photo: its name, as in `names`; the name of its file is enough where one photo alone has it.
        method: the name of the method, or its name and layer as `grad_cam@features.12`.
        target: the class whose map it is: of another class than the one that was explained, only what is said of the
            method for this network is not None. By default the class that was explained.

    Raises:
        InputError: for a method that is not there.
        OutputError: for a folder without a comparison.
    """
    record = trust if isinstance(trust, Mapping) else record_of(trust)
    row = _row(record, method)
    number = _number(record, photo)
    same = number is not None and target in (None, record["classes"][number])
    figures: dict[str, float | None] = {}
    for name, cell in row["cells"].items():
        if name == "seconds":
            continue
        figures[name] = cell["mean"] if name in _OF_THE_NETWORK else cell["values"][number] if same else None
    return figures


def record_of(trust: Trust | str | os.PathLike[str]) -> dict[str, Any]:
    """All that a comparison says, as its `trust.json` has it. Raises OutputError for a folder without one."""
    if isinstance(trust, Trust):
        record: dict[str, Any] = json.loads(json_record(trust))
        return record
    file = Path(trust) / "trust.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        record["photos"], record["classes"], record["rows"][0]["cells"]
    except FileNotFoundError:
        raise OutputError(f"{trust} has no trust.json: the trust command writes it") from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise OutputError(f"{file} is not what the trust command writes: {error}") from error
    return record


def _row(record: Mapping[str, Any], method: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = record["rows"]
    for row in rows:
        if method in (row["method"], f"{row['method']}@{row['layer']}"):
            return row
    names = [row["method"] for row in rows]
    raise InputError(f"no method {method!r} here{did_you_mean(method, names) or ';'} there are {', '.join(names)}")


def _number(record: Mapping[str, Any], photo: str) -> int | None:
    """Which photo it is: by its name, or by its file's name, where one alone has it.

    Where the file is there, it must be as large as the one that was measured.
    """
    names: list[str] = record["photos"]
    alike = [number for number, name in enumerate(names) if photo == name]
    alike = alike or [number for number, name in enumerate(names) if Path(name).name == Path(photo).name]
    if len(alike) != 1:
        return None
    size = record["sizes"][alike[0]] if record.get("sizes") else None
    return alike[0] if size is None or not os.path.isfile(photo) or os.path.getsize(photo) == size else None
