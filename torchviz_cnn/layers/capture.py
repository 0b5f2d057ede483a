"""`capture`: what layers give for an input, each as it was before any later module wrote over it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError, counted, did_you_mean, kind_of
from torchviz_cnn.core.names import expand, named_layers
from torchviz_cnn.hooks.inputs import Input, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.layers.defaults import Layers, chosen_patterns
from torchviz_cnn.layers.notebook import picture_of_activations
from torchviz_cnn.media import figures, render
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.media.origin import Origin
from torchviz_cnn.runs import files

_SCALE = ("mean - 2 sd", "mean of each map", "mean + 2 sd")
"""What the colours of a grid mean, from the lowest to the highest: a tile is 128 +- 64 for one standard deviation."""


@dataclass(frozen=True, eq=False)
class Activations(Mapping[str, Tensor]):
    """What layers gave, by name, in execution order: a read-only mapping to tensors (B, C, h, w).

    The tensors are on the model's device, and are the layers' own outputs: unscaled.
    """

    tensors: Mapping[str, Tensor]
    origin: Origin = field(default=Origin(), repr=False)
    """The photos that the batch was made from, where they are known."""

    def __getitem__(self, layer: str) -> Tensor:
        try:
            return self.tensors[layer.removesuffix("#0") if isinstance(layer, str) else layer]
        except KeyError:
            near = did_you_mean(str(layer), self.tensors)
            raise _MissingLayer(f"no layer {layer!r} was captured{near or ';'} there are: {', '.join(self)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    # Results are values that compare by identity: `Mapping` would compare tensors.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def sparsity(self, layer: str) -> Tensor:
        """Share of a layer's values that are exactly zero or below, for each image: (B,) in 0..1.

        It grows with depth.
        """
        return self._maps(layer).le(0).flatten(1).float().mean(1)

    def dead(self, layer: str) -> Tensor:
        """Which of a layer's channels are never above zero, for each image: (B, C) of bool."""
        return self._maps(layer).le(0).flatten(2).all(2)

    def tiles(self, layer: str, image: int = 0, channels: Sequence[int] | None = None) -> np.ndarray[Any, Any]:
        """Each channel of one image as a grey tile: (n, h, w) uint8, standardised to 128 +- 64 (a constant stays 0)."""
        maps = self._maps(layer)
        of_image = maps[checks.place("image", image, len(maps))]
        if channels is not None:
            wrong = [c for c in channels if not 0 <= c < len(of_image)]
            if wrong or not len(channels):
                raise InputError(
                    f"channels {wrong} are out of range: layer {layer!r} has {counted(len(of_image), 'channel')}"
                )
            of_image = of_image[list(channels)]
        return render.standardised_tiles(of_image.float().cpu().numpy())

    def grid(
        self,
        layer: str,
        image: int = 0,
        channels: Sequence[int] | None = None,
        *,
        columns: int = 16,
        margin: int = 1,
        colormap: str = "viridis",
    ) -> Image.Image:
        """Draw channels of one layer for one image as a grid of tiles, as in the textbook, at one pixel per value.

        Args:
            layer, image: which layer, and which image of the batch.
            channels: which channels; by default all. See `tiles` for their scale.
            columns: how many tiles a row (16).
            margin: how many pixels are between tiles (1).
            colormap: a name that matplotlib knows (`viridis`).

        Raises:
            InputError, LayerError: for an image or channel that is not there, and a layer without maps.
        """
        tiles = self.tiles(layer, image, channels)
        grid = render.tile_grid(tiles, columns=min(columns, len(tiles)), margin=margin)
        return Image.fromarray(render.colormap(grid, colormap))

    def plot(
        self,
        layer: str,
        image: int = 0,
        channels: Sequence[int] | None = None,
        *,
        columns: int = 16,
        colormap: str = "viridis",
    ) -> Image.Image:
        """The grid as a figure: titled with the layer's name, in proportion to the number of tiles, with a colour bar.

        A layer whose maps have one place is drawn as bars, one for the value of each channel.
        """
        maps = self._maps(layer)
        if maps.shape[2:] == (1, 1):
            one = maps[checks.place("image", image, len(maps))].flatten().float().cpu().numpy()
            return figures.bars(one if channels is None else one[list(channels)], layer, "activation")
        grid = np.asarray(self.grid(layer, image, channels, columns=columns, colormap=colormap))
        return figures.titled(grid, layer, scale=1 / max(maps.shape[2:]), bar=(colormap, _SCALE))

    def save(self, path: str | Path) -> Path:
        """Write all tensors to a `.safetensors` file, their order in its metadata. Raises OutputError."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        return files.save_tensors(path, tensors, {"layers": json.dumps(list(self))})

    def _maps(self, layer: str) -> Tensor:
        maps = self[layer]
        if maps.ndim != 4:
            raise LayerError(f"layer {layer!r} gives {tuple(maps.shape)}: no maps (B, C, h, w) to draw")
        return maps

    def _repr_png_(self) -> bytes | None:
        return pictures.png(lambda: picture_of_activations(self))

    def __repr__(self) -> str:
        rows = [f"  {name}: {' x '.join(map(str, tensor.shape))}" for name, tensor in self.tensors.items()]
        return "\n".join([f"Activations of {counted(len(self), 'layer')}", *rows])


class _MissingLayer(LayerError, KeyError):
    """A mapping's missing key that is also this library's error, and prints as one line."""

    __str__ = Exception.__str__


def capture(model: Model, x: Input, layers: Layers = None) -> Activations:
    """Capture what the layers of a model give for a batch.

    The forward pass, without gradients, stops once all layers asked for have run. Nothing is copied but what a later
    module overwrites in place. A pattern or type gives every call of what it matches, up to where the modules around
    the matches have finished for the first time (`"encoder.*#*"`: every call to the end).

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) or, with a Network, photos.
        layers: names (`"features.0"`, or `"relu#1"` for the second call of `relu`), glob patterns (`"features.*"`),
            module types, or several of these; by default all convolution and pooling layers.

    Returns:
        Activations: a mapping from the name of each call to what it gave.

    Raises:
        LayerError: for a name or pattern without a match (with the nearest name), a layer that the forward pass does
            not reach, and one that gives no tensor.
        InputError: for an input that is not a tensor, or is empty.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 5))
    >>> capture(model, torch.zeros(1, 1, 8, 8), ["0", nn.ReLU])
    Activations of 2 layers
      0: 1 x 2 x 6 x 6
      1: 1 x 2 x 6 x 6
    """
    with prepared(model, x, images=False) as given, torch.no_grad(), HookManager(given.model) as hooks:
        module = given.model
        patterns = chosen_patterns(module, layers)
        calls = expand(module, named_layers(module), patterns)
        asked = {str(call) for call in calls if call.index is not None}

        def check(name: str, output: Any) -> Tensor | None:
            if name in asked and not isinstance(output, Tensor):
                raise LayerError(f"layer {name!r} gives {kind_of(output)}, not a tensor")
            if not isinstance(output, Tensor):
                return None
            return output.dequantize() if output.is_quantized else output

        # A module is called by the one around it: once that has finished, no further call is to come.
        around = {call.name.rpartition(".")[0] for call in calls if call.index is None}
        to_the_end = "" in around or any(isinstance(p, str) and p.endswith("#*") for p in patterns)
        with hooks.record([str(call) for call in calls], check) as acts:
            hooks.on_forward(() if to_the_end else around, lambda name, output: None)
            hooks.run_on(given.inputs(given.x), stop_early=not to_the_end)
        hooks.require_reached(asked)
        if not acts:
            raise LayerError(f"no layer of {type(module).__name__} that was asked for gave a tensor on this input")
        return Activations(dict(acts), given.origin)
