"""Channels of a layer that are alike: by the direction of their weights, or by what they respond to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError, NotFiniteError, counted
from torchviz_cnn.core.names import LayerName, named_layers, one_call, resolve, unwrap
from torchviz_cnn.hooks.inputs import Given, Input, LayoutName, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, module_of
from torchviz_cnn.layers.layout import CONVOLUTIONS, Layouts
from torchviz_cnn.media.notebook import tables

SimilarBy = Literal["weights", "activations"]
_AT_ONCE = 16
"""How many images run at once."""


@dataclass(frozen=True, eq=False)
class SimilarChannels:
    """The channels of a layer that are most like one of them."""

    layer: str
    channel: int
    by: SimilarBy
    channels: tuple[int, ...]
    """The most similar first."""
    cosines: Tensor
    """How similar each is: (k,) float32 in -1..1, in falling order."""

    def _repr_html_(self) -> str:
        title = f"Channels like {self.channel} of {self.layer}, by the cosine of their {self.by}"
        rows = [[str(c), f"{cosine:.3f}"] for c, cosine in zip(self.channels, self.cosines.tolist(), strict=True)]
        return tables.table(title, ["channel", "cosine"], rows)

    def __repr__(self) -> str:
        rows = [f"  {cosine:.3f}  {c}" for c, cosine in zip(self.channels, self.cosines.tolist(), strict=True)]
        return "\n".join([f"Channels like {self.channel} of {self.layer}, by the cosine of their {self.by}", *rows])


def similar_channels(
    model: Model,
    layer: LayerName,
    channel: int,
    k: int = 8,
    *,
    by: SimilarBy = "weights",
    x: Input | None = None,
    layout: LayoutName = None,
) -> SimilarChannels:
    """Find the k channels of a layer that are most like one of them, by the cosine of two vectors.

    By `weights` the vectors are the weights of the channels, which look for the same in the same inputs where the
    cosine is near 1. In a convolution of groups only the channels of one group share their inputs, and are compared. By
    `activations` a vector holds a channel's mean activation in each image: two channels are alike that are strong in
    the same images.

    Args:
        model: a module or a Network.
        layer: a dotted name, or the module; by `weights` a convolution or a fully connected layer.
        channel: which channel of it.
        k: how many others are named, as far as there are so many (8).
        by: `weights` or `activations`.
        x: by `activations`, a batch of at least two images (B, C, H, W) or, with a Network, photos.
        layout: by `activations`, how the layer's tensor is read, as for `grad_cam`.

    Returns:
        SimilarChannels. Channels whose weights or activations are all zero, or not all finite, are not among them.

    Raises:
        LayerError: for a layer that does not exist or has no weights, and one whose channels share no inputs.
        InputError: for a channel that the layer does not have or that has no direction, and without images.
        NotFiniteError: for a channel whose weights or activations hold NaN or infinity.

    >>> model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.tensor([1.0, 2.0, -1.0]).view(3, 1, 1, 1))
    >>> similar_channels(model, "0", channel=0)
    Channels like 0 of 0, by the cosine of their weights
      1.000  1
      -1.000  2
    """
    checks.one_of("by", by, get_args(SimilarBy))
    channel, k = checks.whole_number("channel", channel, 0), checks.whole_number("k", k)
    with torch.inference_mode(False), torch.no_grad():
        if by == "weights":
            if x is not None:
                raise InputError("x is what activations are of, and the channels are compared by='weights'")
            module = unwrap(module_of(model))
            name = one_call(module, layer)
            vectors, place = _weights_beside(module, name, channel)
        elif x is None:
            raise InputError("activations are of images: x= says of which, at least two")
        else:
            with prepared(model, x, layout=layout) as given:
                name = one_call(given.model, layer)
                vectors, place = _mean_activations(given, name), 0
            _require_channel(name, channel, len(vectors))
        if not bool(vectors[channel - place].isfinite().all()):
            raise NotFiniteError(f"the {by} of channel {channel} of layer {name!r} hold NaN or infinity")
        unit_vectors = directions(vectors)
        if not bool(unit_vectors[channel - place].any()):
            why = "all its weights are zero" if by == "weights" else "it gives nothing but zero on these images"
            raise InputError(f"channel {channel} of layer {name!r} has no direction to compare: {why}")
        best, cosines = most_similar(unit_vectors, channel - place, k)
    return SimilarChannels(name, channel, by, tuple(place + other for other in best), cosines)


def directions(vectors: Tensor) -> Tensor:
    """Vectors (..., m) of length 1; zeros stay zeros, and what holds NaN or infinity becomes zeros."""
    vectors = torch.where(vectors.isfinite().all(-1, keepdim=True), vectors, 0)
    return F.normalize(vectors, dim=-1, eps=torch.finfo(vectors.dtype).tiny)


def most_similar(unit_vectors: Tensor, place: int, k: int) -> tuple[list[int], Tensor]:
    """The places of the k vectors, of (n, m) of length 1, that are most like one of them, and their cosines."""
    cosines = unit_vectors @ unit_vectors[place]
    order = cosines.argsort(descending=True, stable=True)
    others = unit_vectors[order].any(1) & (order != place)
    best = order[others][:k]
    return [int(other) for other in best], cosines[best].float()


def weights_of(module: nn.Module) -> Tensor | None:
    """The weights of the channels of a layer in groups that share their inputs: (groups, channels, n), float64.

    None for a layer that has none.
    """
    if isinstance(module, nn.Linear):
        return module.weight.detach().double()[None]
    if not isinstance(module, CONVOLUTIONS) or not isinstance(module.weight, Tensor):
        return None
    weight, groups = module.weight.detach().double(), int(module.groups)  # type: ignore[arg-type]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):  # (inputs, channels of a group, ...)
        weight = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2)
        return weight.flatten(2)
    return weight.view(groups, -1, *weight.shape[1:]).flatten(2)


def _weights_beside(model: nn.Module, name: str, channel: int) -> tuple[Tensor, int]:
    """The weights (n, ...) of the channels that share their inputs with one, and the number of the first of them."""
    layers = named_layers(model)
    own = resolve(model, layers, name).name
    weights = weights_of(layers[own])
    if weights is None:
        before = [other for other, module in layers.items() if other and weights_of(module) is not None]
        names = list(layers)
        near = [other for other in before if names.index(other) < names.index(own)]
        hint = f"; {near[-1]!r} before it has" if near else ""
        raise LayerError(
            f"layer {name!r} of {type(model).__name__} is {type(layers[own]).__name__}, which has no weights of "
            f"channels{hint}; by='activations' compares what it gives"
        )
    groups, size, _ = weights.shape
    _require_channel(name, channel, groups * size)
    if size == 1:
        alone = (
            f"an input of its own for each of its {groups} channels (groups={groups})" if groups > 1 else "one channel"
        )
        raise LayerError(
            f"layer {name!r} of {type(model).__name__} has {alone}: there are no weights to compare"
            + "; by='activations' compares what it gives" * (groups > 1)
        )
    return weights[channel // size], channel // size * size


def _require_channel(layer: str, channel: int, count: int) -> None:
    if channel >= count:
        raise InputError(f"channel {channel} is out of range: layer {layer!r} has {counted(count, 'channel')}")


def _mean_activations(given: Given, layer: str) -> Tensor:
    """The mean activation of each channel in each image: (C, B), float64."""
    if len(given.x) < 2:
        raise InputError("activations are compared over at least two images, and x has one")
    rows = torch.arange(len(given.x)).split(_AT_ONCE)  # type: ignore[no-untyped-call]
    return torch.cat([_means_of(given.of_images(part, given.x[part]), layer) for part in rows]).T


def _means_of(given: Given, layer: str) -> Tensor:
    """The same of a few images: (B, C)."""
    known, means = Layouts(given.model, given.x, given.layout), list[Tensor]()

    def take(name: str, output: Any) -> None:
        tensor = known.tensor(name, output)
        maps = tensor[..., None] if tensor.ndim == 2 else known.of(name, tensor).maps(tensor)
        means.append(maps.flatten(2).double().mean(2).cpu())

    with torch.no_grad(), HookManager(given.model) as hooks:
        known.watch(hooks)
        hooks.on_forward(layer, take)
        hooks.run_on(given.inputs(given.x.clone()))
        hooks.require_reached()
    return means[0]
