"""What is kept of a pass over a dataset: of every channel the strongest activations, and sums for statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.scores.projection import as_maps as to_maps
from torchviz_cnn.scores.projection import require_features
from torchviz_cnn.topk.pieces.sums import Sums
from torchviz_cnn.topk.reading import Batch

_GATHERED = 1 << 24
"""How many values are copied at a time to look for places of maxima."""
_PENDING = 1 << 22
"""How many means are kept on the device before they are added up."""
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
        parts = joined([self, *others])
        return parts.rows(parts.order(in_order)[: len(self.values)])

    def order(self, in_order: bool = False) -> Tensor:
        """The places of the rows in falling order (K, C); `in_order`: the rows are in the order of their images."""
        order = torch.arange(len(self.values), device=self.values.device)[:, None].expand_as(self.values)
        if not in_order:
            order = self.images.argsort(dim=0, stable=True)
        return order.gather(0, self.values.gather(0, order).argsort(dim=0, descending=True, stable=True))

    def rows(self, order: Tensor) -> Candidates:
        """The rows at these places (k, C)."""
        positions = self.positions.gather(0, order[..., None].expand(-1, -1, 2))
        return Candidates(self.values.gather(0, order), self.images.gather(0, order), positions)

    def to(self, device: torch.device | str) -> Candidates:
        """The same on another device."""
        return Candidates(*(getattr(self, name).to(device) for name in _FIELDS))


_FIELDS = ("values", "images", "positions")


def joined(parts: Sequence[Candidates]) -> Candidates:
    """All rows of several, one behind the other."""
    return Candidates(*(torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS))


@dataclass(eq=False)
class Ranking:
    """The images that rank first in each channel of a layer, by what the channel gives or adds to a score."""

    candidates: Candidates
    not_numbers: int = 0
    """How many times the value of an image in a channel was not a number."""
    exact: Candidates | None = None
    """The candidates, row by row, as computed again in double precision; None where that is not asked for, not done
    yet, or cannot be."""

    def best(self, others: Sequence[Ranking]) -> Ranking:
        """The best of these and of others, which all have exact values or have none."""
        parts = [self, *others]
        together = joined([part.candidates for part in parts])
        order = together.order()[: len(self.candidates.values)]
        exact = [part.exact for part in parts if part.exact is not None]
        count = sum(part.not_numbers for part in parts)
        return Ranking(together.rows(order), count, joined(exact).rows(order) if exact else None)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, to be saved."""
        parts = {**vars(self.candidates), "not_numbers": torch.tensor(self.not_numbers)}
        return parts if self.exact is None else parts | {f"exact/{name}": t for name, t in vars(self.exact).items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], of: str) -> Ranking:
        """What was saved of a layer. Raises KeyError and ValueError as `Tally.of`."""
        rows = tuple(tensors["values"].shape)
        kept = []
        for prefix in ("", "exact/") if "exact/values" in tensors else ("",):
            fields = [tensors[f"{prefix}{name}"] for name in _FIELDS]
            for name, tensor, shape in zip(_FIELDS, fields, (rows, rows, (*rows, 2)), strict=True):
                check_shape(f"{prefix}{name} of {of}", tensor, shape)
            kept.append(Candidates(*fields))
        return cls(kept[0], int(tensors["not_numbers"]), *kept[1:])


@dataclass(eq=False)
class Tally:
    """One layer after part of the dataset: what a folder of results keeps."""

    activation: Ranking
    sums: Sums
    relevance: Ranking | None = None
    """By relevance, where that is asked for."""

    def tensors(self, layer: str) -> dict[str, Tensor]:
        """All tensors by name, to be saved."""
        parts = {**self.activation.tensors(), **{f"sums/{name}": tensor for name, tensor in vars(self.sums).items()}}
        if self.relevance is not None:
            parts |= {f"relevance/{name}": tensor for name, tensor in self.relevance.tensors().items()}
        return {f"{layer}/{name}": tensor for name, tensor in parts.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], layer: str) -> Tally:
        """What was saved. Raises KeyError where a tensor is missing, ValueError where one has another shape."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        activation, relevance, sums = (below(f"{layer}/{part}") for part in ("", "relevance/", "sums/"))
        tally = cls(Ranking.of(activation, layer), Sums(**sums))
        channels, classes = tally.activation.candidates.values.shape[1], tally.sums.labels.numel()
        shapes = [(3, channels), (3, channels), (channels,), (classes,), (classes, 3, channels), (classes, channels)]
        for (name, tensor), shape in zip(vars(tally.sums).items(), shapes, strict=True):
            check_shape(f"{name} of {layer}", tensor, shape)
        if relevance:
            tally.relevance = Ranking.of(relevance, f"the relevance of {layer}")
        return tally


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a tensor of another shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shape}")


@dataclass(frozen=True, eq=False)
class Part:
    """What one rank has kept since the last save, on the CPU: what ranks send each other."""

    activation: dict[str, Ranking]
    """By layer, as `relevance` and `sums` are."""
    relevance: dict[str, Ranking]
    sums: dict[str, Sums]
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
        strong = values > torch.maximum(self.limit, self.kept.values[-1])
        new = _few(strong, values, maps, images) if values.device.type == "cpu" else _all(strong, values, maps, images)
        if new is not None:
            self.kept = self.kept.best([new], in_order=True)


def _few(strong: Tensor, values: Tensor, maps: Tensor, images: Tensor) -> Candidates | None:
    """The strong ones of a batch (B, C); places are looked for in their maps alone. None where there are none."""
    rows, channels = strong.nonzero(as_tuple=True)
    if not len(rows):
        return None
    new = Candidates.none(len(values), values.shape[1], values.dtype, values.device)
    new.values[rows, channels] = values[rows, channels]
    new.images[rows, channels] = images.to(values.device)[rows]
    flat, width = maps.flatten(2), maps.shape[3]
    step = max(1, _GATHERED // flat.shape[2])
    for some, units in zip(torch.split(rows, step), torch.split(channels, step), strict=True):
        strongest_at = flat[some, units].argmax(1)  # of several equal ones the first
        new.positions[some, units] = torch.stack([strongest_at // width, strongest_at % width], 1)
    return new


def _all(strong: Tensor, values: Tensor, maps: Tensor, images: Tensor) -> Candidates:
    """The same on a device: all places are looked for, as asking how many are strong would wait for it."""
    at, width = maps.flatten(2).argmax(2), maps.shape[3]  # of several equal ones the first
    rows = images.to(values.device, non_blocking=True)[:, None]
    positions = torch.stack([at // width, at % width], 2)
    return Candidates(values.where(strong, -torch.inf), rows.where(strong, -1), positions.where(strong[..., None], -1))


@dataclass(eq=False)
class Pending:
    """Sums of batches, the last of which are not added up yet: until then nothing waits for the device."""

    means: list[Tensor] = field(default_factory=list)
    inactive: list[Tensor] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    done: list[Sums] = field(default_factory=list)

    def take(self, means: Tensor, inactive: Tensor, labels: list[int | None]) -> None:
        """Take a batch, as `Sums.of` does."""
        self.means.append(means)
        self.inactive.append(inactive)
        self.labels += labels
        if len(self.labels) * means.shape[1] >= _PENDING:
            self._add()

    def all(self) -> Sums:
        """The sums of all batches. As they are exact, it does not matter which were added up together."""
        self._add()
        first, *others = self.done
        return first.plus(others)

    def _add(self) -> None:
        if self.labels:
            self.done.append(Sums.of(torch.cat(self.means), torch.cat(self.inactive), self.labels))
            self.means, self.inactive, self.labels = [], [], []


@dataclass(eq=False)
class Collector:
    """Takes layers' outputs batch after batch and keeps what `Tally` needs: for one rank, from one save to the next."""

    model: nn.Module
    activations: dict[str, Best]
    relevances: dict[str, Best]
    """Empty where relevance is not asked for."""
    sums: dict[str, Pending] = field(default_factory=dict)
    """Those of all batches, by layer."""
    skipped: dict[int, str] = field(default_factory=dict)
    batch: Batch = field(default_factory=lambda: Batch(0, torch.empty(0), [], None))
    """The batch that runs now."""

    def take(self, layer: str, output: Any) -> None:
        """A forward hook. All is computed at once, as what follows may write over the output."""
        maps, best = as_maps(self.model, layer, output, len(self.batch.images)), self.activations[layer]
        flat = maps.flatten(2)
        pending = self.sums.setdefault(layer, Pending())
        pending.take(flat.mean(2, dtype=best.kept.values.dtype), _inactive(flat), self.batch.labels)
        best.offer(flat.amax(2), maps, self.batch.images)

    def take_relevance(self, layer: str, shares: Tensor) -> None:
        """Take each unit's share in the score, in the shape of the layer's output."""
        maps = as_maps(self.model, layer, shares, len(self.batch.images))
        self.relevances[layer].offer(relevance_of(maps), maps, self.batch.images)

    def part(self) -> Part:
        """All that was kept."""
        sums = {layer: pending.all() for layer, pending in self.sums.items()}
        return Part(_kept(self.activations), _kept(self.relevances), sums, self.skipped)


def _kept(by_layer: dict[str, Best]) -> dict[str, Ranking]:
    return {layer: Ranking(best.kept.to("cpu"), int(best.not_numbers)) for layer, best in by_layer.items()}


def relevance_of(shares: Tensor) -> Tensor:
    """The relevance of each channel: the sum of its units' shares (B, C, h, w) in the score, (B, C)."""
    return shares.sum((2, 3))


def _inactive(flat: Tensor) -> Tensor:
    """The share of values that are zero or below in each row of (B, C, n): (B, C)."""
    # On a CPU in parts that stay in its cache, and with bytes as numbers: several times faster than written plainly.
    step = max(1, _COUNTED // flat[0].numel()) if flat.device.type == "cpu" else len(flat)
    parts = [part.le(0).view(torch.uint8).sum(2, dtype=torch.int32) for part in torch.split(flat, step)]
    return torch.cat(parts).double() / flat.shape[2]


def as_maps(model: nn.Module, layer: str, output: Any, batch: int) -> Tensor:
    """What a layer gives as maps (B, C, h, w), of one place for features (B, C); raises LayerError otherwise."""
    return to_maps(require_features(model, layer, output, batch).detach())
