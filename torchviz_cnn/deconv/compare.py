"""Two networks side by side: their first filters, and what drives the strongest units of each layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, ModelError, counted, kind_of
from torchviz_cnn.core.names import named_layers
from torchviz_cnn.deconv.deconvnet import Deconvolution, deconvnet
from torchviz_cnn.hooks.inputs import Input
from torchviz_cnn.hooks.network import Model, Network
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import layer_names
from torchviz_cnn.media import figures, render
from torchviz_cnn.media.bands import colour
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.media.origin import Photo


@dataclass(frozen=True, eq=False)
class FirstFilters:
    """The filters of a network's first convolution, and how many of them are of no use."""

    layer: str
    filters: Tensor
    """(n, C, h, w)."""
    dead: Tensor
    """(n,) bool: the filter's norm is below 5 % of the median norm."""
    duplicate: Tensor
    """(n,) bool: the filter is not dead, and its cosine with an earlier one that is not is above the threshold."""

    @property
    def dead_share(self) -> float:
        """Share of the filters that are dead: 0..1."""
        return float(self.dead.float().mean())

    @property
    def duplicate_share(self) -> float:
        """Share of the filters that nearly repeat another: 0..1."""
        return float(self.duplicate.float().mean())

    def grid(self, side: int = 24) -> Image.Image:
        """All filters as colour tiles of `side` pixels, mid-grey for 0, about as many rows as columns."""
        side = checks.whole_number("side", side)
        rgb = [colour(f.numpy()) for f in self.filters]
        peak = float(np.abs(rgb).max()) or 1.0  # of all: a dead filter is not stretched to full contrast
        tiles = [Image.fromarray(render.signed_colours(f, peak=peak)) for f in rgb]
        large = np.stack([np.asarray(tile.resize((side, side), Image.Resampling.NEAREST)) for tile in tiles])
        return Image.fromarray(render.tile_grid(large, columns=int(np.ceil(len(large) ** 0.5)), margin=2, fill=255))

    def _repr_png_(self) -> bytes | None:
        return pictures.png(lambda: pictures.titled_grid([(str(self), self.grid())]))

    def __str__(self) -> str:
        shares = f"{self.dead_share:.0%} dead, {self.duplicate_share:.0%} near-duplicates"
        return f"{counted(len(self.filters), 'filter')} at {self.layer}: {shares}"


def first_filters(model: Model, threshold: float = 0.9) -> FirstFilters:
    """Give the filters of the first convolution, which of them are dead, and which nearly repeat an earlier one.

    Near: a cosine above `threshold`. Raises ModelError for a network without a 2-D convolution, or one of NaN.

    >>> convolution = nn.Conv2d(3, 4, 3)
    >>> _ = nn.init.normal_(convolution.weight, generator=torch.Generator().manual_seed(0))
    >>> convolution.weight.data[1] = 2 * convolution.weight.data[0]
    >>> print(first_filters(nn.Sequential(convolution)))
    4 filters at 0: 0% dead, 25% near-duplicates
    """
    threshold = checks.number("threshold", threshold)
    with untouched(model) as module:  # some parametrisations of a weight change when it is read
        names = layer_names(module, types=nn.Conv2d)
        if not names:
            raise ModelError(f"{type(module).__name__} has no 2-D convolution whose filters could be compared")
        convolution = named_layers(module)[names[0]]
        assert isinstance(convolution, nn.Conv2d)
        filters = convolution.weight.detach().float().cpu().clone()
    if not bool(filters.isfinite().all()):
        raise ModelError(f"layer {names[0]!r} of {type(module).__name__} has weights that are NaN or infinite")
    norm = filters.flatten(1).norm(dim=1)
    dead = norm < 0.05 * norm.median()
    unit = filters.flatten(1) / norm.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    near = (unit @ unit.T > threshold) & ~dead & ~dead[:, None]
    return FirstFilters(names[0], filters, dead, near.tril(-1).any(1))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Networks by name, each with its first filters and the projections of the strongest units of its layers."""

    filters: Mapping[str, FirstFilters]
    projections: Mapping[str, Deconvolution]

    def plot(self, photo: Photo | None = None, *, geometry: Geometry | Preprocess | None = None) -> Image.Image:
        """Draw a row for each network: its first filters, then its layers' units next to the photo's patches."""
        rows = []
        for name, projections in self.projections.items():
            first = self.filters[name]
            shares = f"{first.dead_share:.0%} dead, {first.duplicate_share:.0%} near-duplicates"
            filters = figures.column_figure(
                {f"{name}: {counted(len(first.filters), 'first filter')}": [(shares, first.grid())]}
            )
            rows.append((filters, projections.plot(photo, geometry=geometry)))
        width = max(a.width + b.width for a, b in rows)
        heights = [max(a.height, b.height) for a, b in rows]
        page = Image.new("RGB", (width, sum(heights)), "white")
        for top, (a, b) in zip(itertools.accumulate(heights, initial=0), rows, strict=False):
            page.paste(a, (0, top))
            page.paste(b, (a.width, top))
        return page

    def __str__(self) -> str:
        return "\n".join(f"{name}: {filters}" for name, filters in self.filters.items())

    def _repr_png_(self) -> bytes | None:
        return pictures.png(self.plot)


def compare(
    networks: Mapping[str, Network | tuple[Model, Tensor]],
    layers: Mapping[str, Sequence[str]] | None = None,
    *,
    photo: Photo | None = None,
    k: int = 3,
    other_activations: OtherActivations = "error",
) -> Comparison:
    """Compare networks layer by layer, as Zeiler & Fergus compare theirs to AlexNet.

    Args:
        networks: name to Network; or name to a module and its input (1, C, H, W), the same photo prepared for each.
        layers: name to the layers that are shown, by default all convolutions; the n-th of one stands below the n-th
            of the other.
        photo: the photo for Networks.
        k: how many channels of each layer, those with the strongest units, are projected down: see `deconvnet`.
        other_activations: what to do about activations that are not ReLUs: see `relu_rule`.

    Returns:
        A Comparison: `filters` and `projections` by the networks' names.

    Raises:
        InputError: for layers of a network that is not there, and a network without its input.
        LayerError, ModelError: as for `deconvnet`.

    >>> a, b = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> x = torch.rand(1, 3, 16, 16)
    >>> list(compare({"coarse": (a, x), "fine": (b, x)}, k=2).projections)
    ['coarse', 'fine']
    """
    if not isinstance(networks, Mapping) or not (layers is None or isinstance(layers, Mapping)):
        raise InputError("networks, and layers where they are named, are mappings from each network's name")
    unknown = set(layers or ()) - set(networks)
    if unknown or not networks:
        raise InputError(f"layers are given for {sorted(unknown)}; the networks are {', '.join(networks) or 'none'}")
    pairs = {name: _with_input(name, network, photo) for name, network in networks.items()}
    projections = {}
    for name, (model, x) in pairs.items():
        shown = (layers or {}).get(name) or layer_names(model, types=nn.Conv2d)
        projections[name] = deconvnet(model, x, shown, k=k, other_activations=other_activations)
    return Comparison({name: first_filters(model) for name, (model, _) in pairs.items()}, projections)


def _with_input(name: str, network: Any, photo: Photo | None) -> tuple[Model, Input]:
    if isinstance(network, Network):
        if photo is None:
            raise InputError(f"{name!r} is a Network: pass the photo that the networks are compared on")
        return network, photo
    if not (isinstance(network, (tuple, list)) and len(network) == 2):
        raise InputError(f"{name!r} is compared as a Network, or as (module, input), not as {kind_of(network)}")
    return network[0], network[1]
