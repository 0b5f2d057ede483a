"""What is measured of each case, and the file that keeps it, from which a run that was stopped goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from timing import Lap, Run, Timing, alternate, finish, now, peak_bytes

from benchmarks.tasks import OURS, Case, Contender, Kind


@dataclass(frozen=True)
class Entry:
    """One contender of a case."""

    name: str
    kind: Kind
    seconds: list[float] = field(default_factory=list)
    """of a unit, by round"""
    peak: int | None = None
    """bytes"""
    work: float | None = None
    """floating-point operations of a unit"""
    difference: float | None = None
    """to our result, as a share of the largest value; None where both do not define the same"""

    @property
    def timing(self) -> Timing:
        """The seconds, to be compared."""
        return Timing(tuple(self.seconds))


@dataclass(frozen=True)
class Record:
    """What was measured of a case."""

    section: str
    case: str
    unit: str
    entries: list[Entry]
    place: tuple[str, float] | None = None

    @property
    def ours(self) -> Entry | None:
        """Ours, as it comes."""
        return next((one for one in self.entries if one.kind == "ours"), None)

    @property
    def best_peer(self) -> Entry | None:
        """The peer with the smallest median."""
        peers = [one for one in self.entries if one.kind == "peer"]
        return min(peers, key=lambda one: one.timing.median, default=None)

    @property
    def floor(self) -> Entry | None:
        """What none can do without."""
        return next((one for one in self.entries if one.kind == "floor"), None)

    def ratio(self, other: Entry | None) -> float | None:
        """How many times as long as another we took."""
        return self.ours.timing.over(other.timing) if self.ours and other else None

    @property
    def memory_ratio(self) -> float | None:
        """Our peak of memory as a multiple of the smallest of a peer."""
        peaks = [one.peak for one in self.entries if one.kind == "peer" and one.peak]
        return self.ours.peak / min(peaks) if peaks and self.ours and self.ours.peak else None


def measured(case: Case, rounds: int, limit: float) -> Record:
    """Run a case: once each, to warm up, for the memory and to compare what is the same, and then in turns."""
    if case.peak is not None:
        return Record(case.section, case.name, case.unit, [Entry(OURS, "ours", peak=case.peak())], case.place)
    contenders, rounds = list(case.contenders()), min(rounds, case.rounds or rounds)
    first: dict[str, First] = {}
    if case.memory or rounds > 2 or any(one.same for one in contenders):  # else it would only warm up, and take long
        first = first_round(contenders, case.memory)
    counts = case.large and rounds > 1
    least = min(2, rounds) - counts
    times = alternate({one.name: one.run for one in contenders}, rounds - counts, 0, limit=limit, least=least)
    entries = []
    for one in contenders:
        begun = first.get(one.name, First())
        seconds = [begun.seconds, *times[one.name].seconds] if counts else times[one.name].seconds
        by_unit = [each / one.units for each in seconds]
        entries.append(Entry(one.name, one.kind, by_unit, begun.peak, one.work, begun.difference))
    return Record(case.section, case.name, case.unit, entries, case.place)


@dataclass
class First:
    """What the first run of a contender shows."""

    seconds: float = 0
    result: Any = None
    peak: int | None = None
    difference: float | None = None

    def take(self, run: Run) -> None:
        """Run it, and keep how long it took and what it gave."""
        start = now()
        result = run()
        finish()
        self.seconds = now() - start
        self.result = result
        if isinstance(result, Lap):
            self.seconds, self.result = result.seconds, result.result


def first_round(contenders: Sequence[Contender], memory: bool) -> dict[str, First]:
    """Seconds, peaks of memory, where they are asked for, and the differences of what is the same."""
    shown, ours = dict[str, First](), None
    for one in contenders:
        shown[one.name] = first = First()
        take = partial(first.take, one.run)
        if memory:
            first.peak = peak_bytes(take)
        else:
            take()
        if one.kind == "ours" and ours is None:
            ours = first.result
        if one.same is not None:
            a, b = (each.cpu() for each in one.same(ours, first.result))
            first.difference = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
        first.result = None  # not to be there while others' memory is measured
    return shown


class Results:
    """The file of a run, written whole after each case."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """Read what is there. Raises ValueError where it is of another run."""
        self.path, self.about = path, json.loads(json.dumps(about))
        self.records: list[Record] = []
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            other = [key for key, value in self.about.items() if stored.get("about", {}).get(key) != value]
            if other:
                raise ValueError(f"{path} is of another run ({', '.join(other)} differ): name another file, or --fresh")
            self.records = [record_of(one) for one in stored["records"]]

    def has(self, case: Case) -> bool:
        """Whether a case was measured."""
        return any((one.section, one.case) == (case.section, case.name) for one in self.records)

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)
        text = json.dumps({"about": self.about, "records": [asdict(one) for one in self.records]}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(text + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def record_of(stored: dict[str, Any]) -> Record:
    """A record as it was before it was written."""
    entries = [Entry(**one) for one in stored["entries"]]
    return Record(**{**stored, "entries": entries, "place": tuple(stored["place"]) if stored["place"] else None})


def sections_of(records: Iterable[Record]) -> list[str]:
    """The sections, in the order of the run."""
    return list(dict.fromkeys(one.section for one in records))
