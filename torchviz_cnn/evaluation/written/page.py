"""The comparison as one page that loads nothing: table, sentences, curves, agreement, examples."""

from __future__ import annotations

import base64
import io
import math
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchviz_cnn.core.errors import counted
from torchviz_cnn.evaluation.columns import Column
from torchviz_cnn.evaluation.rows import CENTRE, Row
from torchviz_cnn.evaluation.written.tables import dash_reasons, number, rank_text
from torchviz_cnn.runs.folder import versions
from torchviz_cnn.runs.pages import base_style, offline_page

if TYPE_CHECKING:
    from torchviz_cnn.evaluation.result import Example, Trust

_CHART = (220.0, 130.0)
"""Width and height of a chart of curves, in its own units."""
CURVES = ("insertion", "deletion")
JUDGES = ("insertion", "energy_in_mask", "pointing_game")
"""By what a method's best and worst photos are told: the first of these that is measured."""


def html(trust: Trust) -> str:
    """The page's HTML."""
    fields = {
        "network": trust.network,
        "facts": [
            counted(int((trust.classes >= 0).sum()), "photo"),
            counted(len(trust.methods), "method"),
            trust.explained,
        ],
        "verdict": trust.verdict,
        "sentences": [(row.title, _after_title(trust, row), row.reference) for row in trust.rows],
        "columns": trust.shown,
        "counts": [_counts(trust, column) for column in trust.shown],
        "rows": [_row(trust, row) for row in trust.rows],
        "reasons": dash_reasons(trust),
        "charts": _charts(trust),
        "curves": [column.title for column in trust.shown if column.name in CURVES],
        "matrix": _matrix(trust),
        "examples": _examples(trust),
        "judge": next((c.title for name in JUDGES for c in trust.shown if c.name == name), ""),
        "glossary": [(column.title, column.says, column.better) for column in trust.columns],
        "notes": trust.notes,
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    style = f"{base_style()}\n{_part('trust.css')}"
    return offline_page(_part("trust.html"), style, _part("trust.js"), **fields)


def _part(name: str) -> str:
    return files("torchviz_cnn.evaluation.written").joinpath("web", name).read_text(encoding="utf-8").strip()


def _after_title(trust: Trust, row: Row) -> str:
    """The sentence of a row without its title, which stands before it."""
    text = trust.sentences[row.key].removeprefix(f"{row.title}: ")
    return text[0].upper() + text[1:]


def _counts(trust: Trust, column: Column) -> str:
    counts = trust.counts(column)
    most = counted(counts[-1], "mosaic" if column.stage == "mosaics" else "photo")
    return most if len(counts) == 1 else f"{counts[0]} to {most}"


def _row(trust: Trust, row: Row) -> dict[str, Any]:
    return {
        "title": row.title,
        "layer": row.layer,
        "reference": row.reference,
        "cells": [_cell(trust, row, column) for column in trust.shown],
    }


def _cell(trust: Trust, row: Row, column: Column) -> dict[str, Any]:
    """A cell as the table shows it: `sort` is its number, None where it is a dash."""
    measurement = trust.measured[row.key, column.name]
    if not measurement.count:
        return {"sort": None, "reason": trust.reason(row, column)}
    low, high = trust.intervals[row.key, column.name]
    rank = trust.ranks[column.name].get(row.key, math.nan)
    fewer = len(measurement.values) - measurement.count if measurement.reasons else 0
    return {
        "sort": measurement.mean,
        "mean": number(measurement.mean),
        "interval": "" if math.isnan(low) else f"{number(low)} to {number(high)}",
        "rank": "" if math.isnan(rank) else rank_text(rank),
        "first": rank == 1 and column.judges,
        "n": measurement.count,
        "missing": fewer,
    }


def _charts(trust: Trust) -> list[dict[str, Any]]:
    """A chart for each method: its mean curves over those of all methods, and those of the centre dashed."""
    names = [column.name for column in trust.shown if column.name in CURVES]
    lines = {row.key: [_line(trust, row, name) for name in names] for row in trust.rows}
    faint = [line for row in trust.methods for line in lines[row.key] if line]
    charts = []
    for row in trust.methods:
        own = [(name, line) for name, line in zip(names, lines[row.key], strict=True) if line]
        if own:
            centre = [line for line in lines[CENTRE] if line]
            said = ", ".join(f"{name} {number(trust.measured[row.key, name].mean)}" for name, _ in own)
            charts.append({"title": row.title, "said": said, "own": own, "faint": faint, "centre": centre})
    return charts


def _line(trust: Trust, row: Row, name: str) -> str:
    """The mean curve of a row as the path of an SVG; empty where there is none."""
    curves = trust.measured[row.key, name].curves
    if curves is None or not trust.measured[row.key, name].count:
        return ""
    width, height = _CHART
    mean: Tensor = curves.y.nanmean(0)
    places = zip(curves.x.tolist(), mean.tolist(), strict=True)
    return "M" + " L".join(f"{x * width:.1f},{(1 - min(max(y, 0), 1)) * height:.1f}" for x, y in places)


def _matrix(trust: Trust) -> dict[str, Any] | None:
    """Kendall's tau of every two columns; None where there are not two."""
    columns = [column for column in trust.shown if column.judges]
    if len(columns) < 2 or not any(not math.isnan(tau) for tau in trust.agreement.values()):
        return None

    def tau(a: Column, b: Column) -> dict[str, Any]:
        value = trust.agreement.get((a.name, b.name), trust.agreement.get((b.name, a.name), math.nan))
        level = "none" if math.isnan(value) else str(round(value * 4))
        return {"text": number(value, 2), "level": level, "same": a is b}

    return {"titles": [c.title for c in columns], "rows": [(a.title, [tau(a, b) for b in columns]) for a in columns]}


def _examples(trust: Trust) -> list[dict[str, Any]]:
    """The examples of each method, the best before the worst."""
    methods = dict.fromkeys(example.row.title for example in trust.examples)
    shown = {title: [_example(trust, one) for one in trust.examples if one.row.title == title] for title in methods}
    return [{"title": title, "photos": photos} for title, photos in shown.items()]


def _example(trust: Trust, example: Example) -> dict[str, Any]:
    titles = {column.name: column.title for column in trust.columns if column.judges}
    buffer = io.BytesIO()
    example.picture.convert("RGB").save(buffer, "WEBP", quality=80, method=4)
    return {
        "photo": example.photo,
        "best": example.best,
        "explained": example.explained,
        "width": example.picture.width,
        "height": example.picture.height,
        "picture": "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "figures": [(titles[name], number(value)) for name, value in example.figures.items() if name in titles],
    }
