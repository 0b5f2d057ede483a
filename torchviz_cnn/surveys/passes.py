"""The pass over the photos: batches that ranks share, reduced at once to columns and sums, saved as they go."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.localisation import Masks
from torchviz_cnn.core.errors import InputError, NotFiniteError, OutputError, TargetError, counted
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.render import Array
from torchviz_cnn.runs.folder import ANEW, STATE, ResultFolder
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.runs.workers import watching_workers
from torchviz_cnn.surveys.evidence import Where, coverage, inside, where
from torchviz_cnn.surveys.maps import Explained, Explainer
from torchviz_cnn.surveys.result import GRID, relative_name
from torchviz_cnn.topk.pieces.cutting import Batches
from torchviz_cnn.topk.reading import Batch, read_batches

TOP = 5
_GROWTH = 0.1
"""The state is saved again once it grew by this share, so that what is written in all is a few times its size."""


class Classes:
    """The true class of each photo, by its place in the source or by its label there; None: there are none."""

    def __init__(
        self,
        given: Sequence[int] | None = None,
        of_labels: Mapping[int, int] | None = None,
        outputs: int | None = None,
    ) -> None:
        self.given = given
        self.outputs = outputs
        """How many classes the network has, where labels are not matched to them before."""
        self.of_labels = of_labels
        """The network's class of each label of the source; without an entry it is the label itself."""
        self.labelled = given is not None or of_labels is not None

    def of(self, source: ImageSource, places: Sequence[int], labels: Sequence[int | None]) -> Tensor | None:
        """The classes of some photos. Raises InputError for one without a label, TargetError for one of no class."""
        if not self.labelled:
            return None
        if self.given is not None:
            return torch.tensor([self.given[place] for place in places])
        for place, label in zip(places, labels, strict=True):
            if label is None:
                raise InputError(f"{source.name(place)} has no label, and others have; truth='none' takes none")
            if self.outputs is not None and label >= self.outputs:
                count = self.outputs
                raise TargetError(
                    f"{source.name(place)} has the class {label}; the network has {count}, 0 to {count - 1}"
                )
        return torch.tensor([(self.of_labels or {}).get(int(label or 0), int(label or 0)) for label in labels])


class Part(NamedTuple):
    """What a rank has of one batch."""

    number: int
    columns: dict[str, Array]
    cells: Array
    """The share of the evidence in each cell of each photo: (B, 40, 40)."""
    coverage: Array
    """How many of the photos the network sees in each cell: (40, 40)."""
    skipped: dict[int, str]


@dataclass(eq=False)
class State:
    """What is known after part of the photos; but for a few numbers of each photo, its size does not grow."""

    done: int = 0
    """How many photos were looked at, from the first on."""
    skipped: dict[int, str] = field(default_factory=dict)
    columns: dict[str, list[Array]] = field(default_factory=dict)
    cells: dict[int, Array] = field(default_factory=dict)
    """By class, the sum of the shares in each cell."""
    coverage: Array = field(default_factory=lambda: np.zeros((GRID, GRID)))

    def join(self, parts: Sequence[Part], places: Batches) -> None:
        """Add batches in their order, so that sums are the same whichever rank computed them."""
        for part in sorted(parts, key=lambda part: part.number):
            self._add(part)
            self.done = places[part.number].stop

    def _add(self, part: Part) -> None:
        self.skipped |= part.skipped
        self.coverage = self.coverage + part.coverage
        for name, column in part.columns.items():
            self.columns.setdefault(name, []).append(column)
        if part.columns:
            for number, cells in zip(explained_class(part.columns), part.cells, strict=True):
                self.cells[int(number)] = self.cells.get(int(number), 0) + cells

    def column(self, name: str) -> Array | None:
        """A column as one array; None where it is not measured."""
        if name not in self.columns:
            return None
        self.columns[name] = [np.concatenate(self.columns[name])]
        return self.columns[name][0]

    def save(self, folder: ResultFolder) -> None:
        """Write it as one file, so that it is of one moment."""
        tensors = {f"column/{name}": torch.from_numpy(self.column(name)) for name in self.columns}
        tensors |= {f"cells/{number}": torch.from_numpy(cells) for number, cells in sorted(self.cells.items())}
        tensors["coverage"] = torch.from_numpy(self.coverage)
        folder.save(STATE, tensors, state=json.dumps({"done": self.done, "skipped": self.skipped}))
        folder.update(photos=self.done, skipped=len(self.skipped))

    @classmethod
    def load(cls, folder: ResultFolder) -> State:
        """What a run left. Raises OutputError where it is broken."""
        tensors, texts = folder.load_with_metadata(STATE)
        try:
            known = json.loads(texts["state"])
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            return cls(
                int(known["done"]),
                {int(place): str(reason) for place, reason in known["skipped"].items()},
                {name[7:]: [array] for name, array in arrays.items() if name.startswith("column/")},
                {int(name[6:]): array for name, array in arrays.items() if name.startswith("cells/")},
                arrays["coverage"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{folder.file(STATE)} is broken: {error}; {ANEW}") from error


def explained_class(columns: Mapping[str, Array]) -> Array:
    """The class whose evidence a photo counts for: the true one, or without labels the predicted one."""
    return columns["true"] if "true" in columns else columns["predicted"]


@dataclass(frozen=True, eq=False)
class Look:
    """How a batch becomes columns."""

    explainer: Explainer
    source: ImageSource
    classes: Classes
    masks: Masks | None = None

    def __call__(self, batch: Batch, device: torch.device) -> Part:
        """The columns of the photos of a batch that can be used."""
        if batch.x is None:
            return Part(batch.number, {}, np.zeros((0, GRID, GRID)), np.zeros((GRID, GRID)), batch.skipped)
        x, places = batch.on(device), batch.images.tolist()
        true = self.classes.of(self.source, places, batch.labels)
        explained, wrong = self._explained(x, true, places)
        skipped = batch.skipped | {places[number]: reason for number, reason in wrong.items()}
        if explained is None:
            return Part(batch.number, {}, np.zeros((0, GRID, GRID)), np.zeros((GRID, GRID)), skipped)
        kept = _without(wrong, len(places))
        places, true = [places[number] for number in kept], None if true is None else true[kept]
        columns = {"place": np.array(places), **scores(explained, true)}
        frames = [batch.frames[place] for place in places]
        maps = explained.maps.double().numpy()
        shares = [[where(one, *frame) for one in of_photo] for of_photo, frame in zip(maps, frames, strict=True)]
        columns |= _shares(shares)
        if self.masks is not None:
            objects = [self.masks.mask(place) for place in places]
            lying = zip(objects, maps, frames, strict=True)
            columns["inside"] = np.array([inside(one, of_photo[-1], *frame) for one, of_photo, frame in lying])
        seen = np.sum([coverage(*frame) for frame in frames], axis=0)
        return Part(batch.number, columns, np.stack([of_photo[-1].cells for of_photo in shares]), seen, skipped)

    def _explained(
        self, x: Tensor, true: Tensor | None, places: Sequence[int]
    ) -> tuple[Explained | None, dict[int, str]]:
        """What the network says of a batch, and by its number why a photo is left out: it, or what the network gives
        for it, is not finite. Raises InputError, with the name of the photo, for one that the network cannot take."""
        try:
            return self.explainer(x, true), {}
        except InputError as together:
            wrong: dict[int, str] = {}
            for number, place in enumerate(places):
                try:
                    self.explainer(x[number : number + 1])
                except InputError as error:
                    why = str(error).replace(" for image 0", "").replace("image 0 of the input", "the input")
                    wrong[number] = f"{relative_name(self.source, place)}: {why}"
                    if not isinstance(error, NotFiniteError):
                        raise type(error)(wrong[number]) from error
            if not wrong:
                raise together
        kept = _without(wrong, len(places))
        return (self.explainer(x[kept], None if true is None else true[kept]) if kept else None), wrong


def _without(numbers: Container[int], count: int) -> list[int]:
    """All numbers below `count` but for these."""
    return [number for number in range(count) if number not in numbers]


def scores(explained: Explained, true: Tensor | None) -> dict[str, Array]:
    """The columns that are read from the probabilities of a batch."""
    shares = explained.probabilities
    top, classes = shares.topk(min(TOP, shares.shape[1]), 1)
    predicted = explained.classes[:, :1]
    confidence = shares.gather(1, predicted)
    rest = shares.scatter(1, predicted, -1).amax(1, keepdim=True)
    columns = {
        "predicted": predicted[:, 0],
        "confidence": confidence[:, 0],
        "margin": (confidence - rest)[:, 0],
        "top": classes,
        "top_probabilities": top,
    }
    if true is not None:
        columns["true"] = true
        columns["true_probability"] = shares.gather(1, true[:, None])[:, 0]
        columns["loss"] = -explained.log_probabilities.gather(1, true[:, None])[:, 0]
    return {name: column.numpy() for name, column in columns.items()}


def _shares(shares: list[list[Where]]) -> dict[str, Array]:
    """The columns of where the evidence lies: of the last class of each photo, and of the predicted one, the first."""
    return {
        "regions": np.array([of_photo[-1].regions for of_photo in shares]),
        "border": np.array([of_photo[-1].border for of_photo in shares]),
        "corner": np.array([of_photo[-1].corners for of_photo in shares]),
        "predicted_border": np.array([of_photo[0].border for of_photo in shares]),
        "predicted_corner": np.array([of_photo[0].corners for of_photo in shares]),
    }


def run_pass(
    look: Look,
    state: State,
    ranks: Ranks,
    save: Callable[[], None] | None = None,
    *,
    batch_size: int,
    workers: int,
    save_every: int,
    progress: bool = False,
) -> None:
    """Go on from a state to the end of the photos; the first rank saves it after `save_every` batches, or later.

    Batches are cut from where the state is, after whole batches, so that each photo is always in the same one,
    whichever rank computes it. On Ctrl-C, what is done is saved.
    """
    device = next((p.device for p in _module(look).parameters()), torch.device("cpu"))
    start, end = state.done, len(look.source)
    places = Batches(start, end, batch_size, save_every)
    reader = read_batches(look.source, places.shares(ranks), places, workers, device, frames=True)
    saved = start
    watching = watching_workers(lambda: None if save is None else saved, end)
    bar_of = progress_bar(progress and ranks.first, total=end, initial=start, unit=" photos", smoothing=0.1)
    with watching, bar_of as bar:
        for chunk in places.chunks():
            parts = list[Part]()
            try:
                with ranks.agreeing():
                    for number in places.share(chunk, ranks):
                        parts.append(look(next(reader), device))
                        bar.update(min(len(places[number]) * ranks.count, end - bar.n))
            except KeyboardInterrupt:
                if ranks.count == 1 and parts and save is not None:
                    state.join(parts, places)
                    save()
                raise
            state.join([part for of_rank in ranks.gather(parts) for part in of_rank], places)
            bar.update(state.done - bar.n)
            if save is not None and (state.done - saved > _GROWTH * saved or state.done == end):
                ranks.once(save)
                saved = state.done
    if len(state.skipped) == end:
        raise InputError(
            f"none of {counted(end, 'photo')} can be used; the first: {next(iter(state.skipped.values()))}"
        )


def _module(look: Look) -> torch.nn.Module:
    model: Any = look.explainer.model
    return getattr(model, "model", model)  # type: ignore[no-any-return]
