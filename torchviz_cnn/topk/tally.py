"""What is kept of a pass over a dataset: of every channel the strongest activations, and sums for statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.scores.projection import as_maps as to_maps
from torchviz_cnn.scores.projection import require_features
from torchviz_cnn.topk.reading import Batch

_GATHERED = 1 << 24
"""How many values are copied at a time to look for places of maxima."""
_COUNTED = 1 << 20
"""How many values are counted at a time."""


@dataclass(eq=False)
class Candidates:
    """The strongest activations of every channel of a layer so far, at most one per image: row j is the (j+1)-th.

    In order of falling value, equal ones in order of their images. Image -1 and value -inf: there are no more.
    """

    values: Tensor
    """(K, C)."""
    images: Tensor
    """(K, C): places in the dataset."""
    positions: Tensor
    """(K, C, 2): row and column in the layer's map, of several equal maxima the first."""

    @classmethod
    def none(cls, count: int, channels: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Candidates:
        """K = count empty rows."""
        return cls(
            torch.full((count, channels), -torch.inf, dtype=dtype, device=device),
            torch.full((count, channels), -1, dtype=torch.long, device=device),
            torch.full((count, channels, 2), -1, dtype=torch.long, device=device),
        )

    def emptied(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Candidates:
        """Return the same number of empty rows."""
        return Candidates.none(len(self.values), self.values.shape[1], dtype, device)

    def best(self, others: Sequence[Candidates], in_order: bool = False) -> Candidates:
        """The K best of these and others. `in_order`: all images of each are later than those of the ones before."""
        parts = [self, *others]
        values, images, positions = (torch.cat([getattr(p, name) for p in parts]) for name in _FIELDS)
        count = len(self.values)
        order = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
        if not in_order:
            order = images.argsort(dim=0, stable=True)
        order = order.gather(0, values.gather(0, order).argsort(dim=0, descending=True, stable=True))[:count]
        positions = positions.gather(0, order[..., None].expand(-1, -1, 2))
        return Candidates(values.gather(0, order), images.gather(0, order), positions)

    def to(self, device: torch.device | str) -> Candidates:
        """The same on another device."""
        return Candidates(*(getattr(self, name).to(device) for name in _FIELDS))


_FIELDS = ("values", "images", "positions")


@dataclass(eq=False)
class Sums:
    """What statistics need of the images of one batch, or of all so far. All sums are (..., C) in float64."""

    mean: Tensor
    """The sum of each image's mean."""
    inactive: Tensor
    """The sum of each image's share of values that are zero or below."""
    counted: Tensor
    """How many images: those whose mean is a finite number."""
    labels: Tensor
    """The classes that occurred, sorted: (u,)."""
    by_class: Tensor
    """`mean` by class: (u, C)."""
    class_counted: Tensor
    """`counted` by class: (u, C)."""

    @classmethod
    def none(cls, channels: int) -> Sums:
        """Return sums over zero images."""
        zero, empty = torch.zeros(channels, dtype=torch.float64), torch.zeros(0, channels, dtype=torch.float64)
        return cls(zero, zero, zero, torch.zeros(0, dtype=torch.long), empty, empty)

    @classmethod
    def of(cls, means: Tensor, inactive: Tensor, labels: list[int | None]) -> Sums:
        """Return the sums of a batch: means and shares of values zero or below (B, C), and the label of each image."""
        means, inactive = means.cpu().double(), inactive.cpu().double()
        finite = means.isfinite()
        means, finite = means.where(finite, 0), finite.double()
        known = torch.tensor([i for i, label in enumerate(labels) if label is not None], dtype=torch.long)
        classes = torch.tensor([label for label in labels if label is not None], dtype=torch.long)
        present, place = classes.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        empty = torch.zeros(len(present), means.shape[1], dtype=torch.float64)
        by_class = (empty.index_add(0, place, part[known]) for part in (means, finite))
        return cls(means.sum(0), (inactive * finite).sum(0), finite.sum(0), present, *by_class)

    def plus(self, others: Iterable[Sums]) -> Sums:
        """The sum of these and others, added one by one in the order given: to the last bit the same every time."""
        others = list(others)
        labels = torch.cat([self.labels, *(other.labels for other in others)]).unique()  # type: ignore[no-untyped-call]
        by_class = (torch.zeros(len(labels), len(self.mean), dtype=torch.float64) for _ in range(2))
        total = Sums(self.mean.clone(), self.inactive.clone(), self.counted.clone(), labels, *by_class)
        for i, other in enumerate([self, *others]):
            if i:
                total.mean += other.mean
                total.inactive += other.inactive
                total.counted += other.counted
            place = torch.searchsorted(labels, other.labels)
            total.by_class.index_add_(0, place, other.by_class)
            total.class_counted.index_add_(0, place, other.class_counted)
        return total


_SUMS = ("mean", "inactive", "counted", "labels", "by_class", "class_counted")


@dataclass(eq=False)
class Tally:
    """One layer after part of the dataset: what a folder of results keeps."""

    candidates: Candidates
    sums: Sums
    not_numbers: int = 0
    """How many times an image's maximum in a channel was not a number."""
    relevance: Candidates | None = None
    """Those of the largest relevance, where that is asked for."""
    no_relevance: int = 0
    """How many times an image's relevance of a channel was not a number."""

    def tensors(self, layer: str) -> dict[str, Tensor]:
        """All tensors by name, to be saved."""
        parts = {**vars(self.candidates), **vars(self.sums), "not_numbers": torch.tensor(self.not_numbers)}
        if self.relevance is not None:
            parts |= {f"relevance/{name}": tensor for name, tensor in vars(self.relevance).items()}
            parts["no_relevance"] = torch.tensor(self.no_relevance)
        return {f"{layer}/{name}": tensor for name, tensor in parts.items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], layer: str) -> Tally:
        """What was saved. Raises KeyError where a tensor is missing, ValueError where one has another shape."""
        saved = {name: tensors[f"{layer}/{name}"] for name in (*_FIELDS, *_SUMS)}
        (k, channels), labels = saved["values"].shape, saved["labels"].numel()
        rows, classes = (k, channels), (labels, channels)
        shapes = (rows, rows, (*rows, 2), *[(channels,)] * 3, (labels,), classes, classes)
        for (name, tensor), shape in zip(saved.items(), shapes, strict=True):
            check_shape(f"{name} of {layer}", tensor, shape)
        fields, sums = ([saved[name] for name in names] for names in (_FIELDS, _SUMS))
        tally = cls(Candidates(*fields), Sums(*sums), int(tensors[f"{layer}/not_numbers"]))
        if f"{layer}/no_relevance" in tensors:
            relevant = [tensors[f"{layer}/relevance/{name}"] for name in _FIELDS]
            for name, tensor, shape in zip(_FIELDS, relevant, shapes, strict=False):
                check_shape(f"{name} of the relevance of {layer}", tensor, shape)
            tally.relevance, tally.no_relevance = Candidates(*relevant), int(tensors[f"{layer}/no_relevance"])
        return tally


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a tensor of another shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shape}")


@dataclass(frozen=True, eq=False)
class Part:
    """What one rank has kept since the last save, on the CPU: what ranks send each other."""

    candidates: dict[str, Candidates]
    not_numbers: dict[str, int]
    relevance: dict[str, Candidates]
    no_relevance: dict[str, int]
    sums: dict[str, list[tuple[int, Sums]]]
    skipped: dict[int, str]


@dataclass(eq=False)
class Best:
    """Of one layer the strongest since the last save."""

    limit: Tensor
    """The weakest value kept in each channel up to then (C,): what is not stronger is passed over."""
    kept: Candidates
    not_numbers: Tensor | int = 0

    @classmethod
    def since(cls, candidates: Candidates, device: torch.device) -> Best:
        """Return none yet, beside what was kept before."""
        values = candidates.values
        return cls(values[-1].to(device), candidates.emptied(values.dtype, device))

    def offer(self, values: Tensor, maps: Tensor, images: Tensor) -> None:
        """Keep those of a batch that are strong enough: values (B, C), each at the largest place of its map.

        Maps are (B, C, h, w); `images` are the places in the dataset, (B,).
        """
        values = values.to(self.kept.values.dtype)
        self.not_numbers = self.not_numbers + values.isnan().sum()
        rows, channels = (values > torch.maximum(self.limit, self.kept.values[-1])).nonzero(as_tuple=True)
        if not len(rows):
            return
        new = Candidates.none(len(values), values.shape[1], values.dtype, values.device)
        new.values[rows, channels] = values[rows, channels]
        new.images[rows, channels] = images.to(values.device)[rows]
        flat, width = maps.flatten(2), maps.shape[3]
        step = max(1, _GATHERED // flat.shape[2])
        for some, units in zip(torch.split(rows, step), torch.split(channels, step), strict=True):
            strongest_at = flat[some, units].argmax(1)  # of several equal ones the first
            new.positions[some, units] = torch.stack([strongest_at // width, strongest_at % width], 1)
        self.kept = self.kept.best([new], in_order=True)


@dataclass(eq=False)
class Collector:
    """Takes layers' outputs batch after batch and keeps what `Tally` needs: for one rank, from one save to the next."""

    model: nn.Module
    activations: dict[str, Best]
    relevances: dict[str, Best]
    """Empty where relevance is not asked for."""
    sums: dict[str, list[tuple[int, Sums]]] = field(default_factory=dict)
    """The number of each batch and its sums, by layer."""
    skipped: dict[int, str] = field(default_factory=dict)
    batch: Batch = field(default_factory=lambda: Batch(0, torch.empty(0), [], None))
    """The batch that runs now."""

    def take(self, layer: str, output: Any) -> None:
        """A forward hook. All is computed at once, as what follows may write over the output."""
        maps, best = as_maps(self.model, layer, output, len(self.batch.images)), self.activations[layer]
        flat = maps.flatten(2)
        sums = Sums.of(flat.mean(2, dtype=best.kept.values.dtype), _inactive(flat), self.batch.labels)
        self.sums.setdefault(layer, []).append((self.batch.number, sums))
        best.offer(flat.amax(2), maps, self.batch.images)

    def take_relevance(self, layer: str, shares: Tensor) -> None:
        """Take each unit's share in the score, in the shape of the layer's output."""
        maps = as_maps(self.model, layer, shares, len(self.batch.images))
        self.relevances[layer].offer(relevance_of(maps), maps, self.batch.images)

    def part(self) -> Part:
        """All that was kept."""
        return Part(*_kept(self.activations), *_kept(self.relevances), self.sums, self.skipped)


def _kept(by_layer: dict[str, Best]) -> tuple[dict[str, Candidates], dict[str, int]]:
    """What was kept of each layer, and how many values were not numbers."""
    kept = {layer: best.kept.to("cpu") for layer, best in by_layer.items()}
    return kept, {layer: int(best.not_numbers) for layer, best in by_layer.items()}


def relevance_of(shares: Tensor) -> Tensor:
    """The relevance of each channel: the sum of its units' shares (B, C, h, w) in the score, (B, C)."""
    return shares.sum((2, 3))


def _inactive(flat: Tensor) -> Tensor:
    """The share of values that are zero or below in each row of (B, C, n): (B, C)."""
    # On a CPU in parts that stay in its cache, and with bytes as numbers: several times faster than written plainly.
    step = max(1, _COUNTED // flat[0].numel()) if flat.device.type == "cpu" else len(flat)
    parts = [part.le(0).view(torch.uint8).sum(2, dtype=torch.int32) for part in torch.split(flat, step)]
    return torch.cat(parts).cpu().double() / flat.shape[2]


def as_maps(model: nn.Module, layer: str, output: Any, batch: int) -> Tensor:
    """What a layer gives as maps (B, C, h, w), of one place for features (B, C); raises LayerError otherwise."""
    return to_maps(require_features(model, layer, output, batch).detach())
