"""The comparison as text, CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from typing import TYPE_CHECKING, Any

from torchviz_cnn.attribution.metrics.result import plain
from torchviz_cnn.evaluation.columns import Column
from torchviz_cnn.evaluation.rows import Row
from torchviz_cnn.media.notebook import tables

if TYPE_CHECKING:
    from torchviz_cnn.evaluation.result import Trust

DASH = "–"


def number(value: float, digits: int = 3) -> str:
    """A number as tables show it.

    >>> number(0.12345), number(12.345), number(float("nan")), number(-0.0001)
    ('0.123', '12.3', '–', '0.000')
    """
    if math.isnan(value):
        return DASH
    text = f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


def rank_text(rank: float) -> str:
    """A rank without the point where it is whole.

    >>> rank_text(2.0), rank_text(2.5)
    ('2', '2.5')
    """
    return f"{rank:g}"


def cell_text(trust: Trust, row: Row, column: Column) -> str:
    """Mean, interval and rank of a cell: `0.613 (0.58 to 0.65) #2`."""
    measurement = trust.measured[row.key, column.name]
    if not measurement.count:
        return DASH
    low, high = trust.intervals[row.key, column.name]
    rank = trust.ranks[column.name].get(row.key, math.nan)
    sure = "" if math.isnan(low) else f" ({number(low, 2)}..{number(high, 2)})"
    return f"{number(measurement.mean)}{sure}" + ("" if math.isnan(rank) else f" #{rank_text(rank)}")


def dash_reasons(trust: Trust) -> dict[str, str]:
    """Why cells are dashes, by the names of rows and columns; what a row or a column shares is said once."""
    where: dict[str, list[str]] = {}
    for column in trust.columns:
        if not any(trust.counts(column)):
            where.setdefault(trust.reason(trust.rows[-1], column), []).append(f"all of {column.title}")
    known = [column for column in trust.shown if any(trust.counts(column))]
    judging = [column for column in known if column.judges]
    for row in trust.rows:
        missing: dict[str, list[str]] = {}
        for column in known:
            if reason := trust.reason(row, column):
                missing.setdefault(reason, []).append(column.title)
        for reason, titles in missing.items():
            every = len(titles) >= len(judging) > 1
            where.setdefault(reason, []).append(row.title if every else f"{row.title} in {', '.join(titles)}")
    return {"; ".join(cells): reason for reason, cells in where.items()}


def text_table(trust: Trust, width: int) -> str:
    """Blocks of columns, each at most `width` characters wide, and below them why cells are dashes."""
    label = max(len(row.title) for row in trust.rows)
    blocks: list[list[list[str]]] = []
    used = width + 1
    for column in trust.shown:
        cells = [column.title, _head(trust, column), *(cell_text(trust, row, column) for row in trust.rows)]
        wide = max(map(len, cells))
        if used + 2 + wide > width:
            blocks.append([["", "", *(row.title for row in trust.rows)]])
            used = label
        blocks[-1].append(cells)
        used += 2 + wide
    lines = []
    for block in blocks:
        widths = [max(map(len, cells)) for cells in block]
        for line in zip(*block, strict=True):
            lines.append("  ".join(part.ljust(wide) for part, wide in zip(line, widths, strict=True)).rstrip())
        lines.append("")
    for where, reason in dash_reasons(trust).items():
        lines += textwrap.wrap(f"{DASH} {where}: {reason}", width, subsequent_indent="  ")
    return "\n".join(lines).rstrip()


def _head(trust: Trust, column: Column) -> str:
    """How many photos, and which values are better."""
    counts = trust.counts(column)
    of = f"n {counts[0]}" if len(counts) == 1 else f"n {counts[0]}..{counts[-1]}"
    return f"{column.better}, {of}"


def csv_table(trust: Trust) -> str:
    """A row for each method, and for each column its mean, interval, count, rank and the reason of a dash."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = ("", "_low", "_high", "_n", "_rank", "_reason")
    writer.writerow(["method", "title", "layer", *(f"{c.name}{part}" for c in trust.columns for part in parts)])
    for row in trust.rows:
        line: list[Any] = [row.method, row.title, row.layer or ""]
        for column in trust.columns:
            cell = record_of(trust, row, column)
            values = [cell[key] for key in ("mean", "low", "high", "n", "rank", "reason")]
            line += ["" if value is None else value for value in values]
        writer.writerow(line)
    return text.getvalue()


def record_of(trust: Trust, row: Row, column: Column) -> dict[str, Any]:
    """The figures of one cell: what there is not is None."""
    measurement = trust.measured[row.key, column.name]
    low, high = trust.intervals[row.key, column.name]
    rank = trust.ranks[column.name].get(row.key, math.nan)
    figures = {"mean": measurement.mean, "low": low, "high": high, "n": measurement.count, "rank": rank}
    return {key: plain(value) for key, value in figures.items()} | {"reason": trust.reason(row, column) or None}


def json_record(trust: Trust) -> str:
    """Everything, with the values of each photo."""
    record = {
        "network": trust.network,
        "explained": trust.explained,
        "weights": trust.weights,
        "photos": list(trust.names),
        "sizes": list(trust.sizes),
        "classes": trust.classes.tolist(),
        "class_names": [class_name(trust, index) for index in trust.classes.tolist()],
        "skipped": {trust.names[number]: reason for number, reason in trust.skipped.items()},
        "columns": [{"name": c.name, "title": c.title, "better": c.better, "says": c.says} for c in trust.columns],
        "rows": [_row_record(trust, row) for row in trust.rows],
        "agreement": [{"columns": list(pair), "kendall": plain(tau)} for pair, tau in trust.agreement.items()],
        "verdict": list(trust.verdict),
        "notes": list(trust.notes),
    }
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _row_record(trust: Trust, row: Row) -> dict[str, Any]:
    cells = {}
    for column in trust.columns:
        measurement = trust.measured[row.key, column.name]
        own = {} if measurement.names == trust.names else {"images": list(measurement.names)}
        cells[column.name] = record_of(trust, row, column) | own | {"values": plain(measurement.values)}
        if measurement.curves is not None:
            curve = measurement.curves
            cells[column.name]["curve"] = {"x": plain(curve.x), "y": plain(curve.y.nanmean(0))}
    described = {"method": row.method, "title": row.title, "layer": row.layer, "reference": row.reference}
    return described | {"refused": row.refused, "sentence": trust.sentences[row.key], "cells": cells}


def class_name(trust: Trust, index: int) -> str | None:
    """The name of a class; None for a photo that is not measured."""
    from torchviz_cnn.hooks.network import category_name

    return None if index < 0 else category_name(trust.categories, index)


def markdown(trust: Trust) -> str:
    """The table, its reasons, the sentences and how the metrics agree."""
    heads = [f"{c.title} ({c.better} is better)" for c in trust.shown]
    lines = [f"# How far maps of {escaped(trust.network)} can be believed", "", f"Explained is {trust.explained}.", ""]
    lines += [f"| method | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for row in trust.rows:
        cells = [cell_text(trust, row, column).replace("..", " to ") for column in trust.shown]
        lines.append(f"| {escaped(row.title)} | {' | '.join(cells)} |")
    lines += ["", *(f"- {DASH} {escaped(c)}: {escaped(r)}" for c, r in dash_reasons(trust).items())]
    lines += ["", "## What this says of each method", "", *(f"- {escaped(s)}" for s in trust.sentences.values())]
    lines += ["", "## How far the metrics agree", "", *(f"- {escaped(s)}" for s in trust.verdict)]
    lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in trust.notes)]
    lines += [f"- {escaped(column.title)}: {escaped(column.says)}" for column in trust.columns]
    return "\n".join(lines) + "\n"


def notebook_table(trust: Trust) -> str:
    """The table and what it says, as HTML for notebooks."""
    head = ["method", *(f"{column.title} ({_head(trust, column)})" for column in trust.shown)]
    rows = [[row.title, *(cell_text(trust, row, column) for column in trust.shown)] for row in trust.rows]
    reasons = [f"{DASH} {where}: {reason}" for where, reason in dash_reasons(trust).items()]
    title = f"How far maps of {trust.network} can be believed; explained is {trust.explained}"
    said = [*trust.sentences.values(), *trust.verdict, *trust.notes, *reasons]
    return tables.table(title, head, rows) + tables.listed(said)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is.

    >>> escaped("a|b <i>")
    'a\\\\|b \\\\<i>'
    """
    for special in ("\\", "|", "<", "*", "_", "`", "["):
        text = text.replace(special, f"\\{special}")
    return text
