"""The deconvnet of Zeiler & Fergus (arXiv 1311.2901): what in the picture drove one unit, projected down to pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError
from torchviz_cnn.core.names import LayerName, one_call, one_or_several
from torchviz_cnn.hooks.inputs import Input, prepared
from torchviz_cnn.hooks.network import Model, module_of
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.media import figures, render
from torchviz_cnn.media.bands import Bands
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.media.origin import Origin, Photo, as_photo
from torchviz_cnn.runs import files
from torchviz_cnn.scores.projection import projected_units

Unit = Literal["strongest", "all"] | tuple[int, int]
Channels = int | Sequence[int] | None
_IN_NOTEBOOKS = 4
"""Of how many images a notebook shows the projections."""


@dataclass(frozen=True, eq=False)
class Deconvolution:
    """Units of some layers, each projected down to the input. Raw values; scaled only where drawn.

    Where one unit of one layer was asked for, the dimension U of all tensors is left out. `index` chooses an image of
    the batch and `unit` one of its U units wherever one picture is drawn.
    """

    values: Tensor
    """The projections: (B, U, C, H, W), or (B, C, H, W), float32."""
    layers: tuple[str, ...]
    """The layer of each of the U units."""
    channels: Tensor
    """The channel of each unit: (B, U)."""
    positions: Tensor
    """Row and column of each unit in its layer's map, (B, U, 2); -1 where all positions of the channel are meant."""
    activations: Tensor
    """How strongly each unit was active, of all positions the strongest: (B, U)."""
    input_size: tuple[int, ...]
    """(H, W) of the network's input."""
    origin: Origin = field(default=Origin(), repr=False)
    """The photos and how they were prepared, as far as they are known."""

    def image(self, index: int = 0, unit: int = 0, bands: Bands | None = None) -> Image.Image:
        """One projection as a picture of the input's size: 0 is mid-grey, the strongest value black or white.

        `bands`: the input's channels for red, green and blue, or one; of other than 1 or 3 channels, else their mean.
        """
        return Image.fromarray(render.signed_colours(self._projection(index, unit), bands=bands))

    def patch(self, index: int = 0, unit: int = 0) -> tuple[int, int, int, int]:
        """What part of the input one projection covers: (left, top, right, bottom) in its pixels; all, if nothing."""
        covered = (self._projection(index, unit) != 0).any(axis=0)
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        if not len(rows):
            return (0, 0, self.input_size[1], self.input_size[0])
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def plot(
        self,
        photo: Photo | None = None,
        *,
        index: int = 0,
        side: int = 96,
        whole: bool = False,
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:
        """Draw a column for each layer, as in the paper's figure 2: its units, each next to the patch of the photo.

        Each is cut to a square around what the projection covers (`whole`: shown in full) and enlarged to `side`
        pixels.
        """
        if photo is None and self.origin.photos is not None:
            photo = self.origin.photo(index)
        side = checks.whole_number("side", side)
        seen = None if photo is None else self.origin.seen(as_photo(photo), self.input_size, geometry)
        channels, activations = (t.view(len(t), -1) for t in (self.channels, self.activations))
        columns: dict[str, list[tuple[str, Image.Image]]] = {}
        for unit, layer in enumerate(self.layers):
            box = None if whole else _square(self.patch(index, unit), *self.input_size)
            pair = [self.image(index, unit)] if seen is None else [seen, self.image(index, unit)]
            tiles = np.stack([np.asarray(p.resize((side, side), Image.Resampling.BICUBIC, box)) for p in pair])
            channel, activation = (t[index, unit].item() for t in (channels, activations))
            caption = f"channel {channel}: {activation:.3g}"
            picture = Image.fromarray(render.tile_grid(tiles, len(tiles), margin=2))
            columns.setdefault(layer, []).append((caption, picture))
        return figures.column_figure(columns)

    def save(self, path: str | Path) -> Path:
        """Write values, layers, channels, positions and activations to a `.npz` file. Raises OutputError."""
        names = ("values", "layers", "channels", "positions", "activations")
        return files.save_arrays(path, {name: getattr(self, name) for name in names})

    def _projection(self, index: int, unit: int) -> render.Array:
        values = self.values if self.values.ndim == 5 else self.values[:, None]
        image, unit = checks.place("image", index, len(values)), checks.place("unit", unit, values.shape[1])
        projection: render.Array = values[image, unit].cpu().numpy()
        return projection

    def _repr_png_(self) -> bytes | None:
        shown = range(min(len(self.values), _IN_NOTEBOOKS))
        return pictures.png(lambda: pictures.below_each_other([self.plot(index=index) for index in shown]))

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        return f"Deconvolution({', '.join(dict.fromkeys(self.layers))}: {shape}, channels {self.channels.tolist()})"


def deconvnet(
    model: Model,
    x: Input,
    layer: LayerName | Sequence[LayerName],
    channel: Channels | Mapping[LayerName, Channels] = None,
    *,
    unit: Unit = "strongest",
    k: int | None = None,
    other_activations: OtherActivations = "error",
) -> Deconvolution:
    """Project units of a layer down to the pixels that drove them, as ZFNet's deconvnet does.

    The signal sent down is what the layer gave, kept at the unit alone. On its way a convolution is transposed, without
    its bias; a ReLU rectifies the signal; max-pooling puts it back where its maxima were (its switches), adding up
    what meets in one place. Everything else passes its own gradient: a sum copies, a concatenation splits, and
    BatchNorm and local response normalisation scale as they do around this very input. A layer means what it
    gives: for a convolution that is before the ReLU that follows it (the two differ where a unit is negative only).

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) or, with a Network, photos.
        layer: a name or a module, or several, in one forward pass that stops at the last.
        channel: an index, several, or by default the one with the strongest unit in each image; a mapping gives each
            layer its own.
        unit: the `strongest` of the channel, (row, column), or `all` its positions together.
        k: how many channels, where none is named: those with the strongest units.
        other_activations: what to do about activations that are not ReLUs: see `relu_rule`.

    Returns:
        A Deconvolution with `values` (B, C, H, W), with U after B for several channels or layers. A dead channel
        projects to zeros.

    Raises:
        LayerError: for a layer that does not exist, is not reached or has no maps, and for activations that are no
            ReLUs.
        InputError: for a channel or unit that is not there.

    Zeiler & Fergus, arXiv 1311.2901.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(2, 4, 3), nn.ReLU())
    >>> deconvnet(model, torch.rand(1, 3, 16, 16), "4", channel=2).values.shape
    torch.Size([1, 3, 16, 16])
    >>> deconvnet(model, torch.rand(1, 3, 16, 16), ["1", "4"], k=2).layers
    ('1', '1', '4', '4')
    """
    module = module_of(model)
    layers = [one_call(module, one) for one in one_or_several(layer)]
    if not layers:
        raise LayerError("the deconvnet was asked for no layer at all; layer_names(model) lists them")
    if k is not None:
        checks.whole_number("k", k)
    if isinstance(channel, Mapping):
        by_layer = {one_call(module, one): channels for one, channels in channel.items()}
    else:
        by_layer = dict.fromkeys(layers, channel)
    if unknown := sorted(set(by_layer) - set(layers)):
        raise InputError(f"channels are given for {unknown}; the layers asked for are {', '.join(layers)}")
    asked = {name: None if one is None else checks.indices("channel", one) for name, one in by_layer.items()}
    alone = isinstance(layer, (str, nn.Module))
    single = alone and k is None and (channel is None or isinstance(asked.get(layers[0]), int))
    with prepared(model, x, dims=(2,)) as given:
        parts: list[tuple[Tensor, ...]] = []
        with projected_units(given, layers, other_activations=other_activations) as units:
            for name in layers:
                channels, positions, activations, unit_masks = _choose(
                    units.maps[name], name, asked.get(name), unit, k or 1
                )
                values = units.project(name, channels, unit_masks, keep_graph=len(parts) + 1 < len(layers))
                parts.append((values, channels, positions, activations))
        together = [torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)]
        values, channels, positions, activations = (t[:, 0] if single else t for t in together)
        of_units = tuple(name for name, part in zip(layers, parts, strict=True) for _ in range(part[0].shape[1]))
        return Deconvolution(
            values, of_units, channels, positions, activations, input_size=given.input_size, origin=given.origin
        )


def _square(box: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """A part of a picture, as (left, top, right, bottom), made as wide as high, as far as the picture goes."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    across, down = min(side, width), min(side, height)
    left = min(max((left + right - across) // 2, 0), width - across)
    top = min(max((top + bottom - down) // 2, 0), height - down)
    return left, top, left + across, top + down


def _choose(
    maps: Tensor, layer: str, channel: int | list[int] | None, unit: Unit, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Channels, positions and activations of U units for each image, and which places of their channels' maps belong to
    them, as 0 or 1: (B, U, h, w)."""
    maps = maps.detach().float()
    batch, count, height, width = maps.shape
    row, column = _position(unit, layer, height, width)
    if channel is None:
        strength = maps.amax((2, 3)) if row is None else maps[:, :, row, column]
        channels = strength.topk(min(k, count), 1).indices
    else:
        checks.require_channels(channel, layer, count)
        channels = torch.tensor(channel, device=maps.device).view(1, -1).expand(batch, -1)
    flat = maps[torch.arange(batch, device=maps.device)[:, None], channels].flatten(2)
    place = flat.argmax(2) if row is None else torch.full(channels.shape, row * width + column, device=maps.device)
    activations = flat.gather(2, place[..., None])[..., 0]
    if unit == "all":
        positions, unit_masks = torch.full((*channels.shape, 2), -1, device=maps.device), torch.ones_like(flat)
    else:
        positions = torch.stack([place // width, place % width], -1)
        unit_masks = F.one_hot(place, height * width).to(flat)
    return channels, positions, activations, unit_masks.view(batch, -1, height, width)


def _position(unit: Unit, layer: str, height: int, width: int) -> tuple[int, int] | tuple[None, int]:
    if isinstance(unit, str) and unit in ("strongest", "all"):
        return None, 0
    place = [] if isinstance(unit, str) else checks.indices("unit", unit)
    if isinstance(place, int) or len(place) != 2:
        raise InputError(f"unit is 'strongest', 'all' or (row, column), not {unit!r}")
    row, column = place
    if not (0 <= row < height and 0 <= column < width):
        raise InputError(f"unit {unit} is out of range: the maps of layer {layer!r} are {height} x {width}")
    return row, column
