"""What every class heatmap of a layer gives: `Heatmap`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.attribution.result import ClassMap, of_targets, warn_of_empty
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.hooks.inputs import Given
from torchviz_cnn.media import render
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.runs import files
from torchviz_cnn.scores.targets import Targets
from torchviz_cnn.scores.trace import Trace

Layer = LayerName | Sequence[LayerName] | None
"""A layer by its name or as a module, alone or in a list; None for the one that is explained by default."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Heatmap(ClassMap):
    """How strong the evidence for a class is at each place of a layer. Raw values: see `ClassMap`.

    After the ReLU, `values` are at least 0.
    """

    layer: str
    activations: Tensor
    """The maps that the layer gave: (B, C, *S)."""

    def _title(self) -> str:
        return f"{self.method}, {self.layer}"

    def _comparison(
        self, photo: Image.Image, index: int, nth: int, seed: int, geometry: Geometry | Preprocess | None
    ) -> tuple[str, Image.Image | render.Array]:
        generator = torch.Generator().manual_seed(seed)
        maps = self._of(self.activations, index).detach().float().cpu()
        alive = (maps.flatten(1).amax(1) > 0).nonzero().flatten()
        channels = alive if len(alive) else torch.arange(len(maps))
        channel = int(channels[torch.randint(len(channels), (1,), generator=generator)])
        return f"a random feature map: channel {channel}", maps[channel].numpy()

    def save(self, path: str | Path) -> Path:
        """Write values, target, logits, layer and method to a `.npz` file. Raises OutputError."""
        arrays = {"values": self.values, "target": self.target, "logits": self.logits}
        return files.save_arrays(path, {**arrays, "layer": self.layer, "method": self.method})

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        return f"Heatmap({self.method} at {self.layer}: {shape}, classes {self.target.tolist()})"


def positive(values: Tensor, layer: str, targets: Targets) -> Tensor:
    """Maps (B, K, *S) without their negative values; warns (EmptyMapWarning) of those that have no others."""
    shown = layer.replace("{", "{{").replace("}", "}}")
    why = f"no positive evidence for class {{label}} at layer {shown!r} in image {{image}}"
    warn_of_empty(values.flatten(2).amax(2) <= 0, targets.classes, why)
    return values.relu()


def require_places(model: nn.Module, layer: str, maps: Tensor) -> None:
    """Raise LayerError for maps (B, C, *S) of one place."""
    if all(side == 1 for side in maps.shape[2:]):
        raise LayerError(
            f"layer {layer!r} of {type(model).__name__} gives maps of a single pixel, which locate nothing"
        )


def heatmap_of(method: str, given: Given, layer: str, values: Tensor, run: Trace) -> Heatmap:
    return Heatmap(
        values=run.targets.squeezed(values),
        layer=layer,
        method=method,
        activations=run.maps(layer),
        **of_targets(given, run.targets),
    )
