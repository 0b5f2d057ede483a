"""The loop: a part of the photos after another, in which all columns judge the maps of all methods."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.parts import AllImages, Part, Rows, at_size, made_maps
from torchviz_cnn.attribution.metrics.perturbation import EMPTY
from torchviz_cnn.attribution.metrics.result import Curves, Measurement
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.evaluation.columns import Column, Setting, Stage
from torchviz_cnn.evaluation.rows import REFUSALS, Row, quiet
from torchviz_cnn.hooks.inputs import batch_of, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.scores.targets import asked

_GOLDEN = (math.sqrt(5) - 1) / 2
_SHARES: tuple[tuple[Stage, float], ...] = (("maps", 0.35), ("mosaics", 0.5), ("perturbation", 1.0), ("maps", 1.0))
"""The stages in their order, and up to which share of the budget each may begin a part: what is left is for the first
ones again."""
_PERTURBED_AT_ONCE = 4
BUDGET = "the budget was spent before"


def spread(count: int) -> list[int]:
    """All numbers below `count` in an order of which every beginning is spread evenly over the list.

    >>> spread(10)[:4]
    [0, 5, 2, 7]
    """
    return sorted(range(count), key=lambda number: number * _GOLDEN % 1)


@dataclass
class Pieces:
    """What is measured so far, a piece for each part: in a folder, or in memory where there is none."""

    folder: ResultFolder | None
    _kept: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether a part is measured."""
        return name in self._kept or (self.folder is not None and self.folder.has(name))

    def save(self, name: str, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
        """Keep the numbers of a part and what is said of them."""
        said = {key: json.dumps(value) for key, value in texts.items()}
        if self.folder is None:
            self._kept[name] = tensors, said
        else:
            self.folder.save(name, tensors, **said)

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The numbers of a part and what is said of them."""
        tensors, said = self._kept[name] if self.folder is None else self.folder.load_with_metadata(name)
        return tensors, {key: json.loads(value) for key, value in said.items()}


@dataclass(frozen=True, eq=False)
class Run:
    """What is measured, on what, and how."""

    model: Model
    images: AllImages
    classes: list[int] | None
    """The class of each photo; None: the network's top class."""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    pieces: Pieces
    steps: int
    seed: int
    batch_size: int
    perturbed: int
    until: float
    """When no further part is begun, on the clock of `time.monotonic`."""
    begun: float
    progress: bool

    def parts(self, stage: Stage) -> dict[str, list[int]]:
        """The numbers of the photos of each part, by its name."""
        order = spread(len(self.images))
        size = self.batch_size
        if stage == "perturbation":
            order, size = order[: self.perturbed], min(self.batch_size, _PERTURBED_AT_ONCE)
        return {f"{stage}-{first // size:05d}": order[first : first + size] for first in range(0, len(order), size)}

    def measure(self) -> None:
        """Measure all parts that are not yet, as long as there is time."""
        for stage, share in _SHARES:
            until = self.begun + share * (self.until - self.begun)
            self._measure(stage, until)

    def _measure(self, stage: Stage, until: float) -> None:
        columns = [column for column in self.columns if column.stage == stage and column.measure is not None]
        if not columns:
            return
        parts = self.parts(stage)
        left = {name: numbers for name, numbers in parts.items() if not self.pieces.has(name)}
        options = {"total": sum(map(len, parts.values())), "desc": stage, "unit": " photos"}
        done = sum(len(numbers) for name, numbers in parts.items() if name not in left)
        with progress_bar(self.progress and bool(left), initial=done, **options) as bar:
            for name, numbers in left.items():
                if time.monotonic() >= until:
                    return
                self.pieces.save(name, *self._piece(numbers, columns))
                bar.update(len(numbers))

    def _piece(self, numbers: list[int], columns: Sequence[Column]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What all columns say of the maps of all methods on some photos."""
        read, photos, skipped = self.images.take(numbers)
        tensors: dict[str, Tensor] = {"numbers": torch.tensor(read, dtype=torch.long)}
        texts: dict[str, Any] = {"skipped": skipped, "reasons": {}, "axes": {}}
        if not read:
            return tensors, texts
        with self._part(read, photos) as (part, setting, failed):
            tensors["classes"] = part.targets.classes[:, 0].cpu()
            tensors["probability"] = part.targets.scores[:, 0].cpu()
            for column in columns:
                rows = column.measure(part, setting)  # type: ignore[misc]
                tensors[column.name] = rows.values.float()
                texts["reasons"][column.name] = _mark(tensors[column.name], rows, part, failed)
                if rows.curves is not None:
                    tensors[f"{column.name}/y"] = rows.curves.y.float()
                    tensors[f"{column.name}/x"] = rows.curves.x.float()
                    texts["axes"][column.name] = [rows.curves.x_label, rows.curves.y_label]
        return tensors, texts

    @contextmanager
    def _part(self, numbers: list[int], photos: Any) -> Iterator[tuple[Part, Setting, dict[int, str]]]:
        """Some photos with the maps of all methods, which stand where the classes do, and which methods failed."""
        x, origin = batch_of(self.model, photos)
        own = None if self.classes is None else torch.tensor([self.classes[number] for number in numbers])
        with prepared(self.model, x, dims=(2,)) as given:
            given = replace(given, origin=origin)
            targets = asked(given, own, "probability")
        target = targets.classes[:, 0]
        maps, seconds, failed = self._maps(self.model, x, target, targets)
        raw = torch.cat([at_size(one.to(given.x.device), given.input_size) for one in maps], dim=1)
        several = replace(targets, classes=targets.classes.expand(-1, len(self.rows)), single=False)
        with prepared(self.model, x, dims=(2,)) as given:
            given = replace(given, origin=origin)
            part = Part(numbers, self.model, given, several, raw, target)
            yield part, Setting(self.steps, self.seed, seconds), failed

    def _maps(
        self, model: Model, x: Tensor, target: Tensor, targets: Any
    ) -> tuple[list[Tensor], Tensor, dict[int, str]]:
        """The maps (B, 1, h, w) of each row, how long each took an image, and why a row has none."""
        maps, seconds, failed = [], torch.full((len(self.rows),), math.nan), {}
        for place, row in enumerate(self.rows):
            made = torch.zeros(len(x), 1, 1, 1)
            if row.refused is not None:
                failed[place] = row.refused
            else:
                begun = time.perf_counter()
                try:
                    with quiet():
                        made = made_maps(row.explain, model, x, target, [], 0, targets)
                    if made.is_cuda:
                        torch.cuda.synchronize(made.device)
                    seconds[place] = (time.perf_counter() - begun) / len(x)
                except REFUSALS as error:
                    failed[place] = " ".join(str(error).split())
            maps.append(made)
        return maps, seconds, failed


def _mark(values: Tensor, rows: Rows, part: Part, failed: dict[int, str]) -> dict[str, str]:
    """Why each value that is not there is not, by its place and row; what a failed row has is taken away."""
    values[:, list(failed)] = math.nan
    reasons = {}
    for place, row in values.isnan().nonzero().tolist():
        usual = EMPTY if bool(part.empty[place, row]) else rows.reasons.get(place, "it could not be measured")
        reasons[f"{place} {row}"] = failed.get(row, usual)
    return reasons


class Table(NamedTuple):
    """What all parts say together."""

    measured: dict[tuple[str, str], Measurement]
    classes: Tensor
    skipped: dict[int, str]


def collected(run: Run) -> Table:
    """The pieces as a Measurement for each row and column; what was not measured is NaN, with the reason."""
    classes, skipped = torch.full((len(run.images),), -1), dict[int, str]()
    gathered = {column.name: _Gathered(run, column) for column in run.columns}
    for stage in ("maps", "perturbation"):
        for name in run.parts(stage):
            if not run.pieces.has(name):
                continue
            tensors, texts = run.pieces.load(name)
            skipped |= {int(number): reason for number, reason in texts["skipped"].items()}
            if len(tensors["numbers"]):
                classes[tensors["numbers"]] = tensors["classes"]
            for column in gathered.values():
                column.add(tensors, texts)
    measured: dict[tuple[str, str], Measurement] = {}
    for column in gathered.values():
        measured |= column.measurements(skipped)
    return Table(measured, classes, dict(sorted(skipped.items())))


class _Gathered:
    """The values of one column, of all photos and rows."""

    def __init__(self, run: Run, column: Column) -> None:
        self._run, self._column = run, column
        self._values = torch.full((len(run.images), len(run.rows)), math.nan)
        self._reasons: list[dict[int, str]] = [{} for _ in run.rows]
        self._curves: dict[int, Tensor] = {}
        self._axis: tuple[Tensor, list[str]] | None = None

    def add(self, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
        """Take in one piece, if it has anything of this column."""
        name = self._column.name
        if name not in tensors:
            return
        numbers = tensors["numbers"].tolist()
        self._values[numbers] = tensors[name]
        for where, reason in texts["reasons"][name].items():
            place, row = map(int, where.split())
            self._reasons[row][numbers[place]] = reason
        if f"{name}/y" in tensors:
            self._axis = tensors[f"{name}/x"], texts["axes"][name]
            self._curves |= dict(zip(numbers, tensors[f"{name}/y"], strict=True))

    def measurements(self, skipped: dict[int, str]) -> dict[tuple[str, str], Measurement]:
        """One for each row."""
        chosen = {number for numbers in self._run.parts(self._column.stage).values() for number in numbers}
        others = "it is not among the photos that are changed" if len(chosen) < len(self._values) else ""
        usual = {n: skipped.get(n, BUDGET if n in chosen else others) for n in range(len(self._values))}
        measured = {}
        for place, row in enumerate(self._run.rows):
            values = self._values[:, place].clone()
            missing = values.isnan().nonzero()[:, 0].tolist()
            reasons = {n: row.refused or self._reasons[place].get(n, usual[n]) for n in missing}
            measured[row.key, self._column.name] = Measurement(
                metric=self._column.name,
                better=self._column.better,
                values=values,
                names=self._run.images.names,
                reasons=reasons,
                curves=self._curve(place),
            )
        return measured

    def _curve(self, place: int) -> Curves | None:
        if self._axis is None:
            return None
        x, labels = self._axis
        y = torch.full((len(self._values), len(x)), math.nan)
        for number, curves in self._curves.items():
            y[number] = curves[place]
        return Curves(x, y, *labels)
