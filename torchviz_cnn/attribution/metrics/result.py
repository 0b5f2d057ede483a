"""`Measurement`: what a metric gives for each image, their mean, and how sure the mean is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, OutputError, counted
from torchviz_cnn.media import figures
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.runs import files

Better = Literal["higher", "lower", "neither"]
"""Which values are those of the better map."""
_RESAMPLES = 2000
_NUMBERS_AT_ONCE = 1_000_000
_TICKS = 30
"""How many places with names the axis of a plot shows."""


class Curves(NamedTuple):
    """How a number goes along an axis, for each image."""

    x: Tensor
    """The places on the axis: (S,)."""
    y: Tensor
    """The number there: (N, S), or (N, K, S)."""
    x_label: str
    y_label: str
    ticks: tuple[str, ...] = ()
    """What the places are called, where they have names: S of them; y is then a correlation."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """What a metric says of the maps of N images. Its mean comes with an interval, as few images say little."""

    metric: str
    """Its name in `torchviz_cnn.metrics`."""
    better: Better
    """Which values are those of a good map."""
    values: Tensor
    """The value of each image: (N,), or (N, K) of K classes, float32 on the CPU; NaN where it could not be measured."""
    names: tuple[str, ...]
    """What each image is called."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Why the value of an image could not be measured, by its number."""
    details: Mapping[str, Tensor] = field(default_factory=dict)
    """Further numbers of each image by name: (N, ...)."""
    curves: Curves | None = None
    """What the values are the areas or means of, where there is such a curve."""

    @property
    def count(self) -> int:
        """How many images could be measured."""
        return int(self._of_images().isfinite().sum())

    @property
    def mean(self) -> float:
        """The mean over the images that could be measured; NaN where none could."""
        return float(self._of_images().double().nanmean())

    @property
    def interval(self) -> tuple[float, float]:
        """Between which two numbers the mean lies with 95 %: a percentile bootstrap over the images, always the same.

        NaN twice where fewer than two images could be measured.
        """
        return bootstrap_interval(self._of_images())

    def _of_images(self) -> Tensor:
        """One number an image: (N,)."""
        return self.values if self.values.ndim == 1 else self.values.nanmean(1)

    def plot(self) -> Image.Image:
        """Draw the mean curve with its 95 % interval, where there is one, and beside it the values of all images."""
        return measurement_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write all values and reasons to a `.json` or `.csv` file. Raises OutputError for another, or no such place.

        A value that could not be measured is null in JSON, and in CSV an empty field with the reason beside it.
        """
        kind = checks.path("path", path).suffix.lower()
        if kind not in (".json", ".csv"):
            raise OutputError(f"cannot write {path}: measurements are saved as .json or .csv")
        text = json.dumps(self._record(), indent=1, ensure_ascii=False) + "\n" if kind == ".json" else self._table()
        return files.write(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))

    def _record(self) -> dict[str, Any]:
        low, high = self.interval
        images = [
            {"name": name, "value": plain(self.values[i]), "reason": self.reasons.get(i)}
            | {key: plain(numbers[i]) for key, numbers in self.details.items()}
            for i, name in enumerate(self.names)
        ]
        record = {"metric": self.metric, "better": self.better, "measured": self.count, "images": len(self.names)}
        record |= {"mean": plain(self.mean), "interval": [plain(low), plain(high)], "values": images}
        if self.curves is not None:
            y = self.curves.y.flatten(1, -2) if self.curves.y.ndim == 3 else self.curves.y
            places = list(self.curves.ticks) or plain(self.curves.x)
            record["curve"] = {self.curves.x_label: places, self.curves.y_label: plain(y.nanmean(0))}
        return record

    def _table(self) -> str:
        several = self.values.ndim == 2
        columns = [f"{self.metric}[{k}]" for k in range(self.values.shape[1])] if several else [self.metric]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", *columns, "reason"])
        for i, name in enumerate(self.names):
            numbers = ["" if number is None else number for number in plain(self.values[i].reshape(-1))]
            writer.writerow([name, *numbers, self.reasons.get(i, "")])
        return text.getvalue()

    def _repr_png_(self) -> bytes | None:
        return pictures.png(self.plot)

    def __repr__(self) -> str:
        low, high = self.interval
        all_of = counted(len(self.names), "image")
        of = all_of if self.count == len(self.names) else f"{self.count} of {all_of}"
        sense = "" if self.better == "neither" else f"; {self.better} is better"
        interval = f" ({low:.3f} to {high:.3f})" if self.count > 1 else ""
        mean = f"{self.mean:.3f}{interval}" if self.count else "not measured"
        return f"Measurement({self.metric}: {mean}, {of}{sense})"


def bootstrap_interval(values: Tensor) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the means of 2,000 resamples of the finite values (N,)."""
    finite = values[values.isfinite()].double()
    if len(finite) < 2:
        return float("nan"), float("nan")
    chance = torch.Generator().manual_seed(0)
    count, means = len(finite), []
    at_once = max(1, _NUMBERS_AT_ONCE // count)
    for start in range(0, _RESAMPLES, at_once):
        size = (min(at_once, _RESAMPLES - start), count)
        means.append(finite[torch.randint(count, size, generator=chance)].mean(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def plain(value: Any) -> Any:
    """Numbers as JSON has them: lists of floats, and None for what is not finite.

    >>> plain(torch.tensor([1.0, float("nan")]))
    [1.0, None]
    """
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value if not isinstance(value, float) or np.isfinite(value) else None


@figures.usual_style()
def measurement_figure(measurement: Measurement) -> Image.Image:
    """The mean curve with its interval, and a histogram of the values where there are several."""
    from matplotlib.figure import Figure

    curves = measurement.curves
    both = curves is not None and measurement.count != 1
    figure = Figure(figsize=(9 if both else 4.6, 3.4), dpi=110, layout="constrained")
    places = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    if curves is not None:
        y = curves.y if curves.y.ndim == 2 else curves.y.nanmean(1)
        if not bool(y.isfinite().any()):
            raise InputError(f"{measurement.metric} could be measured for no image: {_first_reason(measurement)}")
        intervals = torch.tensor([bootstrap_interval(column) for column in y.T])
        places[0].plot(curves.x, y.nanmean(0), color="C0")
        places[0].fill_between(curves.x, intervals[:, 0], intervals[:, 1], color="C0", alpha=0.2, linewidth=0)
        places[0].set_xlabel(curves.x_label)
        if curves.ticks:
            shown = range(0, len(curves.ticks), -(-len(curves.ticks) // _TICKS))
            places[0].set_xticks([float(curves.x[i]) for i in shown], [curves.ticks[i] for i in shown], fontsize=6)
            places[0].tick_params(axis="x", rotation=90)
            low, high = places[0].get_ylim()
            places[0].set_ylim(min(low, -0.05), max(high, 1.05))
        places[0].set_ylabel(curves.y_label)
        if both:
            places[0].set_title("mean of the images, and its 95 % interval", fontsize=9)
    values = measurement._of_images()
    finite = values[values.isfinite()]
    if not len(finite):
        raise InputError(f"{measurement.metric} could be measured for no image: {_first_reason(measurement)}")
    if curves is None or both:
        _histogram(places[-1], measurement, finite)
    figure.suptitle(repr(measurement).removeprefix("Measurement(").removesuffix(")"), fontsize=10, parse_math=False)
    return figures.figure_image(figure)


def _histogram(axes: Any, measurement: Measurement, finite: Tensor) -> None:
    """Draw how the values of the images are spread, and their mean."""
    axes.hist(finite.numpy(), bins=min(20, max(len(finite), 1)), color="C0")
    axes.axvline(measurement.mean, color="black", linewidth=1)
    axes.set_xlabel(measurement.metric.replace("_", " "))
    axes.set_ylabel("images")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title("all images; the line is their mean", fontsize=9)


def _first_reason(measurement: Measurement) -> str:
    return next(iter(measurement.reasons.values()), "no reason is known")
