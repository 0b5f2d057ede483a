"""Measurements as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpu.tasks import BASE


@dataclass
class Row:
    """One measurement, or why there is none."""

    network: str
    what: str
    precision: str
    batch: int
    milliseconds: float | None = None
    """The median of the rounds,"""
    quartiles: tuple[float, float] | None = None
    """and between what half of them lie."""
    ratio: float | None = None
    """To a plain forward pass without gradients of the same batch."""
    megabytes: float | None = None
    """The most that tensors took at one time, beyond what was there before."""
    bound: str | None = None
    """What bounds it on this device: `arithmetic` or `memory`,"""
    share: float | None = None
    """and the share of this bound that it reaches."""
    per_second: float | None = None
    """Photos a second,"""
    of_slower: float | None = None
    """as a share of the slower of decoding alone and the network alone."""
    error: str | None = None


HEAD = ("network", "what", "precision", "batch", "ms", "x forward", "MB", "bound", "share", "photos/s", "of the slower")


def line(row: Row) -> str:
    """A row of the table."""
    cells: list[Any] = [row.network, row.what, row.precision, row.batch]
    if row.error is not None:
        return f"| {' | '.join(map(str, [*cells, row.error, *[''] * 6]))} |"
    numbers = (
        (row.milliseconds, ".2f"),
        (row.ratio, ".2f"),
        (row.megabytes, ".0f"),
        (row.bound, ""),
        (row.share, ".0%"),
        (row.per_second, ".0f"),
        (row.of_slower, ".2f"),
    )
    cells += ["" if value is None else format(value, kind) for value, kind in numbers]
    return f"| {' | '.join(map(str, cells))} |"


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table of what is compared with a plain forward pass, a row for each network, precision and batch; and of all
    else, a row for each."""
    groups: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.network, row.precision, row.batch), {})[row.what] = row
    compared = {key: group for key, group in groups.items() if BASE in group and group[BASE].per_second is None}
    names = list(dict.fromkeys(name for group in compared.values() for name in group if name != BASE))
    if compared:
        yield "Times as multiples of a plain forward pass; in brackets the most memory beyond the network's, in MB."
        yield ""
        yield f"| network | precision | batch | plain forward | {' | '.join(names)} |"
        yield f"|{'---|' * (4 + len(names))}"
    for (network, precision, batch), group in compared.items():
        base = group[BASE]
        share = "" if base.share is None else f", {base.share:.0%} of what {base.bound} allows"
        cells = [network, precision, batch, f"{base.milliseconds:.2f} ms{share} ({base.megabytes or 0:.0f})"]
        yield f"| {' | '.join(map(str, [*cells, *(_multiple(group.get(name)) for name in names)]))} |"
    others = [row for row in rows if row not in [one for group in compared.values() for one in group.values()]]
    if others:
        yield from ("", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *map(line, others), "")


def _multiple(row: Row | None) -> str:
    if row is None:
        return ""
    if row.error is not None or row.ratio is None:
        return row.error or ""
    return f"{row.ratio:.2f} ({row.megabytes or 0:.0f})"
