"""How far the heatmaps of a report can be believed: figures of each photo's heatmaps, measured while there is time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.parts import Part, at_size
from torchviz_cnn.attribution.metrics.perturbation import curve
from torchviz_cnn.hooks.inputs import Output, prepared
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.media.bands import Pixels
from torchviz_cnn.page.collect import Collected, Done, Explained, target_of
from torchviz_cnn.page.encode import figure
from torchviz_cnn.scores.targets import Target, asked

STEPS = 16
CENTRE = "centre"
"""What stands for a blob in the middle of the input: a map that does no better says nothing."""
_FIRST = ("grad_cam", "competitive_cam", "saliency", "guided", "guided_grad_cam")


@dataclass(eq=False)
class Measured:
    """What was measured of a report's maps: those at the layer that is explained first, and at the input."""

    areas: dict[str, dict[int, dict[int, tuple[float, float] | None]]] = field(default_factory=dict)
    """Insertion and deletion by method, photo and place of the class; None for a map that is all zeros. Those
    that there was no time for are missing."""

    def of_photo(self, photo: int, classes: int) -> dict[str, list[dict[str, float | None] | None]]:
        """The figures of one photo by method, in the order of its classes; None where there are none."""
        figures: dict[str, list[dict[str, float | None] | None]] = {}
        for method, by_photo in self.areas.items():
            areas = [by_photo.get(photo, {}).get(rank) for rank in range(classes)]
            figures[method] = [one and {"insertion": figure(one[0]), "deletion": figure(one[1])} for one in areas]
        return figures


def measure_maps(
    net: Network,
    photos: Sequence[Pixels],
    collected: Collected,
    *,
    targets: Explained = None,
    output: Output = None,
    until: float,
    done: Done,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """Measure insertion and deletion of the maps on the page while there is time, those first that are seen first.

    Args:
        net, photos, collected, targets, output: as for `collect`, and what it gave.
        until: the time after which no further map is begun, by the `clock`.
        done: called with the number of maps that are done.
    """
    measured, maps = Measured(), maps_of(collected)
    for photo, rank, method in in_order(collected, maps, len(photos)):
        if clock() >= until:
            break
        target = target_of(net, targets, photo, 1, collected.classes)
        one = None if method == CENTRE else maps[method][photo, rank]
        areas = _areas(net, photos[photo], one, rank, target, output)
        measured.areas.setdefault(method, {}).setdefault(photo, {})[rank] = areas
        done(1)
    return measured


def in_order(collected: Collected, methods: Mapping[str, Tensor], photos: int) -> Iterator[tuple[int, int, str]]:
    """What is measured: photo, place of the class, and method; the likeliest class by the first methods first."""
    first = [CENTRE, *(method for method in methods if method in _FIRST)]
    for some in (first, [method for method in methods if method not in _FIRST]):
        for rank in range(collected.classes.shape[1]):
            yield from ((photo, rank, method) for method in some for photo in range(photos))


def maps_of(collected: Collected) -> dict[str, Tensor]:
    """The maps (B, K, h, w) by the method's name on the page, those that most look at first."""
    heat: Mapping[str, Tensor] = collected.layers[collected.explained].heat if collected.explained else {}
    maps = {**heat, **{name: gradients.abs().amax(2) for name, gradients in collected.pixels.items()}}
    if "grad_cam" in heat and "guided" in maps:
        maps["guided_grad_cam"] = maps["guided"] * at_size(heat["grad_cam"], tuple(maps["guided"].shape[2:]))
    return {name: maps[name] for name in dict.fromkeys([*_FIRST, *maps]) if name in maps}


def _areas(
    net: Network, pixels: Pixels, values: Tensor | None, rank: int, target: Target, output: Output
) -> tuple[float, float] | None:
    """Insertion and deletion of one map (h, w), or of a blob in the centre."""
    with prepared(net, [pixels], dims=(2,), output=output) as given:
        maps = centre(given.input_size) if values is None else values.float()
        if not bool(maps.nan_to_num(0, 0, 0).any()):
            return None
        every = asked(given, target, "logit" if callable(target) else "probability")
        one = replace(every, classes=every.classes[:, [rank]])
        part = Part([0], net, given, one, maps[None, None].to(given.x.device), target)
        inserted = curve(part, removing=False, steps=STEPS, baseline="blur", seed=0)
        deleted = curve(part, removing=True, steps=STEPS, baseline="mean", seed=0)
    return float(inserted.values), float(deleted.values)


def centre(size: tuple[int, ...]) -> Tensor:
    """A blob in the middle of an input (H, W), of a standard deviation of a quarter of its sides."""
    down, across = (torch.linspace(-2, 2, side) for side in size)
    return torch.exp(-(down[:, None] ** 2 + across[None] ** 2) / 2)
