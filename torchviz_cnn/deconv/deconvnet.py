"""The deconvnet of Zeiler & Fergus (arXiv 1311.2901): what in the picture drove one unit, projected down to pixels."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.attribution.result import keep_maps, require_images, seen_picture
from torchviz_cnn.core.errors import InputError, LayerError, ModelError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.relu_rules import OtherActivations, relu_rule
from torchviz_cnn.hooks.untouched import lend_input, untouched
from torchviz_cnn.media import render
from torchviz_cnn.media.images import Geometry, Preprocess, preprocess_of
from torchviz_cnn.runs import files
from torchviz_cnn.scores.targets import gradients_at

Unit = Literal["strongest", "all"] | tuple[int, int]
Channels = int | Sequence[int] | None


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
    input_size: tuple[int, int]
    """(H, W) of the network's input."""
    preprocess: Preprocess | None = field(default=None, repr=False)

    def image(self, index: int = 0, unit: int = 0) -> Image.Image:
        """One projection as a picture of the input's size: 0 is mid-grey, the strongest value black or white."""
        return Image.fromarray(render.signed_colours(self._projection(index, unit)))

    def patch(self, index: int = 0, unit: int = 0) -> tuple[int, int, int, int]:
        """What part of the input one projection covers: (left, top, right, bottom) in its pixels; all, if nothing."""
        covered = (self._projection(index, unit) != 0).any(axis=0)
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        if not len(rows):
            return (0, 0, self.input_size[1], self.input_size[0])
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def plot(
        self, photo: Image.Image | None = None, *, index: int = 0, side: int = 96, whole: bool = False,
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:  # fmt: skip
        """A column for each layer, as in the paper's figure 2: its units below each other, the patch of the photo beside.

        Each is cut to a square around what the projection covers (`whole`: shown in full) and enlarged to `side` pixels.
        """
        seen = None if photo is None else seen_picture(photo, self.input_size, geometry, self.preprocess)
        columns: dict[str, list[tuple[str, Image.Image]]] = {}
        for unit, layer in enumerate(self.layers):
            box = None if whole else _square(self.patch(index, unit), *self.input_size)
            pair = [self.image(index, unit)] if seen is None else [seen, self.image(index, unit)]
            tiles = np.stack([np.asarray(p.resize((side, side), Image.Resampling.BICUBIC, box)) for p in pair])
            caption = f"channel {int(self._flat(self.channels)[index, unit])}: {float(self._flat(self.activations)[index, unit]):.3g}"
            columns.setdefault(layer, []).append(
                (caption, Image.fromarray(render.tile_grid(tiles, len(tiles), margin=2)))
            )
        return render.column_figure(columns)

    def save(self, path: str | Path) -> Path:
        """Write values, layers, channels, positions and activations to a `.npz` file. Raises OutputError."""
        names = ("values", "layers", "channels", "positions", "activations")
        return files.save_arrays(path, {name: getattr(self, name) for name in names})

    def _projection(self, index: int, unit: int) -> render.Array:
        values = self.values if self.values.ndim == 5 else self.values[:, None]
        if not (-len(values) <= index < len(values) and -values.shape[1] <= unit < values.shape[1]):
            raise InputError(
                f"image {index}, unit {unit} is out of range: there are {len(values)} and {values.shape[1]}"
            )
        found: render.Array = values[index, unit].cpu().numpy()
        return found

    def _flat(self, values: Tensor) -> Tensor:
        return values if values.ndim == 2 else values[:, None]

    def _repr_png_(self) -> bytes:
        return files.png(self.plot())

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        return f"Deconvolution({', '.join(dict.fromkeys(self.layers))}: {shape}, channels {self.channels.tolist()})"


def deconvnet(
    model: nn.Module, x: Tensor, layer: str | Sequence[str], channel: Channels | Mapping[str, Channels] = None, *,
    unit: Unit = "strongest", top: int | None = None, other_activations: OtherActivations = "error",
) -> Deconvolution:  # fmt: skip
    """Project units of a layer down to the pixels that drove them, as ZFNet's deconvnet does.

    The signal sent down is what the layer gave, kept at the unit alone. On its way a convolution is transposed, without
    its bias; a ReLU rectifies the signal; max-pooling puts it back where its maxima were (its switches), adding up
    what meets in one place. Everything else passes its own gradient: a sum copies, a concatenation splits, and
    BatchNorm and local response normalisation scale as they do around this very input. A layer means what it
    gives: for a convolution that is before the ReLU that follows it (the two differ where a unit is negative only).

    `x` (B, C, H, W). `layer`: a name, or several, in one forward pass that stops at the last. `channel`: an int, several,
    or by default the one with the strongest unit in each image, `top` for that many; a mapping gives each layer its own.
    `unit`: the `"strongest"` of the channel, `(row, column)`, or `"all"` its positions together. Gives `values`
    (B, C, H, W), with U after B for several channels or layers.

    Raises LayerError for a layer that does not exist, is not reached or has no maps, and for activations that are
    no ReLUs (see `relu_rule`); InputError for a channel or unit that is not there. A dead channel projects to zeros.

    Zeiler & Fergus, arXiv 1311.2901.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(2, 4, 3), nn.ReLU())
    >>> deconvnet(model, torch.rand(1, 3, 16, 16), "4", channel=2).values.shape
    torch.Size([1, 3, 16, 16])
    >>> deconvnet(model, torch.rand(1, 3, 16, 16), ["1", "4"], top=2).layers
    ('1', '1', '4', '4')
    """
    layers = [layer] if isinstance(layer, str) else list(layer)
    if not layers:
        raise LayerError("the deconvnet was asked for no layer at all; layer_names(model) lists them")
    if top is not None and top < 1:
        raise InputError(f"top is how many channels are shown, at least 1, not {top}")
    asked = {name: _asked(channel.get(name) if isinstance(channel, Mapping) else channel) for name in layers}
    unknown = sorted(set(channel) - set(layers)) if isinstance(channel, Mapping) else []
    if unknown:
        raise InputError(f"channels are given for {unknown}; the layers asked for are {', '.join(layers)}")
    one = isinstance(layer, str) and top is None and (channel is None or isinstance(asked[layer], int))
    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        kept: dict[str, Tensor] = {}
        rule = relu_rule("deconvnet", other_activations=other_activations)
        leaf = x.detach().requires_grad_()
        with HookManager(lent) as hooks:
            hooks.on_forward(layers, keep_maps(lent, len(x), kept))
            with rule:
                hooks.run(leaf.clone())
            hooks.require_reached()
            for name, maps in kept.items():
                if not bool(maps.detach().sum().isfinite()) and bool(maps.detach().isnan().any()):
                    raise ModelError(
                        f"layer {name!r} of {type(lent).__name__} gives NaN: some of its weights, or what it computes, are no numbers"
                    )
            found = []
            for place, name in enumerate(layers):
                chosen = _choose(kept[name].detach(), name, asked[name], unit, top or 1)
                images = torch.arange(len(x), device=x.device)[:, None]
                # The gradient of this is the unit's own gradient times the unit.
                scores = (kept[name].float()[images, chosen.channels] * chosen.signal).sum((2, 3))
                parts = gradients_at(lent, f"the input from layer {name!r}", scores, leaf, place + 1 < len(layers))
                projection = torch.cat([part.float() for part in parts]).transpose(0, 1)
                found.append((name, chosen, projection.contiguous()))
        values = torch.cat([projection for _, _, projection in found], 1)
        tensors = [
            torch.cat([getattr(c, name) for _, c, _ in found], 1) for name in ("channels", "positions", "activations")
        ]
        channels, positions, activations = (t[:, 0] if one else t for t in tensors)
        return Deconvolution(
            values=values[:, 0] if one else values,
            layers=tuple(name for name, chosen, _ in found for _ in range(chosen.channels.shape[1])),
            channels=channels,
            positions=positions,
            activations=activations,
            input_size=(x.shape[2], x.shape[3]),
            preprocess=preprocess_of(lent),
        )


def _square(box: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """A part of a picture, as (left, top, right, bottom), made as wide as high, as far as the picture goes."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    across, down = min(side, width), min(side, height)
    left = min(max((left + right - across) // 2, 0), width - across)
    top = min(max((top + bottom - down) // 2, 0), height - down)
    return left, top, left + across, top + down


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Units of one layer, and the maps (B, K, h, w) of their channels with everything else set to zero."""

    channels: Tensor
    positions: Tensor
    activations: Tensor
    signal: Tensor


def _choose(maps: Tensor, layer: str, channel: int | list[int] | None, unit: Unit, top: int) -> _Chosen:
    maps = maps.float()
    batch, count, height, width = maps.shape
    row, column = _position(unit, layer, height, width)
    if channel is None:
        strength = maps.amax((2, 3)) if row is None else maps[:, :, row, column]
        channels = strength.topk(min(top, count), 1).indices
    else:
        asked = [channel] if isinstance(channel, int) else channel
        wrong = [c for c in asked if not 0 <= c < count]
        if wrong or not asked:
            raise InputError(f"channels {wrong} are out of range: layer {layer!r} has {count} channels")
        channels = torch.tensor(asked, device=maps.device).expand(batch, -1)
    signal = maps[torch.arange(batch, device=maps.device)[:, None], channels]
    flat = signal.flatten(2)
    place = flat.argmax(2) if row is None else torch.full(channels.shape, row * width + column, device=maps.device)
    activations = flat.gather(2, place[..., None])[..., 0]
    positions = torch.stack([place // width, place % width], -1)
    if unit == "all":
        positions = torch.full_like(positions, -1)
    else:
        signal = (flat * F.one_hot(place, height * width)).view_as(signal)
    return _Chosen(channels, positions, activations, signal)


def _asked(channel: Any) -> int | list[int] | None:
    """A channel, or several, as whole numbers. Raises InputError for what is none."""
    if isinstance(channel, (Tensor, np.ndarray)):
        channel = channel.tolist()
    try:
        if channel is None or not isinstance(channel, Iterable):
            return None if channel is None else operator.index(channel)
        return [operator.index(one) for one in channel]
    except TypeError:
        raise InputError(f"a channel is a whole number, or several, not {channel!r}") from None


def _position(unit: Unit, layer: str, height: int, width: int) -> tuple[int, int] | tuple[None, int]:
    if unit in ("strongest", "all"):
        return None, 0
    if isinstance(unit, (tuple, list)) and len(unit) == 2 and all(hasattr(place, "__index__") for place in unit):
        row, column = int(unit[0]), int(unit[1])
        if 0 <= row < height and 0 <= column < width:
            return row, column
        raise InputError(f"unit {unit} is out of range: the maps of layer {layer!r} are {height} x {width}")
    raise InputError(f"unit is 'strongest', 'all' or (row, column), not {unit!r}")


def max_pool_with_switches(
    x: Tensor, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0, ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Max-pooling (B, C, H, W) that also tells where each maximum was: row * W + column, (B, C, h, w).

    >>> x = torch.tensor([[[[0.8, 0.6, 0.5, 0.3], [0.3, 0.4, 0.9, 0.8], [0.2, 0.7, 0.8, 0.4], [0.5, 0.4, 0.6, 0.5]]]])
    >>> pooled, switches = max_pool_with_switches(x, 2)
    >>> switches[0, 0].tolist()
    [[0, 6], [9, 10]]
    """
    pooled, switches = F.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode, return_indices=True)
    return pooled, switches


def unpool(pooled: Tensor, switches: Tensor, output_size: Sequence[int]) -> Tensor:
    """Put pooled values (..., h, w) back where the switches say, zeros elsewhere: (..., H, W), for `output_size` (H, W).

    Windows that overlap may share their maximum: their values are added there, as max-pooling's gradient does;
    `torch.nn.functional.max_unpool2d` keeps one of them. Raises InputError for what does not fit together.

    >>> x = torch.tensor([[[[0.8, 0.6, 0.5, 0.3], [0.3, 0.4, 0.9, 0.8], [0.2, 0.7, 0.8, 0.4], [0.5, 0.4, 0.6, 0.5]]]])
    >>> unpool(*max_pool_with_switches(x, 2), (4, 4))[0, 0]
    tensor([[0.8000, 0.0000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.9000, 0.0000],
            [0.0000, 0.7000, 0.8000, 0.0000],
            [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    height, width = (int(side) for side in tuple(output_size)[-2:])
    if pooled.shape != switches.shape or pooled.ndim < 2:
        raise InputError(f"pooled values {tuple(pooled.shape)} and switches {tuple(switches.shape)} do not fit")
    places = switches.flatten(-2)
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < height * width:
        raise InputError(f"switches up to {int(places.max())} do not fit an output of {height} x {width}")
    back = pooled.new_zeros(*pooled.shape[:-2], height * width)
    return back.scatter_add(-1, places, pooled.flatten(-2)).view(*pooled.shape[:-2], height, width)
