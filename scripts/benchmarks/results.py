"""What is measured of each case, and the file that keeps it, from which a run that was stopped goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timing import Lap, Timing, alternate, peak_bytes

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
    contenders = list(case.contenders())
    peaks, differences = first_round(contenders, case.memory)
    rounds = min(rounds, case.rounds or rounds)
    runs = {one.name: one.run for one in contenders}
    times = alternate(runs, rounds, warmup=0, limit=limit, least=min(2, rounds))
    entries = [
        Entry(
            one.name,
            one.kind,
            [seconds / one.units for seconds in times[one.name].seconds],
            peaks.get(one.name),
            one.work,
            differences.get(one.name),
        )
        for one in contenders
    ]
    return Record(case.section, case.name, case.unit, entries, case.place)


def first_round(contenders: Sequence[Contender], memory: bool) -> tuple[dict[str, int], dict[str, float]]:
    """Peaks of memory, where they are asked for, and the differences of what is the same."""
    peaks, differences, ours = dict[str, int](), dict[str, float](), None
    for one in contenders:
        results: list[Any] = []
        if memory:
            peaks[one.name] = peak_bytes(lambda one=one, results=results: results.append(one.run()))  # type: ignore[misc]
        else:
            results.append(one.run())
        if one.kind == "ours" and ours is None:
            (ours,) = results
        if one.same is not None:
            theirs = results[0].result if isinstance(results[0], Lap) else results[0]
            a, b = one.same(ours, theirs)
            differences[one.name] = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
    return peaks, differences


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
