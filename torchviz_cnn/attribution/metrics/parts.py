"""What every metric reads: images a few at a time, their maps at the size of the input, and the scores they explain."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.methods import all_methods
from torchviz_cnn.attribution.metrics.images import AllImages, Images
from torchviz_cnn.attribution.metrics.result import Better, Curves, Measurement
from torchviz_cnn.attribution.result import ClassMap
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import (
    EmptyMapWarning,
    InputError,
    LayerError,
    ModelError,
    NotFiniteError,
    TargetError,
    are,
    kind_of,
    one_line,
)
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.hooks.inputs import Given, Output, batch_of, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.targets import Target, Targets, asked

Method = Callable[..., ClassMap | Tensor]
"""(model, x, target=...) -> maps (B, h, w), or (B, K, h, w) of K classes: any method of this library, or your own."""
Maps = ClassMap | Tensor | Method | str
"""Maps that are made already, a result or a tensor (N, h, w) or (N, K, h, w); or the method that makes them, which may
be named as on the command line (`"grad_cam"`)."""
REFUSALS = (InputError, LayerError, ModelError)
"""What a method raises that cannot explain a network."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A few of the images, and what of them is explained."""

    numbers: list[int]
    """Which of all images these are."""
    model: Model
    """The model or Network as it was given."""
    given: Given
    """The frozen model, its input (B, C, H, W), and where the input comes from."""
    targets: Targets
    """What the maps explain, with its scores of the images as they are: (B, K)."""
    target: Target
    """The target as a method takes it, of these images."""


@dataclass(frozen=True, eq=False)
class Part(Subject):
    """A few of the images, and the maps that are judged."""

    raw: Tensor
    """The maps as they were made: (B, K, h, w), float32, on the device of the input; zeros for those in `wrong`."""
    wrong: Mapping[int, str] = field(default_factory=dict)
    """Why the maps of an image cannot be used, by its place here."""

    @classmethod
    def of(cls, subject: Subject, raw: Tensor, wrong: Mapping[int, str] | None = None) -> Part:
        """The images with their maps."""
        return cls(**vars(subject), raw=raw.to(subject.given.x.device), wrong=wrong or {})

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
                collected.add(numbers, metric(part), part.wrong)
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
    subject = Subject(numbers, model, given, targets, own)
    # Outside the block: a method of the user's finds the model as it is, not frozen.
    if isinstance(maps, str) or (callable(maps) and not isinstance(maps, Tensor)):
        raw, wrong = made_maps(subject, maps, model, x)
    else:
        raw, wrong = given_maps(subject, maps, len(images))
    with prepared(model, x, dims=(2,), output=output) as given:
        yield Part.of(replace(subject, given=replace(given, origin=origin)), raw, wrong)


def made_maps(subject: Subject, method: str | Method, model: Model, x: Tensor) -> tuple[Tensor, dict[int, str]]:
    """The maps (B, K, h, w) that a method makes of what is explained, and why those of an image cannot be used.

    Args:
        subject: what is explained.
        method: what makes the maps, by its name or as a function.
        model: the model that it is called with.
        x: the images (B, C, H, W) that it is called with.

    Returns:
        The maps in float32, zeros for an image whose map is not finite, and the reason by the image's place.

    Raises:
        InputError: for maps that do not fit the images.
    """
    explain, output = method_of(method), subject.given.output
    chosen = {} if output is None else {"output": output}

    def made(places: list[int]) -> Tensor:
        targets, target = subject.targets.of_images(places), subject.target
        if not callable(target):
            target = targets.squeezed(targets.classes)
        values = values_of(explain(model, x[places], target=target, **chosen))
        return _fitting(values, targets, "the method gives maps")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyMapWarning)  # the Measurement says which are, by the image's name
        return _usable(made, len(x), subject.targets.classes.shape[1])


def given_maps(subject: Subject, maps: ClassMap | Tensor, total: int) -> tuple[Tensor, dict[int, str]]:
    """The maps of some of `total` images, of those of all that are there already: as `made_maps`."""
    values = values_of(maps)
    if len(values) != total:
        raise InputError(f"there {are(total, 'image')}, and maps of {len(values)}")

    def of(places: list[int]) -> Tensor:
        some = values[torch.as_tensor([subject.numbers[place] for place in places], device=values.device)]
        return _fitting(some, subject.targets.of_images(places), "the maps are")

    return _usable(of, len(subject.numbers), subject.targets.classes.shape[1])


def _fitting(values: Tensor, targets: Targets, whose: str) -> Tensor:
    """Maps as (B, K, h, w). Raises InputError for those that do not fit, NotFiniteError for NaN or infinity."""
    count, classes = targets.classes.shape
    wanted = 3 if targets.single and values.ndim == 3 else 4
    if values.ndim != wanted or len(values) != count or (wanted == 4 and values.shape[1] != classes):
        per_class = f"({count}, {classes}, h, w)" if not targets.single else f"({count}, h, w)"
        raise InputError(f"{whose} {tuple(values.shape)}, where {per_class} are needed for what is explained")
    if not bool(values.isfinite().all()):
        raise NotFiniteError("its map has NaN or infinity in it")
    return values[:, None] if values.ndim == 3 else values


def _usable(make: Callable[[list[int]], Tensor], count: int, classes: int) -> tuple[Tensor, dict[int, str]]:
    """The maps of all images at once; where one of them is not finite, one by one, so that the others have theirs."""
    nothing = torch.zeros(1, classes, 1, 1)
    try:
        return make(list(range(count))), {}
    except NotFiniteError as error:
        if count == 1:
            return nothing, {0: one_line(error)}
    maps, wrong = {}, dict[int, str]()
    for place in range(count):
        try:
            maps[place] = make([place])
        except NotFiniteError as error:
            wrong[place] = one_line(error)
    like = next(iter(maps.values()), nothing)
    return torch.cat([maps.get(place, torch.zeros_like(like)) for place in range(count)]), wrong


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
    known = all_methods()
    return known[checks.one_of("method", maps, known)].explain


def rows_of_target(target: Any, numbers: Sequence[int], total: int) -> Any:
    """A target of all images as that of some of them: what has a row for each image loses the other rows.

    Raises TargetError for a target of more or fewer rows than there are images.
    """
    if isinstance(target, str) or callable(target) or not hasattr(target, "__len__") or getattr(target, "ndim", 1) == 0:
        return target
    if len(target) != total:
        raise TargetError(
            f"there {are(total, 'image')}, and a target of {len(target)}: give an int, ({total},) or ({total}, K)"
        )
    return target[list(numbers)] if hasattr(target, "shape") else [target[i] for i in numbers]


class Collected:
    """The rows of all parts, which become a Measurement."""

    def __init__(self) -> None:
        self._rows: list[tuple[list[int], Rows]] = []
        self._wrong: dict[int, str] = {}

    def add(self, numbers: list[int], rows: Rows, wrong: Mapping[int, str] | None = None) -> None:
        """Keep what a metric says of one part, but for the images whose maps cannot be used."""
        for place, reason in (wrong or {}).items():
            where = torch.zeros(rows.values.shape, dtype=torch.bool)
            where[place] = True
            rows = without(rows, where, reason)
            rows.reasons[place] = self._wrong[numbers[place]] = reason
        self._rows.append((numbers, rows))

    def measurement(self, name: str, better: Better, images: AllImages, single: bool) -> Measurement:
        """All of them, by image; those that could not be measured have NaN.

        Raises InputError where none was read, or none has a map that can be used.
        """
        if not self._rows:
            raise InputError(f"no image could be read: {next(iter(images.skipped.values()), 'there is none')}")
        if len(self._wrong) == sum(len(numbers) for numbers, _ in self._rows):
            number, reason = next(iter(self._wrong.items()))
            raise NotFiniteError(f"no map can be used; {images.names[number]}: {reason}")
        count, reasons = len(images), dict(images.skipped)
        for numbers, rows in self._rows:
            reasons |= {numbers[place]: reason for place, reason in rows.reasons.items()}
        first: Rows = self._rows[0][1]

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
