"""The pieces that are measured, and all together: a Measurement for each method and metric, with reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.result import Curves, Measurement
from torchviz_cnn.core.errors import counted
from torchviz_cnn.evaluation.columns import MASKED, MOSAICS, NO_MASKS, Column, Stage
from torchviz_cnn.evaluation.rows import Row
from torchviz_cnn.runs.folder import ResultFolder

if TYPE_CHECKING:
    from torchviz_cnn.evaluation.measuring import Run

Piece = tuple[dict[str, Tensor], dict[str, Any]]
"""The numbers of a part, and what is said of them."""

BUDGET = "the budget was spent before"


@dataclass
class Pieces:
    """What is measured so far, a piece for each part: in a folder, or in memory where there is none."""

    folder: ResultFolder | None
    _kept: dict[str, Piece] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether a part is measured."""
        return name in self._kept if self.folder is None else self.folder.has(name)

    def save(self, name: str, piece: Piece) -> None:
        """Keep the numbers of a part and what is said of them."""
        tensors, said = piece
        texts = {key: json.dumps(value) for key, value in said.items()}
        if self.folder is None:
            self._kept[name] = tensors, texts
        else:
            self.folder.save(name, tensors, **texts)

    def load(self, name: str) -> Piece:
        """The numbers of a part and what is said of them."""
        tensors, texts = self._kept[name] if self.folder is None else self.folder.load_with_metadata(name)
        return tensors, {key: json.loads(value) for key, value in texts.items()}


class Table(NamedTuple):
    """What all parts say together."""

    measured: dict[tuple[str, str], Measurement]
    classes: Tensor
    skipped: dict[int, str]
    mosaics: str
    """What the mosaics are, in words."""


def collected(run: Run) -> Table:
    """The pieces as a Measurement for each row and column; what was not measured is NaN, with the reason."""
    classes, skipped = torch.full((len(run.images),), -1), dict[int, str]()
    names = run.images.names
    chosen, about = run.pieces.load(MOSAICS) if run.pieces.has(MOSAICS) else ({}, {})
    mosaics = tuple(f"mosaic {number}" for number in range(len(chosen.get("cells", ()))))
    without = about.get("reason", BUDGET if run.mosaics else "no mosaics were asked for")
    gathered = {
        column.name: _Gathered(run.rows, column, mosaics, dict.fromkeys(range(len(mosaics)), BUDGET), without)
        if column.stage == "mosaics"
        else _Gathered(run.rows, column, names, _usual_reasons(run, column), BUDGET)
        for column in run.columns
    }
    for stage in get_args(Stage):
        for name in run.parts(stage):
            if not run.pieces.has(name):
                continue
            tensors, texts = run.pieces.load(name)
            skipped |= {int(number): reason for number, reason in texts.get("skipped", {}).items()}
            if "classes" in tensors:
                classes[tensors["numbers"]] = tensors["classes"]
            for column in gathered.values():
                column.add(tensors, texts)
    measured: dict[tuple[str, str], Measurement] = {}
    for column in gathered.values():
        measured |= column.measurements(skipped)
    return Table(measured, classes, dict(sorted(skipped.items())), about.get("about", ""))


def _usual_reasons(run: Run, column: Column) -> dict[int, str]:
    """Why an image that nothing else is said of is not measured."""
    if column.name in MASKED and run.masks is None:
        return dict.fromkeys(range(len(run.images)), NO_MASKS)
    chosen = {number for numbers in run.parts(column.stage).values() for number in numbers}
    others = f"it is measured on {counted(len(chosen), 'photo')}, spread evenly over the list, and not on this one"
    return {number: BUDGET if number in chosen else others for number in range(len(run.images))}


class _Gathered:
    """The values of one column, of all images and rows."""

    def __init__(
        self, rows: Sequence[Row], column: Column, names: tuple[str, ...], usual: dict[int, str], nothing: str
    ) -> None:
        self._rows, self._column, self._names, self._usual, self._nothing = rows, column, names, usual, nothing
        self._values = torch.full((len(names), len(rows)), math.nan)
        self._reasons: list[dict[int, str]] = [{} for _ in rows]
        self._curves: dict[int, Tensor] = {}
        self._axis: tuple[Tensor, list[str]] | None = None

    def add(self, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
        """Take in one piece, if it has anything of this column."""
        name = self._column.name
        if name not in tensors:
            return
        numbers = tensors["mosaics" if self._column.stage == "mosaics" else "numbers"].tolist()
        self._values[numbers] = tensors[name]
        for where, reason in texts["reasons"][name].items():
            place, row = map(int, where.split())
            self._reasons[row][numbers[place]] = reason
        if f"{name}/y" in tensors:
            self._axis = tensors[f"{name}/x"], texts["axes"][name]
            self._curves |= dict(zip(numbers, tensors[f"{name}/y"], strict=True))

    def measurements(self, skipped: dict[int, str]) -> dict[tuple[str, str], Measurement]:
        """One for each row."""
        usual = self._usual if self._column.stage == "mosaics" else {**self._usual, **skipped}
        measured = {}
        for place, row in enumerate(self._rows):
            values = self._values[:, place].clone()
            missing = values.isnan().nonzero()[:, 0].tolist()
            reasons = {n: row.refused or self._reasons[place].get(n, usual[n]) for n in missing}
            measured[row.key, self._column.name] = Measurement(
                metric=self._column.name,
                better=self._column.better,
                values=values,
                names=self._names,
                reasons=reasons or ({} if len(values) else {0: row.refused or self._nothing}),
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
        return Curves(x, y, labels[0], labels[1])
