"""The tables of a run: a line for each case, a column for each contender, and what is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.results import Entry, Record, sections_of
from benchmarks.tasks import OURS

TITLES = {
    "grad_cam": "Grad-CAM at the last maps",
    "family": "The family of Grad-CAM",
    "capture": "Capturing a layer",
    "filters": "Filter patterns",
    "saliency": "Saliency, guided Grad-CAM, occlusion",
    "metrics": "Metrics of maps",
    "mining": "Top activations of a dataset",
    "video": "Heatmaps over a clip",
    "machine": "Distance to what the machine can do",
    "growth": "Growth",
    "memory": "Growth of memory",
}
TENTH = 1.1
Cell = Callable[[Entry], str]


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(entry: Entry) -> str:
    """Median and quartiles in milliseconds."""
    lower, upper = entry.timing.quartiles
    return f"{number(1e3 * entry.timing.median)} ({number(1e3 * lower)} to {number(1e3 * upper)})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, which is read in a terminal too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def side_by_side(records: Sequence[Record], cell: Cell, extra: dict[str, Callable[[Record], str]]) -> str:
    """A line for each record, a column for each contender, and some more."""
    names = list(dict.fromkeys(one.name for record in records for one in record.entries))
    rows = []
    for record in records:
        entries = {one.name: one for one in record.entries}
        cells = [cell(entries[name]) if name in entries else "" for name in names]
        rows.append([record.case, *cells, *(column(record) for column in extra.values())])
    return table(["", *names, *extra], rows)


def section(records: Sequence[Record]) -> str:
    """The tables of one section: one, or one for each axis of growth."""
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(one.place[0] if one.place else "", []).append(one)
    return "\n\n".join([f"### {TITLES[records[0].section]}", *map(tables, groups.values())])


def tables(records: Sequence[Record]) -> str:
    """The table of times, or of operations a second, and that of memory."""
    unit, parts = records[0].unit, list[str]()
    if any(one.work for record in records for one in record.entries):
        parts += ["In G floating-point operations a second, and as a share of the matrix product:", rates(records)]
        return "\n\n".join(parts)
    if any(one.seconds for record in records for one in record.entries):
        columns: dict[str, Callable[[Record], str]] = {"ours / best peer": against_peer}
        if not any(one.best_peer for one in records):
            columns = {}
        if any(one.floor for one in records):
            columns["ours / floor"] = lambda one: ratio(one.ratio(one.floor))
        parts += [
            f"Milliseconds of {article(unit)}, the median and the quartiles:",
            side_by_side(records, times, columns),
        ]
    if any(one.peak for record in records for one in record.entries):
        columns = {"ours / best peer": lambda one: ratio(one.memory_ratio)}
        if not any(one.memory_ratio for one in records):
            columns = {}
        parts += ["Peak memory in MB, beyond what was there before:", side_by_side(records, memory, columns)]
    return "\n\n".join(parts)


def article(unit: str) -> str:
    return f"an {unit}" if unit[0] in "aeiou" else f"a {unit}"


def rates(records: Sequence[Record]) -> str:
    """Operations a second, of records that count them."""
    best = {id(one): record for record in records for one in record.entries}

    def cell(entry: Entry) -> str:
        half = "bfloat16" in entry.name
        products = [one for one in best[id(entry)].entries if one.kind == "peak" and "product" in one.name]
        peak = next((one for one in products if ("bfloat16" in one.name) == half), products[0])
        rate = (entry.work or 0) / entry.timing.median
        most = (peak.work or 1) / peak.timing.median
        return f"{number(rate / 1e9)} ({rate / most:.0%})"

    return side_by_side(records, cell, {})


def memory(entry: Entry) -> str:
    return number(entry.peak / 2**20) if entry.peak is not None else ""


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def against_peer(record: Record) -> str:
    """Our time as a multiple of the best peer's, and who that is."""
    peer = record.best_peer
    return f"{ratio(record.ratio(peer))} ({peer.name})" if peer else ""


def losses(records: Iterable[Record]) -> list[str]:
    """What is slower or larger than the best peer, the worst first; by more than a tenth, and by less."""
    compared = [
        (value, f"{record.case}, {what}: {value:.2f}")
        for record in records
        for what, value in ((against(record), record.ratio(record.best_peer)), ("memory", record.memory_ratio))
        if value is not None
    ]
    lost = sorted((pair for pair in compared if pair[0] > 1), reverse=True)
    clear, close = ([text for value, text in lost if (value > TENTH) == more] for more in (True, False))
    return [
        f"Of {len(compared)} times and peaks of memory that are compared with the best peer's, "
        f"{counted(clear)} more than a tenth above it{listed(clear)}",
        f"{counted(close).capitalize()} above it by a tenth at most{listed(close)}",
    ]


def counted(texts: Sequence[str]) -> str:
    return f"{len(texts) or 'none'} {'is' if len(texts) < 2 else 'are'}"


def listed(texts: Sequence[str]) -> str:
    return "".join([":\n", *(f"\n- {text}" for text in texts)]) if texts else "."


def against(record: Record) -> str:
    peer = record.best_peer
    return f"to {peer.name}" if peer else ""


def agreement(records: Iterable[Record]) -> str:
    """How far results are from ours, where both define the same."""
    differences = [(one.difference, f"{one.name} in {record.case}") for record in records for one in record.entries
                   if one.difference is not None]  # fmt: skip
    if not differences:
        return "No results were compared."
    worst, where = max(differences)
    return (
        f"{len(differences)} results of peers that define the same as ours were compared with ours: "
        f"they differ by {worst:.0e} of the largest value at most ({where})."
    )


def heading(about: dict[str, Any]) -> str:
    """What was measured, on what, beside whom."""
    peers = [f"{name} {version}" for name, version in about["versions"].items() if version]
    missing = [name for name, version in about["versions"].items() if not version]
    weights = f"weights of {about['weights']}" if about["weights"] else "random weights, but for EfficientNet-Lite0"
    return (
        f"{about['machine']}, {about['threads']} threads, torch {about['torch']}, {about['device']}, {weights}; "
        f"up to {about['rounds']} rounds in turns, {about['clock']}. "
        f"{OURS} {about['own']} beside {', '.join(peers) or 'no peer'}."
        + (f" Not installed: {', '.join(missing)}." if missing else "")
        + (" A quick run on a tiny network: its figures mean nothing." if about["quick"] else "")
    )


def page(about: dict[str, Any], records: Sequence[Record]) -> str:
    """All of it."""
    parts = [heading(about), *losses(records), agreement(records)]
    for name in sections_of(records):
        parts.append(section([one for one in records if one.section == name]))
    return "\n\n".join(parts)
