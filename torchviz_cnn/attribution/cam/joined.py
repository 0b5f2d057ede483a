"""Several heatmaps in one: those of early layers are sharp, those of late layers know what belongs together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchviz_cnn.attribution.cam.gradient_free import enlarged
from torchviz_cnn.attribution.cam.heatmap import Heatmap, SignedHeatmap
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, kind_of

How = Literal["mean", "max"]


def join_heatmaps(heatmaps: Iterable[Heatmap] | Mapping[Any, Heatmap], how: How = "mean") -> Heatmap:
    """Join heatmaps of the same images and classes, of several layers or methods, into one.

    Each map is divided by its largest (absolute) value, as layers and methods have scales of their own, and enlarged to
    the largest of the sizes, bilinearly.

    Args:
        heatmaps: a list of heatmaps, or what `explain` gives.
        how: the `mean` of the maps, or at each place the largest value (`max`, of maps with negative values the one
            that is farthest from 0).

    Returns:
        A Heatmap whose `layer` and `method` name all that are in it; its `activations` are those of the last.

    Raises:
        InputError: for no heatmap, or heatmaps of other images or classes.

    >>> from torch import nn
    >>> from torchviz_cnn.attribution.cam.formulas import grad_cam
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> x = torch.rand(3, 1, 8, 8)
    >>> heat = join_heatmaps([grad_cam(model, x, layer, 2, relu=False) for layer in ("0", "1")])
    >>> heat.layer, heat.values.shape
    ('0 + 1', torch.Size([3, 6, 6]))
    """
    checks.one_of("how", how, get_args(How))
    if isinstance(heatmaps, Heatmap):
        raise InputError("several heatmaps are joined, in a list, and this is one")
    several = list(heatmaps.values() if isinstance(heatmaps, Mapping) else heatmaps)
    _require_alike(several)
    first, last = several[0], several[-1]
    places = 1 if first.target.ndim == 1 else 2  # the dimensions before the places: of images, and of classes
    sizes = [heat.values.shape[places:] for heat in several]
    size = max(sizes, key=lambda size: torch.Size(size).numel())
    maps = torch.stack([_at(_unit(heat.values, places), places, size) for heat in several])
    values = maps.mean(0) if how == "mean" else maps.gather(0, maps.abs().argmax(0, keepdim=True))[0]
    signed = next((heat for heat in several if isinstance(heat, SignedHeatmap)), last)
    return replace(
        signed,
        values=values,
        layer=" + ".join(dict.fromkeys(heat.layer for heat in several)),
        method=" + ".join(dict.fromkeys(heat.method for heat in several)),
        activations=last.activations,
    )


def _unit(values: Tensor, places: int) -> Tensor:
    most = values.abs().flatten(places).amax(-1)
    most = torch.where(most > 0, most, 1)
    return values / most[(..., *[None] * (values.ndim - places))]


def _at(values: Tensor, places: int, size: Sequence[int]) -> Tensor:
    """Maps (B, *S) or (B, K, *S) at another size."""
    maps = values.flatten(0, places - 1)[:, None]
    return enlarged(maps, size).view(*values.shape[:places], *size)


def _require_alike(heatmaps: list[Heatmap]) -> None:
    """Raise InputError unless these are heatmaps of the same images and classes."""
    if not heatmaps:
        raise InputError("at least one heatmap is needed to join, and there is none")
    for heat in heatmaps:
        if not isinstance(heat, Heatmap):
            raise InputError(f"heatmaps are joined, and one of these is {kind_of(heat)}")
        if heat.input_size != heatmaps[0].input_size or _about(heat) != _about(heatmaps[0]):
            one, two = (f"{len(h.values)} of {h.input_size}, {_about(h)}" for h in (heatmaps[0], heat))
            raise InputError(
                f"heatmaps of the same images and classes are joined, and these are of {one}, and of {two}"
            )


def _about(heat: Heatmap) -> str:
    """What a heatmap explains, and of a difference also what was taken away."""
    own = f"{heat.label or 'classes'} {heat.target.tolist()}"
    if not isinstance(heat, SignedHeatmap) or heat.other_target is None:
        return own
    other = f"{heat.other_label or 'classes'} {heat.other_target.tolist()}"
    return own if own == other else f"{own} minus {other}"
