"""The figure of growth: a panel for each axis, with a line for each contender."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth import AXES
from benchmarks.results import Entry, Record
from benchmarks.tasks import BY_HAND, OURS

COLORS = {OURS: "#c2410c", "captum": "#2563eb", "torchcam": "#059669", "grad-cam": "#9333ea", BY_HAND: "#6b7280"}
OTHER = "#9ca3af"


def draw(records: Sequence[Record], path: Path) -> None:
    """Write the figure of the sections `growth` and `grad_cam`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(10.5, 6), layout="constrained")
    for place, axis in zip(axes.flat, AXES, strict=False):
        series = [one for one in records if one.place and one.section == "growth" and one.place[0] == axis]
        points = [(one.place[1], one.entries) for one in series if one.place]
        title = series[0].case.rpartition(",")[0] if series else ""
        panel(place, title, axis, "seconds", points)
    points = batches(records)
    panel(axes[1, 2], "peak memory of Grad-CAM, vgg16", "batch", "MB", points, of_memory=True)
    pyplot.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def batches(records: Sequence[Record]) -> list[tuple[float, list[Entry]]]:
    """Peaks of memory of the first network of `grad_cam`, by batch."""
    first = [one for one in records if one.section == "grad_cam" and one.case.endswith(", 1 class")]
    network = first[0].case.partition(",")[0] if first else ""
    chosen = [one for one in first if one.case.startswith(f"{network},")]
    return [(float(one.case.split("batch ")[1].partition(",")[0]), one.entries) for one in chosen]


def panel(
    place: Any, title: str, axis: str, unit: str, points: list[tuple[float, list[Entry]]], of_memory: bool = False
) -> None:
    """One axis: medians with their quartiles, or peaks of memory."""
    from matplotlib import ticker

    for name in dict.fromkeys(one.name for _, entries in points for one in entries):
        line = [(x, one) for x, entries in points for one in entries if one.name == name]
        xs = [x for x, _ in line]
        ys = [(one.peak or 0) / 2**20 if of_memory else one.timing.median for _, one in line]
        base = name.partition(",")[0]
        dashed = base not in COLORS
        style = {"color": COLORS.get(base, OTHER), "linestyle": ":" if dashed else "-", "marker": "o", "markersize": 3}
        place.plot(xs, ys, label=name, linewidth=2.2 if name == OURS else 1.4, zorder=3 if name == OURS else 2, **style)
        if not of_memory:
            low, high = zip(*(one.timing.quartiles for _, one in line), strict=True)
            place.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    place.set(xscale="log", yscale="log", title=title, xlabel=axis, ylabel=unit)
    plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    place.yaxis.set_major_locator(ticker.LogLocator(10, (1, 2, 5)))
    place.yaxis.set_major_formatter(plain)
    place.yaxis.set_minor_formatter(ticker.NullFormatter())
    if points:
        ticks = [x for x, _ in points]
        place.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
        place.set_xticks([], minor=True)
        place.legend(fontsize=8, frameon=False)
    place.title.set_fontsize(10)
    place.grid(alpha=0.25)
