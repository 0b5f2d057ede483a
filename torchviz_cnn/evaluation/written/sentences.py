"""What the figures say in words, for one who has to decide which map to believe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.attribution.metrics.randomization import SHOWS_EDGES
from torchviz_cnn.core.errors import counted
from torchviz_cnn.evaluation.columns import STRUCTURE, Column
from torchviz_cnn.evaluation.ranking import FEWEST
from torchviz_cnn.evaluation.rows import CENTRE, RANDOM, Row
from torchviz_cnn.evaluation.written.tables import number

if TYPE_CHECKING:
    from torchviz_cnn.evaluation.result import Trust

ALIKE = 0.5
"""From what Kendall's tau on two metrics are said to rank methods alike: three of four pairs are in the same order."""
DIFFERENT = 0.2
"""Below what Kendall's tau they are said to rank them differently: two of five pairs are then the other way round."""
FEW_METHODS = 4
"""Below how many methods rankings are not compared: of three methods, one pair decides."""
ON_ITS_OWN = 0.75
"""Below what share of the evidence in the own cell of a mosaic a method is said to mix things up: a quarter and more
then lies on photos of other classes."""

_PAIRS = 4
"""How many pairs of metrics a sentence names."""

Say = Callable[["Trust", Row], str | None]


def sentences_of(trust: Trust) -> dict[str, str]:
    """A sentence for each row, by its key."""
    return {
        row.key: f"{row.title}: {_of_reference(trust, row) if row.reference else _of_method(trust, row)}."
        for row in trust.rows
    }


def _of_method(trust: Trust, row: Row) -> str:
    if row.refused is not None:
        return f"it does not explain this network: {row.refused.rstrip('.')}"
    parts = [
        part for say in (_randomised, _best, _mixed_up, _no_better_than_centre, _slow) if (part := say(trust, row))
    ]
    if not _telling(trust) and any(row in _measured(trust, column) for column in _judging(trust, but=(STRUCTURE,))):
        parts.append(f"fewer than {FEWEST} photos do not tell it from others")
    if parts:
        return "; ".join(parts)
    reasons = [reason for column in trust.columns if column.judges and (reason := trust.reason(row, column))]
    return f"nothing of it could be measured: {reasons[0]}" if reasons else "no metric sets it apart"


def _randomised(trust: Trust, row: Row) -> str | None:
    """Whether its maps depend on the weights."""
    kept = _mean(trust, row, STRUCTURE)
    if math.isnan(kept):
        return None
    if _is_flagged(trust, row):
        said = f"its maps keep {number(kept, 2)} of their structure while all weights become random"
        shown = "what stands out in the photo" if row.method in methods_of("cam") else "edges"
        return f"{said}: it shows {shown}, not evidence"
    if kept >= SHOWS_EDGES:
        return f"whether its maps change with the weights is not sure (they keep {number(kept, 2)} of their structure)"
    return f"its maps change with the weights (they keep {number(max(kept, 0), 2)} of their structure)"


def _best(trust: Trust, row: Row) -> str | None:
    """In which columns no method is better beyond chance, where that sets it apart from others."""
    alone, shared = list[str](), list[str]()
    for column in _telling(trust):
        best = _among_best(trust, column)
        if trust.compared(row, trust.row(CENTRE), column) <= 0:  # that is said beside it
            continue
        if row in best and len(best) < len(_measured(trust, column)):
            (alone if len(best) == 1 else shared).append(
                f"{column.title} ({number(_mean(trust, row, column.name), 2)})"
            )
    parts = [f"best in {_listed(alone)}"] * bool(alone) + [f"among the best in {_listed(shared)}"] * bool(shared)
    return ", ".join(parts) or None


def _mixed_up(trust: Trust, row: Row) -> str | None:
    """Whether its evidence lies on the right one of several things."""
    share = _mean(trust, row, "grid_pointing_game")
    if math.isnan(share) or share >= ON_ITS_OWN:
        return None
    return f"on photos of several things only {number(share, 2)} of its evidence lies on the right one"


def _no_better_than_centre(trust: Trust, row: Row) -> str | None:
    """In which columns a blob in the middle is as good."""
    centre = trust.row(CENTRE)
    columns = [c for c in _telling(trust) if row in _measured(trust, c)]
    worse = [c.title for c in columns if trust.compared(row, centre, c) < 0]
    equal = [c.title for c in columns if trust.compared(row, centre, c) == 0]
    parts = [f"worse than a blob in the middle in {_listed(worse)}"] * bool(worse)
    parts += [f"no better than a blob in the middle in {_listed(equal)}"] * bool(equal)
    return "; ".join(parts) or None


def _slow(trust: Trust, row: Row) -> str | None:
    """How much longer it takes than the quickest method, where that is much."""
    own = _mean(trust, row, "seconds")
    quickest = min((_mean(trust, other, "seconds") for other in trust.methods), key=lambda t: math.inf if t != t else t)
    if own < 10 * quickest or own < 0.1 or math.isnan(own):
        return None
    return f"it takes {own:.1f} s a photo, {own / quickest:.0f} times as long as the quickest"


def _of_reference(trust: Trust, row: Row) -> str:
    """What a map reaches that knows nothing of the network."""
    figures = [
        f"{number(_mean(trust, row, column.name), 2)} in {column.title}"
        for column in _judging(trust, but=(STRUCTURE,))
        if not math.isnan(_mean(trust, row, column.name))
    ]
    what = {CENTRE: "a blob in the middle of every photo", RANDOM: "random numbers"}[row.method]
    if not figures:
        return f"{what}, of which nothing could be measured"
    return f"{what} reaches {_listed(figures)} without looking at the network".replace(
        "numbers reaches", "numbers reach"
    )


def verdict_of(trust: Trust) -> tuple[str, ...]:
    """Which metrics agree, which do not, and which methods do well in most of them."""
    count = sum(row.refused is None for row in trust.methods)
    if count < FEW_METHODS:
        return (f"{counted(count, 'method is', 'methods are')} too few to say which metrics agree.",)
    titles = {column.name: column.title for column in trust.columns}
    known = {pair: tau for pair, tau in trust.agreement.items() if not math.isnan(tau)}
    if not known:
        return ("Too little is measured to say which metrics agree.",)
    alike = sorted((pair for pair, tau in known.items() if tau >= ALIKE), key=lambda pair: -known[pair])
    apart = sorted((pair for pair, tau in known.items() if tau < DIFFERENT), key=lambda pair: known[pair])

    def pairs(several: list[tuple[str, str]]) -> str:
        named = [f"{titles[a]} with {titles[b]} ({number(known[a, b], 2)})" for a, b in several[:_PAIRS]]
        more = len(several) - len(named)
        return "; ".join([*named, *([f"and {counted(more, 'more pair')}"] if more else [])])

    said = []
    if alike:
        said.append(f"These metrics rank the methods alike (Kendall's tau): {pairs(alike)}.")
    if apart:
        said.append(f"These rank them differently, so that no single number decides: {pairs(apart)}.")
    if not apart:
        said.append("No two metrics contradict each other on these methods.")
    return (*said, *_recommended(trust))


def _recommended(trust: Trust) -> tuple[str, ...]:
    """The methods that are among the best in most metrics, and depend on the weights."""
    columns = _telling(trust)
    best = {column.name: _among_best(trust, column) for column in columns}
    often = {
        row.title: sum(row in rows for rows in best.values()) for row in trust.methods if not _is_flagged(trust, row)
    }
    if not columns or not often or not max(often.values()):
        return ()
    most = max(often.values())
    names = [title for title, times in often.items() if times == most]
    kept = "Of the methods that change with the weights, " if any(_is_flagged(trust, r) for r in trust.methods) else ""
    subject = _listed(names) + (" is" if len(names) == 1 else " are")
    text = f"{kept}{subject} most often among the best: in {most} of {counted(len(columns), 'metric')}."
    return (text[0].upper() + text[1:],)


def _is_flagged(trust: Trust, row: Row) -> bool:
    """Whether its maps hardly depend on the weights, beyond chance: its whole interval lies above the threshold."""
    low = trust.intervals[row.key, STRUCTURE][0]
    return low >= SHOWS_EDGES or (math.isnan(low) and _mean(trust, row, STRUCTURE) >= SHOWS_EDGES)


def _judging(trust: Trust, but: tuple[str, ...] = ()) -> list[Column]:
    return [column for column in trust.shown if column.judges and column.name not in but]


def _telling(trust: Trust) -> list[Column]:
    """The columns of enough photos to tell methods apart."""
    centre = trust.row(CENTRE)
    enough = {c.name for c in trust.columns if trust.measured[centre.key, c.name].count >= FEWEST}
    return [column for column in _judging(trust, but=(STRUCTURE,)) if column.name in enough]


def _measured(trust: Trust, column: Column) -> list[Row]:
    return [row for row in trust.methods if not math.isnan(_mean(trust, row, column.name))]


def _among_best(trust: Trust, column: Column) -> list[Row]:
    """The methods that no other is better than, beyond chance, in one column."""
    ranks = trust.ranks[column.name]
    measured = _measured(trust, column)
    best = min(measured, key=lambda row: ranks[row.key], default=None)
    return [] if best is None else [row for row in measured if row is best or trust.compared(best, row, column) <= 0]


def _mean(trust: Trust, row: Row, column: str) -> float:
    measurement = trust.measured.get((row.key, column))
    return math.nan if measurement is None else measurement.mean


def _listed(parts: list[str], mark: str = ",") -> str:
    """Parts in a row, with `and` before the last.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(parts) < 2 or mark != ",":
        return f"{mark} ".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


__all__ = ["ALIKE", "DIFFERENT", "FEW_METHODS", "ON_ITS_OWN", "sentences_of", "verdict_of"]
