"""Targets beyond a class: functions of what a model gives, for `target=` of every method. They are `tvc.targets`.

Each takes a model's output, or the part of it that `output=` chooses, and gives one number for each image. Any function
that does so is a target; these also know class names, and may hold a row of their own for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, TargetError, are, counted, kind_of
from torchviz_cnn.hooks.calls import rows_of
from torchviz_cnn.hooks.network import category_name, class_index
from torchviz_cnn.scores.outputs import Categories, read_classes

Class = int | str
"""A class by its index or, of a Network that has names for its classes, its name."""
__all__ = ["box", "contrast", "region", "similarity", "sum_of"]


@dataclass(frozen=True, eq=False)
class _ReadyTarget:
    """A function of a model's output, with the classes that it is about and what it holds for each image."""

    of_classes: ClassVar[bool] = False

    classes: tuple[Class, ...] = ()
    categories: Categories = field(default=None, repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    """A row for each image of the batch; None where all are treated alike."""

    def __call__(self, output: Any) -> Tensor:
        raise NotImplementedError

    def named(self, categories: Categories) -> _ReadyTarget:
        """The same, with the classes by their indices, which these names may tell."""
        indices = tuple(class_index(categories, one) for one in self.classes)
        return replace(self, classes=indices, categories=categories)

    def of_images(self, images: Tensor) -> _ReadyTarget:
        """The same for some images of the batch, each as often as its index is named."""
        if self.rows is None:
            return self
        if len(self.rows) <= int(images.max()):
            raise TargetError(f"the target {self} is for {counted(len(self.rows), 'image')}, and the batch has more")
        return replace(self, rows=self.rows[images.to(self.rows.device)])

    def settled(self, output: Any) -> _ReadyTarget:
        """The same for changed copies of the images that an output is for."""
        return self

    def mirrored(self, width: int) -> _ReadyTarget:
        """The same for images of this width in pixels that are flipped left to right."""
        return self

    def _class(self, place: int, count: int) -> int:
        """The index of one of the classes, of this many."""
        index = self.classes[place]
        if isinstance(index, str):
            raise TargetError(f"the target {self}: the class names are not known here; give an index")
        if not 0 <= index < count:
            raise TargetError(f"the target {self}: the model gives {counted(count, 'class')}, 0 to {count - 1}")
        return index

    def _names(self) -> str:
        return ", ".join(one if isinstance(one, str) else category_name(self.categories, one) for one in self.classes)

    def _require_rows(self, batch: int) -> None:
        if self.rows is not None and len(self.rows) != batch:
            raise TargetError(
                f"the target {self} has a row for {counted(len(self.rows), 'image')}, and the batch has {batch}"
            )


@dataclass(frozen=True, eq=False)
class _Region(_ReadyTarget):
    mask: Tensor | None = field(default=None, repr=False)

    def __call__(self, output: Any) -> Tensor:
        maps = self._maps(output)
        index = self._class(0, maps.shape[1])
        inside = self._inside(output.detach(), index).float()
        area = inside.flatten(1).sum(1)
        if bool((area == 0).any()):
            image, size = int((area == 0).nonzero()[0, 0]), " x ".join(map(str, maps.shape[2:]))
            why = "is predicted nowhere; give a mask" if self._is_free else f"is empty on maps of {size}"
            raise TargetError(f"the target {self} in image {image} {why}")
        return (maps[:, index].float() * inside).flatten(1).sum(1) / area

    def settled(self, output: Any) -> _ReadyTarget:
        """The same for changed copies of the images: a region that is predicted does not move with them."""
        if not self._is_free:
            return self
        return replace(self, rows=self._inside(output.detach(), self._class(0, self._maps(output).shape[1])))

    def mirrored(self, width: int) -> _ReadyTarget:
        """The same for images that are flipped left to right."""
        mask, rows = (None if one is None else one.flip(-1) for one in (self.mask, self.rows))
        return replace(self, mask=mask, rows=rows)

    @property
    def _is_free(self) -> bool:
        """Whether the region is where the class is predicted."""
        return self.mask is None and self.rows is None

    def _maps(self, output: Any) -> Tensor:
        """The maps of scores in an output; of the only map of a network with two class names, z, -z and z."""
        if not isinstance(output, Tensor) or output.ndim < 3:
            what = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else kind_of(output)
            keys = f" with the keys {', '.join(map(repr, output))}" if isinstance(output, dict) else ""
            raise TargetError(f"the target {self} is of maps (B, n, H, W), not {what}{keys}; output= chooses a part")
        binary = output.shape[1] == 1 and len(self.categories or ()) == 2
        return torch.cat([-output, output], 1) if binary else output

    def _predicted(self, output: Tensor, index: int) -> Tensor:
        """Where the class is predicted: (B, H, W), bool."""
        if output.shape[1] == 1 and bool(((output >= 0) & (output <= 1)).all()):
            raise TargetError(
                f"the target {self}: the only map holds numbers from 0 to 1, which may be probabilities or not, so "
                "where the class is predicted is not known; give a mask, as output > 0.5"
            )
        maps = self._maps(output)
        return maps[:, 0] > 0 if maps.shape[1] == 1 else maps.argmax(1) == index

    def _inside(self, maps: Tensor, index: int) -> Tensor:
        """Which places are in the region: (B, H, W), not zero there."""
        if self._is_free:
            return self._predicted(maps, index)
        self._require_rows(len(maps))
        mask = (self.mask[None] if self.rows is None else self.rows).to(maps.device, torch.float32)  # type: ignore[index]
        if mask.ndim != maps.ndim - 1:
            raise TargetError(f"the mask {tuple(mask.shape[1:])} does not fit maps {tuple(maps.shape[2:])}")
        if mask.shape[1:] != maps.shape[2:]:
            mask = F.interpolate(mask[:, None], maps.shape[2:], mode="nearest-exact")[:, 0]
        return mask.expand(len(maps), *mask.shape[1:])

    def __str__(self) -> str:
        return f"region({self._names()})"


@dataclass(frozen=True, eq=False)
class _Similarity(_ReadyTarget):
    vector: Tensor | None = field(default=None, repr=False)

    def __call__(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise TargetError(
                f"the target {self} is of embeddings (B, D), not {kind_of(output)}; output= chooses a part"
            )
        embeddings = output.flatten(1).float()
        self._require_rows(len(embeddings))
        other = (self.vector[None] if self.rows is None else self.rows).flatten(1)  # type: ignore[index]
        if other.shape[1] != embeddings.shape[1]:
            raise TargetError(
                f"the target {self}: the model gives {counted(embeddings.shape[1], 'number')} for each image"
            )
        return F.cosine_similarity(embeddings, other.to(embeddings), dim=1)

    def __str__(self) -> str:
        size = (self.vector if self.rows is None else self.rows[0]).numel()  # type: ignore[union-attr]
        return f"similarity({counted(size, 'number')})"


@dataclass(frozen=True, eq=False)
class _ClassScores(_ReadyTarget):
    """A sum of class scores, each with a sign."""

    of_classes: ClassVar[bool] = True

    signs: tuple[int, ...] = ()
    name: str = ""

    def __call__(self, output: Any) -> Tensor:
        logits, _ = read_classes(output, rows_of(output), self.categories)
        columns = [sign * logits[:, self._class(place, logits.shape[1])] for place, sign in enumerate(self.signs)]
        return torch.stack(columns).sum(0)

    def __str__(self) -> str:
        return f"{self.name}({self._names()})"


@dataclass(frozen=True, eq=False)
class _Box(_ReadyTarget):
    which: int | tuple[float, ...] = 0
    overlap: float = 0.5

    def __call__(self, output: Any) -> Tensor:
        if isinstance(output, Tensor):
            return self._of_tensor(output)
        if not isinstance(output, (list, tuple)) or not all(isinstance(one, dict) for one in output):
            raise TargetError(
                f"the target {self} is of scores (B, N, n), or of a list with a dict of boxes, scores and labels for "
                f"each image, not {kind_of(output)}; output= chooses a part"
            )
        return torch.stack([self._of_image(one, image) for image, one in enumerate(output)])

    def mirrored(self, width: int) -> _ReadyTarget:
        """The same for images that are flipped left to right."""
        if isinstance(self.which, int):
            return self
        left, top, right, bottom = self.which
        return replace(self, which=(width - right, top, width - left, bottom))

    def _of_tensor(self, output: Tensor) -> Tensor:
        if output.ndim != 3 or not isinstance(self.which, int) or not self.classes:
            raise TargetError(f"the target {self}: of scores (B, N, n), {tuple(output.shape)}, give a box and a class")
        if self.which >= output.shape[1]:
            raise TargetError(f"the target {self}: the model gives {output.shape[1]} boxes")
        return output[:, self.which, self._class(0, output.shape[2])]

    def _of_image(self, boxes: dict[str, Tensor], image: int) -> Tensor:
        missing = {"boxes", "scores", "labels"} - set(boxes)
        if missing:
            raise TargetError(f"the target {self}: what the model gives has no {', '.join(sorted(missing))}")
        kept = torch.ones_like(boxes["labels"], dtype=torch.bool)
        if self.classes:
            kept = boxes["labels"] == self._class(0, 2**31)
        if not isinstance(self.which, int):
            wanted = torch.tensor([self.which], device=boxes["boxes"].device)
            share = _overlap(boxes["boxes"].detach(), wanted)
            near = float(share[kept].max()) if bool(kept.any()) else 0.0
            if near < self.overlap:
                raise TargetError(
                    f"the target {self}: no box overlaps by {self.overlap} in image {image}; the nearest: {near:.2f}"
                )
            return boxes["scores"][kept & (share >= self.overlap)].sum()
        scores = boxes["scores"][kept]
        if self.which >= len(scores):
            raise TargetError(f"the target {self}: there {are(len(scores), 'such box')} in image {image}")
        return scores[self.which]

    def __str__(self) -> str:
        which = self.which if isinstance(self.which, int) else tuple(round(side) for side in self.which)
        return f"box({', '.join([str(which), *([self._names()] if self.classes else [])])})"


def _classes(*several: Any) -> tuple[Class, ...]:
    """Classes by index or name. Raises InputError for what is neither."""
    return tuple(one if isinstance(one, str) else checks.whole_number("a class", one, 0) for one in several)


def region(mask: Tensor | np.ndarray[Any, Any] | None, class_: Class) -> _Region:
    """Take the mean score of a class over the pixels of a region: for networks that give maps of scores (segmentation).

    Args:
        mask: the region, of whole numbers or bool, not zero inside: (H, W) for all images, (B, H, W) for each. It is
            brought to the size of the maps where it has another. None for where the class is predicted in the image
            itself, also where a method changes it.
        class_: the class, by index or name.

    Returns:
        A target: maps of scores (B, n, H, W) -> (B,).

    Raises:
        InputError: for a mask of another shape, and a class that is neither an index nor a name.
        TargetError: when it is used, for a region without a pixel, and an output that is not maps.

    Vinogradova et al., arXiv 2002.11434.

    >>> maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    >>> region(torch.tensor([[0, 0], [1, 1]]), 0)(maps)
    tensor([2.5000])
    """
    if mask is None:
        return _Region(_classes(class_))
    inside = _copied("mask", mask) != 0
    if inside.ndim not in (2, 3):
        raise InputError(f"a mask is (H, W), or (B, H, W), not {tuple(inside.shape)}")
    named = _classes(class_)
    return _Region(named, mask=inside) if inside.ndim == 2 else _Region(named, rows=inside)


def similarity(vector: Tensor | np.ndarray[Any, Any] | Sequence[float]) -> _Similarity:
    """Take the cosine similarity of an embedding to a vector: for networks that give vectors to compare.

    Args:
        vector: (D,) for all images, or (B, D) for each, as another photo's embedding.

    Returns:
        A target: embeddings (B, D) -> (B,), -1 to 1.

    Raises:
        InputError: for a vector of another shape.

    >>> similarity([0.0, 2.0])(torch.tensor([[3.0, 4.0]]))
    tensor([0.8000])
    """
    numbers = _copied("vector", vector).float()
    if numbers.ndim not in (1, 2) or not bool(numbers.isfinite().all()):
        raise InputError(f"a vector is (D,), or (B, D), of finite numbers, not {tuple(numbers.shape)}")
    return _Similarity(vector=numbers) if numbers.ndim == 1 else _Similarity(rows=numbers)


def contrast(a: Class, b: Class) -> _ClassScores:
    """Take the difference of two class scores: why the network says a, and not b.

    Args:
        a: the class that positive evidence is for, by index or name.
        b: the one that it is against.

    Returns:
        A target: class scores (B, n) -> (B,).

    Prabhushankar et al., arXiv 2008.00178.

    >>> contrast(2, 0)(torch.tensor([[1.0, 0.0, 5.0]]))
    tensor([4.])
    """
    return _ClassScores(_classes(a, b), signs=(1, -1), name="contrast")


def sum_of(classes: Sequence[Class]) -> _ClassScores:
    """Take the sum of several class scores, as of all breeds of dogs.

    Args:
        classes: the classes, by index or name; at least one.

    Returns:
        A target: class scores (B, n) -> (B,).

    Raises:
        InputError: where there is no class, and for what is none.

    >>> sum_of([0, 2])(torch.tensor([[1.0, 0.0, 5.0]]))
    tensor([6.])
    """
    given: Any = classes
    try:
        several = [given] if isinstance(given, str) else list(given)
    except TypeError:  # a single index
        several = [given]
    if not several:
        raise InputError("sum_of takes at least one class")
    return _ClassScores(_classes(*several), signs=(1,) * len(several), name="sum_of")


def box(which: int | Sequence[float] = 0, class_: Class | None = None, *, overlap: float = 0.5) -> _Box:
    """Take the score of a box: for detectors that give scores for boxes.

    Args:
        which: the number of a box, in the order in which the network gives those of the class; 0 is usually the
            surest. Or its (left, top, right, bottom) in pixels of the input: then the scores of all boxes that
            overlap it are added.
        class_: the class of the box, by index or name; None for any.
        overlap: how much of the union of two boxes both share at least, 0 to 1 (0.5).

    Returns:
        A target: a list with a dict of `boxes`, `scores` and `labels` for each image, as torchvision's detectors give
        it, or scores (B, N, n) of N boxes -> (B,).

    Raises:
        InputError: for a box of another shape.
        TargetError: when it is used, where there is no such box.

    >>> box(1, 0)(torch.tensor([[[0.5, 0.1], [0.25, 0.0]]]))
    tensor([0.2500])
    """
    if isinstance(which, str) or np.ndim(which) == 0:
        place: int | tuple[float, ...] = checks.whole_number("which", which, 0)
    else:
        place = tuple(float(side) for side in which)  # type: ignore[union-attr]
        if len(place) != 4 or not (place[0] < place[2] and place[1] < place[3]):
            raise InputError(f"a box is (left, top, right, bottom), not {which!r}")
    return _Box(() if class_ is None else _classes(class_), which=place, overlap=checks.number("overlap", overlap, 0))


def _copied(name: str, values: Any) -> Tensor:
    """Numbers as a tensor of their own, outside of inference mode and of any graph."""
    try:
        with torch.inference_mode(False):
            return torch.as_tensor(values).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"a {name} is a tensor or an array of numbers, not {kind_of(values)}") from None


def _overlap(boxes: Tensor, one: Tensor) -> Tensor:
    """The area that boxes (N, 4) share with one box (1, 4), as a share of their union: (N,)."""
    low, high = torch.maximum(boxes[:, :2], one[:, :2]), torch.minimum(boxes[:, 2:], one[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (one[:, 2:] - one[:, :2]).prod(1)
    return shared / (areas - shared).clamp(min=torch.finfo(boxes.dtype).tiny)
