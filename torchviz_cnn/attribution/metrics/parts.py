"""What every metric reads: images a few at a time, their maps at the size of the input, and the scores they explain."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.methods import METHODS, methods_of
from torchviz_cnn.attribution.metrics.result import Better, Curves, Measurement
from torchviz_cnn.attribution.result import ClassMap
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import EmptyMapWarning, ImageError, InputError, NotFiniteError, TargetError, kind_of
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.hooks.inputs import Given, Output, batch_of, prepared, several_inputs
from torchviz_cnn.hooks.network import Model, preprocess_of
from torchviz_cnn.media.dataset import ImageSource
from torchviz_cnn.media.origin import is_photo, stored
from torchviz_cnn.media.photo_folder import PhotoFolder
from torchviz_cnn.scores.targets import Target, Targets, asked

Method = Callable[..., ClassMap | Tensor]
"""(model, x, target=...) -> maps (B, h, w), or (B, K, h, w) of K classes: any method of this library, or your own."""
Maps = ClassMap | Tensor | Method | str
"""Maps that are made already, a result or a tensor (N, h, w) or (N, K, h, w); or the method that makes them, which may
be named as on the command line (`"grad_cam"`)."""
Images = Any
"""A batch (N, C, H, W); with a Network photos, a folder of them, or any map-style dataset, of which a few are read at a
time."""


@dataclass(frozen=True, eq=False)
class Part:
    """A few of the images, and the maps that are judged."""

    numbers: list[int]
    """Which of all images these are."""
    model: Model
    """The model or Network as it was given."""
    given: Given
    """The frozen model, its input (B, C, H, W), and where the input comes from."""
    targets: Targets
    """What the maps explain, with its scores of the images as they are: (B, K)."""
    raw: Tensor
    """The maps as they were made: (B, K, h, w), float32, on the device of the input."""
    target: Target
    """The target as a method takes it, of these images."""

    @cached_property
    def maps(self) -> Tensor:
        """The maps at the size of the input, enlarged bilinearly: (B, K, H, W)."""
        return at_size(self.raw, self.given.input_size)

    @cached_property
    def empty(self) -> Tensor:
        """Which maps are all zeros: (B, K)."""
        return ~self.raw.flatten(2).any(2)


@dataclass(eq=False)
class Rows:
    """What a metric says of one part; all on the CPU."""

    values: Tensor
    """(B, K); NaN where it could not be measured."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why not, by the place in the part."""
    details: dict[str, Tensor] = field(default_factory=dict)
    """Further numbers (B, K, ...)."""
    curves: Curves | None = None
    """With y (B, K, S)."""


def at_size(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (B, K, h, w) at another size, bilinearly."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def measure(
    name: str,
    better: Better,
    metric: Callable[[Part], Rows],
    model: Model,
    x: Images,
    maps: Maps,
    target: Target = None,
    *,
    output: Output = None,
    score: Any = "probability",
    batch_size: int = 8,
    progress: bool = False,
) -> Measurement:
    """Measure all images, a few at a time: what the functions of `torchviz_cnn.metrics` have in common.

    Args:
        name, better: as in the Measurement.
        metric: what it says of one part.
        model, x, maps, target, output: see `insertion`.
        score: which score of a class is read.
        batch_size: how many images at a time.
        progress: whether to show a bar.
    """
    images, collected, single = AllImages(x, model), Collected(), True
    with progress_bar(progress, total=len(images), desc=name.replace("_", " "), unit=" images") as bar:
        for numbers, photos in images.read(checks.whole_number("batch_size", batch_size)):
            with part_of(model, images, numbers, photos, maps, target, output=output, score=score) as part:
                single = part.targets.single
                collected.add(numbers, metric(part))
            bar.update(len(numbers))
    with torch.inference_mode(False):  # the result is of plain tensors, whatever mode the caller is in
        return collected.measurement(name, better, images, single)


@contextmanager
def part_of(
    model: Model,
    images: AllImages,
    numbers: list[int],
    photos: Any,
    maps: Maps,
    target: Target = None,
    *,
    output: Output = None,
    score: Any = "probability",
) -> Iterator[Part]:
    """Some images with their maps, ready to be judged, while the model is frozen."""
    x, origin = batch_of(model, photos)
    if isinstance(maps, ClassMap) and target is None:
        if maps.label is not None:
            raise InputError(f"the map explains a function ({maps.label}): pass the function as target= too")
        target = maps.target.cpu()
    own = rows_of_target(target, numbers, len(images))
    score = "logit" if callable(own) else score  # a function gives its own score
    with prepared(model, x, dims=(2,), output=output) as given:
        given = replace(given, origin=origin)
        targets = asked(given, own, score)
    own = own if callable(own) else targets.squeezed(targets.classes)
    # Outside the block: a method of the user's finds the model as it is, not frozen.
    raw = made_maps(maps, model, x, own, numbers, len(images), targets, output)
    with prepared(model, x, dims=(2,), output=output) as given:
        yield Part(numbers, model, replace(given, origin=origin), targets, raw.to(given.x.device), own)


def made_maps(
    maps: Maps,
    model: Model,
    x: Tensor,
    target: Target,
    numbers: Sequence[int],
    total: int,
    targets: Targets,
    output: Output = None,
) -> Tensor:
    """The maps of some images: (B, K, h, w), float32. Raises InputError for maps that do not fit them."""
    if isinstance(maps, str) or (callable(maps) and not isinstance(maps, Tensor)):
        chosen = {} if output is None else {"output": output}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyMapWarning)  # the Measurement says which are, by the image's name
            values = values_of(method_of(maps)(model, x, target=target, **chosen))
        whose = "the method gives maps"
    else:
        values = values_of(maps)
        if len(values) != total:
            raise InputError(f"there are {total} images, and maps of {len(values)}")
        values, whose = values[torch.as_tensor(numbers, device=values.device)], "the maps are"
    classes = targets.classes.shape[1]
    wanted = 3 if targets.single and values.ndim == 3 else 4
    if values.ndim != wanted or len(values) != len(x) or (wanted == 4 and values.shape[1] != classes):
        per_class = f"({len(x)}, {classes}, h, w)" if not targets.single else f"({len(x)}, h, w)"
        raise InputError(f"{whose} {tuple(values.shape)}, where {per_class} are needed for what is explained")
    if not bool(values.isfinite().all()):
        raise NotFiniteError(f"{whose} with NaN or infinity in them")
    return values[:, None] if values.ndim == 3 else values


def values_of(maps: Any) -> Tensor:
    """The numbers of a result or a tensor, in float32."""
    values = maps.values if isinstance(maps, ClassMap) else maps
    if not isinstance(values, Tensor) or values.ndim < 3:
        what = f"a tensor {tuple(values.shape)}" if isinstance(values, Tensor) else kind_of(values)
        raise InputError(f"maps are a result of this library or a tensor (N, h, w) or (N, K, h, w), not {what}")
    return values.detach().float()


def method_of(maps: str | Method) -> Method:
    """The method of a name. Raises InputError for a name that there is not."""
    if not isinstance(maps, str):
        return maps
    known = {**METHODS, **methods_of("cam")}
    return known[checks.one_of("method", maps, known)].explain


def rows_of_target(target: Any, numbers: Sequence[int], total: int) -> Any:
    """A target of all images as that of some of them: what has a row for each image loses the other rows.

    Raises TargetError for a target of more or fewer rows than there are images.
    """
    if isinstance(target, str) or callable(target) or not hasattr(target, "__len__") or getattr(target, "ndim", 1) == 0:
        return target
    if len(target) != total:
        raise TargetError(
            f"there are {total} images, and a target of {len(target)}: give an int, ({total},) or ({total}, K)"
        )
    return target[list(numbers)] if hasattr(target, "shape") else [target[i] for i in numbers]


class AllImages:
    """The images of a measurement, of which a few are read at a time."""

    def __init__(self, x: Images, model: Model) -> None:
        self.skipped: dict[int, str] = {}
        """What could not be read, by its number."""
        self._folder = False
        if several_inputs(x):
            raise InputError("metrics take images alone, and the model is given several inputs")
        if isinstance(x, Tensor) and x.ndim != 4 and x.is_floating_point():
            raise InputError(f"images are a batch (N, C, H, W), not {tuple(x.shape)}")
        if isinstance(x, (str, os.PathLike)) and Path(x).is_dir():
            x = PhotoFolder(Path(x))
        self.labels: list[int] | None = None
        """The class of each photo of a folder with a folder for each class, as an index into `categories`."""
        self.categories: tuple[str, ...] = ()
        if isinstance(x, PhotoFolder) and x.preprocess is None:
            self.categories, self.labels = x.categories, x.labels if x.categories else None
            names, x, self._folder = tuple(x.names), [x.path / name for name in x.names], True
        elif isinstance(x, Tensor) and not is_photo(x):
            names = tuple(f"image {i}" for i in range(len(x)))
        elif is_photo(x) or (isinstance(x, (list, tuple)) and len(x) > 0 and all(map(is_photo, x))):
            x = [x] if is_photo(x) else list(x)
            names = tuple(str(p) if isinstance(p, (str, os.PathLike)) else f"image {i}" for i, p in enumerate(x))
        else:
            x, self._folder = ImageSource(x, preprocess_of(model)), True
            names = tuple(x.name(i) for i in range(len(x)))
            self.categories = x.categories or ()
        self.x = x
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, size: int, start: int = 0) -> Iterator[tuple[list[int], Any]]:
        """The numbers of some images, and these as a method takes them; what cannot be read of a folder is skipped."""
        for first in range(start, len(self), size):
            numbers, photos, skipped = self.take(range(first, min(first + size, len(self))))
            self.skipped |= skipped
            if numbers:
                yield numbers, photos

    def take(self, numbers: Sequence[int]) -> tuple[list[int], Any, dict[int, str]]:
        """Which of some images can be read, these as a method takes them, and why the others cannot."""
        if isinstance(self.x, Tensor):
            return list(numbers), self.x[list(numbers)], {}
        read, skipped = {}, {}
        for number in numbers:
            try:
                read[number] = self._one(number)
            except ImageError as error:
                if not self._folder:
                    raise
                skipped[number] = f"cannot be read: {error}"
        batch = self._stacked(read) if read and isinstance(self.x, ImageSource) else list(read.values())
        return list(read), batch, skipped

    def _stacked(self, read: Mapping[int, Tensor]) -> Tensor:
        """Items of a dataset as a batch. Raises InputError where they differ in size."""
        first = next(iter(read))
        for number, item in read.items():
            if item.shape != read[first].shape:
                raise InputError(
                    f"{self.names[first]} is {tuple(read[first].shape)} and {self.names[number]} {tuple(item.shape)}: "
                    "images of different sizes are measured with batch_size=1"
                )
        return torch.stack(list(read.values()))

    def _one(self, number: int) -> Any:
        return self.x.item(number)[0] if isinstance(self.x, ImageSource) else stored(self.x[number])


class Collected:
    """The rows of all parts, which become a Measurement."""

    def __init__(self) -> None:
        self._rows: list[tuple[list[int], Rows]] = []

    def add(self, numbers: list[int], rows: Rows) -> None:
        """Keep what a metric says of one part."""
        self._rows.append((numbers, rows))

    def measurement(self, name: str, better: Better, images: AllImages, single: bool) -> Measurement:
        """All of them, by image; those that were not read have NaN. Raises InputError where none was read."""
        if not self._rows:
            raise InputError(f"no image could be read: {next(iter(images.skipped.values()), 'there is none')}")
        count, reasons = len(images), dict(images.skipped)
        for numbers, rows in self._rows:
            reasons |= {numbers[place]: reason for place, reason in rows.reasons.items()}
        first = self._rows[0][1]

        def all_of(pick: Callable[[Rows], Tensor]) -> Tensor:
            shape = pick(first).shape[1:]
            values = torch.full((count, *shape), float("nan"))
            for numbers, rows in self._rows:
                values[numbers] = pick(rows).float()
            return values[:, 0] if single else values

        curves = first.curves
        if curves is not None:
            curves = curves._replace(y=all_of(lambda rows: rows.curves.y if rows.curves else rows.values))
        return Measurement(
            metric=name,
            better=better,
            values=all_of(lambda rows: rows.values),
            names=images.names,
            reasons=dict(sorted(reasons.items())),
            details={key: all_of(lambda rows, key=key: rows.details[key]) for key in first.details},  # type: ignore[misc]
            curves=curves,
        )


def without(rows: Rows, unmeasured: Tensor, reason: str) -> Rows:
    """The rows with NaN, and a reason, where a value (B, K) cannot be measured."""
    nan = float("nan")
    where = unmeasured.cpu()
    rows.values = rows.values.masked_fill(where, nan)
    for key, numbers in rows.details.items():
        rows.details[key] = numbers.float().masked_fill(where.view(*where.shape, *[1] * (numbers.ndim - 2)), nan)
    if rows.curves is not None:
        rows.curves = rows.curves._replace(y=rows.curves.y.masked_fill(where[..., None], nan))
    for place in where.any(1).nonzero()[:, 0].tolist():
        rows.reasons.setdefault(place, reason)
    return rows
