"""`Survey`: predictions, mistakes and evidence of a network over a folder of photos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from torchviz_cnn.core.errors import InputError, counted, did_you_mean
from torchviz_cnn.media.datasets.kept import kept
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.notebook import tables
from torchviz_cnn.media.render import Array, Box
from torchviz_cnn.runs.folder import ResultFolder

Reason = Literal["highest loss", "confident and wrong", "least certain", "random right", "random", "border evidence"]
"""Why a photo is shown. `random right` is one that is predicted right, `random` one of a folder without labels, and
`border evidence` one of a class with a caution, with much evidence where the caution says."""

GRID = 40
"""Cells a side of the mean heatmaps."""

REGIONS = (
    "top left corner",
    "top right corner",
    "bottom left corner",
    "bottom right corner",
    "top edge",
    "bottom edge",
    "left edge",
    "right edge",
)
"""The parts of a photo, as far as the network sees it, whose share of the evidence is measured: corners are a fifth of
each side (0.04 of the area), edges a tenth of one side (0.1 of the area)."""
AREAS = (0.04, 0.04, 0.04, 0.04, 0.1, 0.1, 0.1, 0.1)
"""The share of each of `REGIONS` in the area: what a map that is the same everywhere has there."""
BORDER_AREA = 0.36
"""The share of the outer tenth along all four sides in the area."""
RANDOM = "the weights are random: predictions and heatmaps say nothing of a trained network"
CORNER_AREA = 0.16
"""The share of the four corners in the area."""


def relative_name(source: ImageSource, index: int) -> str:
    """The path of a photo below the folder of its dataset, with `/`; the name of an item that is no file."""
    name, root = source.name(index), source.root
    below = root is not None and not isinstance(source.dataset, Photos) and name != f"image {index}"
    return (os.path.relpath(os.path.abspath(name), root) if below else name).replace(os.sep, "/")


@dataclass(frozen=True)
class Confusion:
    """Photos of one class that are predicted as another."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """How often predictions of a confidence are right: ten bins of equal width."""

    edges: Array
    """Of the bins, 0..1: (11,)."""
    confidence: Array
    """The mean confidence in each bin; NaN in one without photos: (10,)."""
    accuracy: Array
    """The share of right predictions in each bin; NaN in one without photos: (10,)."""
    count: Array
    """Photos in each bin: (10,)."""
    error: float
    """The expected calibration error, 0..1: the mean of |accuracy - confidence| over the bins, weighted by their
    photos."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassSummary:
    """What is known of one class: of the photos that are of it or, in a folder without labels, predicted as it."""

    index: int
    """Its place in `Survey.categories`."""
    name: str
    count: int
    """How many photos are of it; 0 for a class that is predicted alone."""
    predicted: int
    """How many photos are predicted as it."""
    correct: int | None
    """How many of its photos are predicted right; None without labels."""
    heatmap: Array
    """The mean heatmap of this class over its photos, in the frame of the photo (all photos stretched to one square):
    (40, 40). Of each photo the map's share in each cell is averaged, so that the sum is 1; a photo whose map has no
    positive value adds nothing."""
    border: float
    """The mean share of the evidence in the outer tenth along the four sides; an even map has 0.36. NaN where no photo
    has evidence."""
    corners: float
    """The mean share of the evidence in the four corners, each a fifth of the sides; an even map has 0.16."""
    regions: Mapping[str, float]
    """The mean share of the evidence in each of `REGIONS`."""
    others: Mapping[str, float]
    """The same of the photos of all other classes, each with the evidence for its own class; NaN without any."""
    inside: float | None = None
    """The mean share of the evidence on the object, with masks."""
    region: str | None = None
    """The region that the class seems to rely on, where there is a caution."""
    caution: str | None = None
    """A sentence where much more evidence than elsewhere lies in one region; else None."""

    @property
    def accuracy(self) -> float | None:
        """The share of its photos that are predicted right, 0..1; None without labels or photos."""
        return None if self.correct is None or not self.count else self.correct / self.count


@dataclass(frozen=True, eq=False, kw_only=True)
class ShownPhoto:
    """A photo that is shown, with its heatmaps."""

    index: int
    """Its place in the columns of the survey (`survey.names[index]`)."""
    name: str
    """Its path below the folder, with `/`."""
    reasons: tuple[Reason, ...]
    """Why it is shown."""
    size: tuple[int, int]
    """Width and height of the photo in pixels."""
    box: Box
    """What the heatmaps cover, (left, top, right, bottom) in the photo's pixels; beyond them where it was padded."""
    heatmap: Array
    """The evidence for the predicted class, at least 0 (but for methods whose maps are signed): (h, w)."""
    true_heatmap: Array | None
    """The evidence for the true class, on the same scale: (h, w); None without labels. The same map where the
    prediction is right."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The pictures of the photo in the folder of results, by what they show: `predicted`, `true`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a survey was made."""

    network: str
    weights: str
    """The checksum of the network's weights."""
    folder: str | None
    """Where the photos are; None where they are no folder."""
    method: str
    """The name of the method that makes the heatmaps, as `grad_cam`."""
    method_title: str
    """As papers write it."""
    layer: str | None
    """Whose maps are weighed; None for a method that looks at no layer."""
    preparation: str
    """How photos become the input, in words."""
    guessed: bool
    """Whether nothing said how photos are prepared, so that the usual way was assumed."""
    labels: str
    """How the true classes were matched to those of the network, in a sentence; or that there are none."""
    seed: int
    k: int
    """How many photos are shown of each kind."""
    random: bool = False
    """Whether the network's weights are known to be random."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Survey:
    """What a network predicts of all photos of a folder, where it looks, and what it confuses.

    Columns are arrays with a value for each photo that could be read, in the order of `names`.
    """

    settings: Settings
    categories: tuple[str, ...]
    """The names of the network's classes. Of a network without names they are the labels, where these stand for all of
    its classes in their order, or else `class 7`."""
    names: tuple[str, ...] = field(repr=False)
    """The path of each photo below the folder, with `/`: N of them."""
    predicted: Array = field(repr=False)
    """The likeliest class, as an index into `categories`: (N,)."""
    confidence: Array = field(repr=False)
    """The probability of the predicted class: (N,)."""
    margin: Array = field(repr=False)
    """The probability of the predicted class minus that of the second likeliest: (N,)."""
    top: Array = field(repr=False)
    """The five likeliest classes, or all of fewer: (N, 5)."""
    top_probabilities: Array = field(repr=False)
    """Their probabilities: (N, 5)."""
    true: Array | None = field(repr=False)
    """The true class: (N,); None without labels."""
    true_probability: Array | None = field(repr=False)
    """The probability of the true class: (N,)."""
    loss: Array | None = field(repr=False)
    """The cross-entropy, minus the logarithm of the probability of the true class: (N,)."""
    border: Array = field(repr=False)
    """The share of the evidence for the class in the outer tenth of what the network sees of the photo. The class is
    the true one, or without labels the predicted one. NaN where the map has no positive value: (N,)."""
    corner: Array = field(repr=False)
    """The same in the four corners: (N,)."""
    regions: Array = field(repr=False)
    """The same in each of `REGIONS`: (N, 8)."""
    predicted_border: Array = field(repr=False)
    """As `border`, of the evidence for the predicted class: (N,)."""
    predicted_corner: Array = field(repr=False)
    """As `corner`, of the evidence for the predicted class: (N,)."""
    inside: Array | None = field(default=None, repr=False)
    """The same on the object; NaN for a photo without a mask. None where no masks were given: (N,)."""
    classes: tuple[ClassSummary, ...] = field(repr=False)
    """The classes that a photo is of or predicted as, those with most photos first."""
    confusions: tuple[Confusion, ...] = field(repr=False)
    """Which classes are taken for which, most frequent first; empty without labels."""
    calibration: Calibration | None = field(repr=False)
    """How often predictions of a confidence are right; None without labels."""
    shown: tuple[ShownPhoto, ...] = field(repr=False)
    """Photos with their heatmaps: those of the highest loss, the most confident wrong, the least certain, random right
    ones, and those of classes with a caution. A photo is there once, with all its reasons."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Why photos could not be read, or gave NaN or infinity, by their name."""
    coverage: Array = field(repr=False)
    """In which share of all photos the network sees each cell of the mean heatmaps: (40, 40)."""
    source: ImageSource | None = field(default=None, repr=False)
    """The photos."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        """Whether the true classes are known."""
        return self.true is not None

    @cached_property
    def correct(self) -> Array | None:
        """Whether each prediction is right: (N,); None without labels."""
        return None if self.true is None else np.asarray(self.predicted == self.true)

    @property
    def accuracy(self) -> float | None:
        """The share of right predictions, 0..1; None without labels."""
        return None if self.correct is None else float(self.correct.mean())

    @cached_property
    def cautions(self) -> tuple[str, ...]:
        """A sentence for each class that seems to rely on a border or a corner."""
        return tuple(one.caution for one in self.classes if one.caution is not None)

    @property
    def about_objects(self) -> str:
        """Of how many photos the share on the object is known, in a sentence; empty without masks."""
        if self.inside is None:
            return ""
        known, photos = self.inside[~np.isnan(self.inside)], counted(len(self), "photo")
        if not len(known):
            return f"no share of the evidence on the object is known of {photos}: no mask fits, or no evidence is there"
        rest = "; the others have no mask that fits, or no evidence" if len(known) < len(self) else ""
        return f"{known.mean():.0%} of the evidence lies on the object, as a mean over {len(known)} of {photos}{rest}"

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def place(self, name: str) -> int:
        """The place of a photo in the columns. Raises InputError, with the nearest name, where it is not there."""
        if name not in self._places:
            raise InputError(f"no photo {name!r} in the survey{did_you_mean(name, self.names)}")
        return self._places[name]

    def photo(self, name: str) -> Image.Image:
        """Read a photo, upright and in RGB. Raises InputError where the photos are not there."""
        return next(self.photos([name]))

    def photos(self, names: Sequence[str]) -> Iterator[Image.Image]:
        """Read photos as `photo` does, some at a time together, which over a network is quicker."""
        for name in names:
            self.place(name)
        source = kept(self.source)
        if source is None:
            raise InputError(_NO_PHOTOS)
        known: dict[str, int] = self._in_source
        places = [known[name] for name in names]
        yield from (source.view(place).photo for place in source.fetched(places, inputs=False, views=True))

    @cached_property
    def _in_source(self) -> dict[str, int]:
        source = self.source
        return {} if source is None else {relative_name(source, index): index for index in range(len(source))}

    def save(self, path: str | Path) -> Path:
        """Write tables, pictures, samples for FiftyOne and boxes for COCO to a new folder, which `load` reads.

        The folder gets `predictions.csv`, `classes.csv`, `confusions.csv`, `heatmaps/` with a picture for each photo
        shown and class, the page `index.html`, `samples.json` for FiftyOne and `boxes.json` for COCO (of photos that
        are files), all arrays in `survey.safetensors`, and last `manifest.json`. Raises OutputError for a folder of
        something else, and InputError, before anything is written, where the photos are not there.
        """
        from torchviz_cnn.surveys import saving

        if self.source is None:
            raise InputError(_NO_PHOTOS)
        with ResultFolder.run(path, saving.KIND, saving.identity_of(self.settings, photos=len(self))) as folder:
            saving.write(self, folder)
        return folder.path

    @classmethod
    def load(cls, path: str | Path, dataset: Any = None, preprocess: Any = None) -> Survey:
        """Read what a survey wrote.

        `dataset` is needed to draw photos unless it was a folder that is still there; `preprocess` is how the dataset's
        photos become inputs. Raises OutputError for a folder of something else, or one that is not finished or broken.
        """
        from torchviz_cnn.surveys import saving

        survey = saving.read(ResultFolder.read(path, saving.KIND))
        where = survey.settings.folder
        if dataset is None and where is not None and os.path.isdir(where):
            dataset = where
        return survey if dataset is None else replace(survey, source=ImageSource(dataset, preprocess))

    def _repr_html_(self) -> str:
        head = ["class", "photos", "predicted", "accuracy", "border", "corners", "caution"]
        rows = [_row(one) for one in self.classes[:_LISTED]]
        text = tables.table(repr(self), head, rows)
        return text + tables.listed(self.cautions) if self.cautions else text

    def __str__(self) -> str:
        lines = [repr(self)]
        lines += [f"  {RANDOM}"] if self.settings.random else []
        lines += [f"  caution: {sentence}" for sentence in self.cautions]
        if self.calibration is not None:
            mean = float(self.confidence.mean())
            lines.append(
                f"  mean confidence {mean:.3f}, expected calibration error {self.calibration.error:.3f}; "
                f"{self.settings.labels}"
            )
        else:
            lines.append(f"  {self.settings.labels}")
        lines += [f"  {self.about_objects}"] if self.about_objects else []
        for one in self.confusions[:_PAIRS]:
            true, predicted = self.categories[one.true], self.categories[one.predicted]
            lines.append(f"  {counted(one.count, 'photo')} of {true} predicted as {predicted}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        facts = [counted(len(self), "photo")]
        facts += [f"{len(self.skipped)} left out"] if self.skipped else []
        if self.accuracy is None:
            facts.append("no labels")
        else:
            facts += [counted(sum(one.count > 0 for one in self.classes), "class"), f"accuracy {self.accuracy:.3f}"]
        facts += [counted(len(self.cautions), "caution")] if self.cautions else []
        return f"Survey({self.settings.network}: {', '.join(facts)})"


_NO_PHOTOS = "the photos are needed, as they were for this survey: pass dataset= to Survey.load"
_LISTED, _PAIRS = 30, 10
"""Classes in a notebook's table, and pairs of classes in the text."""


def _share(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3f}"


def _row(one: ClassSummary) -> list[str]:
    shares = [_share(value) for value in (one.accuracy, one.border, one.corners)]
    return [one.name, str(one.count), str(one.predicted), *shares, "yes" if one.caution else ""]
