"""The loop: a part of the photos after another, in which all columns judge the maps of all methods."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import AllImages, Images
from torchviz_cnn.attribution.metrics.localisation import Masks
from torchviz_cnn.attribution.metrics.mosaics import Mosaics, own_cell
from torchviz_cnn.attribution.metrics.parts import REFUSALS, Part, Subject, at_size, made_maps
from torchviz_cnn.attribution.metrics.perturbation import EMPTY
from torchviz_cnn.attribution.metrics.randomization import cascade, cascaded
from torchviz_cnn.core.errors import InputError, ModelError, one_line
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.evaluation.collecting import Piece, Pieces
from torchviz_cnn.evaluation.columns import MOSAICS, STRUCTURE, Column, Setting, Stage
from torchviz_cnn.evaluation.rows import Row
from torchviz_cnn.hooks.inputs import Output, batch_of, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.layers.random_weights import RandomLayers
from torchviz_cnn.scores.targets import asked

_GOLDEN = (math.sqrt(5) - 1) / 2
_SHARES: tuple[tuple[Stage, float], ...] = (
    ("maps", 0.2),
    ("weights", 0.35),
    ("mosaics", 0.5),
    ("perturbation", 1.0),
    ("maps", 1.0),
    ("weights", 1.0),
    ("mosaics", 1.0),
)
"""The stages in their order, and up to which share of the budget each may begin a part; what is left is for the first
ones again."""
_AT_ONCE = 4
"""Photos, or mosaics, of a part that takes long."""
_OF_PERTURBED = 4
"""Of so many photos that are changed, one is explained by networks with random weights; as many at least."""
_HINT = ": give more photos, or a smaller n or threshold"
"""What a user of `Mosaics` can do, of which a user of `trust` has a part."""
_FEWEST_MOSAICS = 24
"""How many there are of four photos of four classes."""


def spread(count: int) -> list[int]:
    """All numbers below `count` in an order of which every beginning is spread evenly over the list.

    >>> spread(10)[:4]
    [0, 5, 2, 7]
    """
    return sorted(range(count), key=lambda number: number * _GOLDEN % 1)


class Judged:
    """A few photos with the maps of all methods."""

    def __init__(self, together: Part, alone: list[Part], seconds: list[float], failed: dict[tuple[int, int], str]):
        self.together = together
        """All methods, enlarged to the size of the input, which stand where the classes do."""
        self.alone = alone
        """Each method by itself."""
        self.seconds = seconds
        """How long each took an image."""
        self.failed = failed
        """Why a map could not be made, by the place of the photo and of the method."""


@dataclass(frozen=True, eq=False)
class Run:
    """What is measured, on what, and how."""

    model: Model
    photos: Images
    """As they were given,"""
    images: AllImages
    """and as they are read."""
    classes: list[int] | None
    """The class of each photo; None: the network's top class."""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    pieces: Pieces
    masks: Masks | None
    output: Output
    threshold: float
    tolerance: float
    steps: int
    seed: int
    batch_size: int
    perturbed: int
    mosaics: int
    until: float
    """When no further part is begun, on the clock of `time.monotonic`."""
    begun: float
    progress: bool

    def parts(self, stage: Stage) -> dict[str, list[int]]:
        """The numbers of the photos, or mosaics, of each part, by its name: one at first, then twice as many."""
        if stage == "mosaics":
            order, most = list(range(self.count_of_mosaics)), _AT_ONCE
        elif stage != "maps":
            count = self.perturbed if stage == "perturbation" else max(_OF_PERTURBED, self.perturbed // _OF_PERTURBED)
            order, most = spread(len(self.images))[: min(count, self.perturbed)], min(self.batch_size, _AT_ONCE)
        else:
            order, most = spread(len(self.images)), self.batch_size
        parts, first, size = dict[str, list[int]](), 0, 1
        while first < len(order):
            parts[f"{stage}-{len(parts):05d}"] = order[first : first + size]
            first, size = first + size, min(2 * size, most)
        return parts

    @property
    def count_of_mosaics(self) -> int:
        """How many mosaics there are, as far as that is known."""
        return len(self.pieces.load(MOSAICS)[0]["cells"]) if self.pieces.has(MOSAICS) else 0

    def measure(self) -> None:
        """Measure all parts that are not yet, as long as there is time."""
        for stage, share in _SHARES:
            # The page draws two photos of each method after that.
            drawing = 0 if self.pieces.folder is None else 2 * self._pace("maps")
            until = self.begun + share * (self.until - self.begun - drawing)
            if stage == "mosaics" and self.mosaics and not self.pieces.has(MOSAICS):
                self._choose_mosaics(until)
            self._measure(stage, until)

    def _measure(self, stage: Stage, until: float) -> None:
        """Measure the parts of a stage that are not yet, each if it is done in time at the pace of the one before."""
        parts = self.parts(stage)
        left = {name: numbers for name, numbers in parts.items() if not self.pieces.has(name)}
        what = " mosaics" if stage == "mosaics" else " photos"
        done = sum(len(numbers) for name, numbers in parts.items() if name not in left)
        options = {"total": sum(map(len, parts.values())), "initial": done, "desc": stage, "unit": what}
        pace = self._pace(stage)
        with progress_bar(self.progress and bool(left), **options) as bar:
            for name, numbers in left.items():
                begun = time.monotonic()
                if begun + pace * len(numbers) >= until:
                    return
                tensors, texts = self._mosaics(numbers) if stage == "mosaics" else self._piece(stage, numbers)
                pace = (time.monotonic() - begun) / len(numbers)
                self.pieces.save(name, (tensors, {**texts, "pace": pace}))
                bar.update(len(numbers))

    def _pace(self, stage: Stage) -> float:
        """How many seconds a photo, or mosaic, took in the last part of a stage that is measured; 0 where none is."""
        last = next((name for name in reversed(self.parts(stage)) if self.pieces.has(name)), None)
        return 0.0 if last is None else float(self.pieces.load(last)[1]["pace"])

    def _piece(self, stage: Stage, numbers: list[int]) -> Piece:
        """What all columns of a stage say of the maps of all methods on some photos."""
        read, photos, skipped = self.images.take(numbers)
        tensors: dict[str, Tensor] = {"numbers": torch.tensor(read, dtype=torch.long)}
        texts: dict[str, Any] = {"skipped": skipped, "reasons": {}, "axes": {}}
        if not read:
            return tensors, texts
        with self._judged(read, photos) as judged:
            tensors["classes"] = judged.together.targets.classes[:, 0].cpu()
            if stage == "weights":
                self._judge_weights(judged, tensors, texts)
            for column in self.columns:
                if column.stage != stage or column.measure is None:
                    continue
                if stage == "maps":
                    self._judge_each(column, judged, tensors, texts)
                else:
                    self._judge_all(column, judged, tensors, texts)
        return tensors, texts

    def _judge_each(self, column: Column, judged: Judged, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
        """What a column says of each method by itself."""
        values, reasons = list[Tensor](), dict[tuple[int, int], str]()
        for place, part in enumerate(judged.alone):
            if len([one for one in judged.failed if one[1] == place]) == len(part.numbers):
                values.append(torch.full((len(part.numbers), 1), math.nan))
            else:
                setting = replace(self._setting, seconds=judged.seconds[place])
                rows = column.measure(part, setting)  # type: ignore[misc]
                values.append(rows.values.float())
                reasons |= {(image, place): reason for image, reason in rows.reasons.items()}
        tensors[column.name] = torch.cat(values, 1)
        texts["reasons"][column.name] = _marked(tensors[column.name], reasons | judged.failed, judged.failed)

    def _judge_all(self, column: Column, judged: Judged, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
        """What a column says of all methods at once."""
        part = judged.together
        rows = column.measure(part, self._setting)  # type: ignore[misc]
        values = tensors[column.name] = rows.values.float()
        missing = values.isnan().nonzero().tolist()
        reasons = {
            (image, row): EMPTY if bool(part.empty[image, row]) else rows.reasons.get(image, "it could not be measured")
            for image, row in missing
        }
        texts["reasons"][column.name] = _marked(values, reasons | judged.failed, judged.failed)
        if rows.curves is not None:
            tensors[f"{column.name}/y"], tensors[f"{column.name}/x"] = rows.curves.y.float(), rows.curves.x.float()
            texts["axes"][column.name] = [rows.curves.x_label, rows.curves.y_label]

    def _judge_weights(self, judged: Judged, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
        """How alike the maps of each method stay while the weights become random, from the output down."""
        layers = self._random
        images, count = judged.together.raw.shape[:2]
        steps = 1 if isinstance(layers, str) else len(cascade(layers.names))
        alike, reasons = torch.full((images, count, steps, 2), math.nan), dict(judged.failed)
        if not isinstance(layers, str):
            pairs = enumerate(zip(judged.alone, self.rows, strict=True))
            methods = {place: (part, row.explain) for place, (part, row) in pairs if row.refused is None}
            for place, step, said in cascaded(layers, methods, self.seed):
                if isinstance(said, str):
                    reasons |= {(image, place): said for image in range(images)}
                else:
                    alike[:, place, step] = said[:, 0, [0, 2]].cpu()
        usual = layers if isinstance(layers, str) else "the map, or that with random weights, is the same everywhere"
        empty = judged.together.empty
        for name, values in ((STRUCTURE, alike[..., 1].nanmean(2)), ("randomization", alike[..., -1, 0])):
            tensors[name] = values.clone()
            own = {(i, k): EMPTY if bool(empty[i, k]) else usual for i, k in values.isnan().nonzero().tolist()}
            texts["reasons"][name] = _marked(tensors[name], own | reasons, judged.failed)

    @cached_property
    def _setting(self) -> Setting:
        return Setting(steps=self.steps, tolerance=self.tolerance, seed=self.seed, masks=self.masks)

    @cached_property
    def _random(self) -> RandomLayers | str:
        """The network whose weights can be made random; or why there is none."""
        number = next(number for number in spread(len(self.images)) if self.images.take([number])[0])
        x, _ = batch_of(self.model, self.images.take([number])[1])
        try:
            return RandomLayers(self.model, x)
        except ModelError as error:  # as for a model without weights
            return one_line(error)

    @contextmanager
    def _judged(self, numbers: list[int], photos: Any) -> Iterator[Judged]:
        """Some photos with the maps of all methods."""
        x, origin = batch_of(self.model, photos)
        own = None if self.classes is None else torch.tensor([self.classes[number] for number in numbers])
        with prepared(self.model, x, dims=(2,), output=self.output) as given:
            given = replace(given, origin=origin)
            targets = asked(given, own, "probability")
            subject = Subject(numbers, self.model, given, targets, targets.classes[:, 0])
        maps, seconds, failed = self._maps(subject, x)
        several = replace(targets, classes=targets.classes.expand(-1, len(self.rows)), single=False)
        with prepared(self.model, x, dims=(2,), output=self.output) as given:
            subject = replace(subject, given=replace(given, origin=origin))
            alone = [Part.of(subject, one) for one in maps]
            raw = torch.cat([at_size(part.raw, given.input_size) for part in alone], dim=1)
            yield Judged(Part.of(replace(subject, targets=several), raw), alone, seconds, failed)

    def _maps(self, subject: Subject, x: Tensor) -> tuple[list[Tensor], list[float], dict[tuple[int, int], str]]:
        """The maps (B, 1, h, w) of each row, how long each took an image, and why maps are not there: zeros stand."""
        maps: list[Tensor] = []
        seconds, failed = [math.nan] * len(self.rows), dict[tuple[int, int], str]()
        for place, row in enumerate(self.rows):
            begun = time.perf_counter()
            made, wrong = made_by(row, subject, x)
            if made.is_cuda:
                torch.cuda.synchronize(made.device)
            if not wrong:
                seconds[place] = (time.perf_counter() - begun) / len(x)
            failed |= {(image, place): reason for image, reason in wrong.items()}
            maps.append(made)
        return maps, seconds, failed

    def _choose_mosaics(self, until: float) -> None:
        """Choose the photos of mosaics among as many as there is time to look at, where it is less than for their maps.

        What is kept is the choice; or, in words, why there is none.
        """
        left, pace, count = until - time.monotonic(), self._pace("maps"), len(self.images)
        if left <= 0:
            return
        among = None if pace * count <= left else sorted(spread(count)[: int(left / pace)])
        chosen = self._mosaics_among(among)
        if not isinstance(chosen, str):
            numbers = torch.tensor([chosen.recognised, chosen.recognised_classes, chosen.looked_at])
            tensors = {"cells": chosen.cells, "classes": chosen.classes, "recognised": numbers}
            self.pieces.save(MOSAICS, (tensors, {"about": repr(chosen)}))
        elif among is None:
            nothing = torch.zeros(0, 4, dtype=torch.long)
            self.pieces.save(MOSAICS, ({"cells": nothing, "classes": nothing}, {"reason": chosen}))

    def _mosaics_among(self, among: list[int] | None) -> Mosaics | str:
        """As many mosaics as were asked for, or as few as make sense; in words, why there are none."""
        options: dict[str, Any] = {"truth": "predicted" if self.classes is None else self.classes, "among": among}
        options |= {"batch_size": self.batch_size, "seed": self.seed, "threshold": self.threshold}
        reason = ""
        for count in dict.fromkeys([self.mosaics, min(self.mosaics, _FEWEST_MOSAICS)]):
            try:
                return Mosaics.of(
                    self.model, self.photos, count=count, output=self.output, **options, progress=self.progress
                )
            except InputError as error:
                reason = one_line(error).replace(_HINT, "; give more photos")
        return reason

    @cached_property
    def _chosen(self) -> Mosaics:
        """The mosaics that were chosen, also by an earlier run."""
        tensors, _ = self.pieces.load(MOSAICS)
        recognised, classes, looked_at = tensors["recognised"].tolist()
        return Mosaics(
            images=self.images,
            cells=tensors["cells"],
            classes=tensors["classes"],
            n=2,
            size="grow",
            threshold=self.threshold,
            recognised=recognised,
            recognised_classes=classes,
            looked_at=looked_at,
            labelled=self.classes is not None,
            categories=getattr(self.model, "categories", None),
        )

    def _mosaics(self, numbers: list[int]) -> Piece:
        """What share of the evidence lies in its own cell, for all methods on some mosaics."""
        some = replace(self._chosen, cells=self._chosen.cells[numbers], classes=self._chosen.classes[numbers])
        values = torch.full((len(numbers), len(self.rows)), math.nan)
        reasons: dict[tuple[int, int], str] = {}
        for place, row in enumerate(self.rows):
            if row.refused is not None:
                continue
            try:
                measured = own_cell(self.model, some, row.explain)
            except REFUSALS as error:
                reasons |= {(image, place): one_line(error) for image in range(len(numbers))}
                continue
            values[:, place] = measured.values
            reasons |= {(image, place): reason for image, reason in measured.reasons.items()}
        names = [some.name(place) for place in range(len(numbers))]
        return {"mosaics": torch.tensor(numbers), MOSAICS: values}, {
            "reasons": {MOSAICS: _marked(values, reasons, {})},
            "names": names,
        }


def made_by(row: Row, subject: Subject, x: Tensor) -> tuple[Tensor, dict[int, str]]:
    """The maps (B, 1, h, w) of a row, and why those of images cannot be used, for which zeros stand."""
    refused = row.refused
    if refused is None:
        try:
            return made_maps(subject, row.explain, subject.model, x)
        except REFUSALS as error:
            refused = one_line(error)
    return torch.zeros(len(x), 1, 1, 1), dict.fromkeys(range(len(x)), refused)


def _marked(
    values: Tensor, reasons: dict[tuple[int, int], str], failed: Sequence[tuple[int, int]] | dict[tuple[int, int], str]
) -> dict[str, str]:
    """Why each value that is not there is not, by its place and row; what was measured of no map is taken away."""
    for image, row in failed:
        values[image, row] = math.nan
    return {f"{image} {row}": reasons.get((image, row), "") for image, row in values.isnan().nonzero().tolist()}
