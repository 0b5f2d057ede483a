"""What one step of a training is seen by, and how it is put into a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchviz_cnn.watch.photos import sheet

_TENSORS = ("heat", "target", "probability", "predicted", "confidence", "dead", "channels")
_PICTURES = "pictures/"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network at one step of its training, of B photos."""

    step: int
    loss: float | None
    heat: Tensor
    """The heatmap of each photo's class, without negative values: (B, h, w), float32."""
    target: Tensor
    """The class that is explained: (B,)."""
    probability: Tensor
    """Its probability: (B,), 0..1."""
    predicted: Tensor
    """The likeliest class: (B,)."""
    confidence: Tensor
    """Its probability: (B,)."""
    layers: tuple[str, ...]
    """The L layers whose dead channels are counted, in the order in which they run."""
    dead: Tensor
    """How many channels of each of them are never above zero on these photos: (L,)."""
    channels: Tensor
    """How many channels each of them has: (L,)."""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """Filter patterns, or first filters, by layer: (n, H, W, 3) uint8."""
    trouble: str | None = None
    """Why there is no heatmap, where there is none: the network's numbers are not finite."""

    @cached_property
    def sheets(self) -> dict[str, str]:
        """The pictures of each layer as the page has them, encoded once."""
        return {layer: sheet(tiles) for layer, tiles in self.pictures.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as they are put into a file."""
        pictures = {f"{_PICTURES}{layer}": tiles for layer, tiles in self.pictures.items()}
        return {**{name: getattr(self, name) for name in _TENSORS}, **pictures}

    def texts(self) -> dict[str, str]:
        """What stands beside the tensors in the file."""
        loss = {} if self.loss is None else {"loss": repr(self.loss)}
        trouble = {} if self.trouble is None else {"trouble": self.trouble}
        return {"step": str(self.step), "layers": json.dumps(self.layers), **loss, **trouble}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Checkpoint:
        """The checkpoint that a file holds. Raises KeyError or ValueError for one of something else."""
        pictures = {name.removeprefix(_PICTURES): t for name, t in tensors.items() if name.startswith(_PICTURES)}
        loss = float(texts["loss"]) if "loss" in texts else None
        known: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
        known["layers"] = tuple(json.loads(texts["layers"]))
        return Checkpoint(int(texts["step"]), loss, **known, pictures=pictures, trouble=texts.get("trouble"))

    @staticmethod
    def without_numbers(step: int, loss: float | None, target: Tensor, trouble: str) -> Checkpoint:
        """That of a network whose numbers are not finite."""
        unknown, none = torch.full((len(target),), torch.nan), torch.zeros(0, dtype=torch.int64)
        heat = torch.zeros(len(target), 1, 1)
        return Checkpoint(step, loss, heat, target, unknown, target, unknown, (), none, none, trouble=trouble)


def peaks(kept: Sequence[Checkpoint]) -> Tensor:
    """The strongest evidence in each photo over all of these steps: (B,)."""
    return torch.stack([one.heat.flatten(1).amax(1) for one in kept]).amax(0)


def shown_loss(loss: float | None) -> str:
    """A loss as it is written beside its step; empty where none was given."""
    return "" if loss is None else f"loss {loss:.3g}"
