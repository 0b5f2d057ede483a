"""Which of two activations is stronger, where rounding alone would decide.

A network's numbers differ in their last digits with the batch size, the number of threads and the machine. Where two images,
or two places of one, differ by no more than that, they are computed again in double precision; what is then still equal is
a tie, and goes to the earlier image and the first place.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import RankError
from torchviz_cnn.media.dataset import ImageSource
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.passes import exact_maxima
from torchviz_cnn.topk.tally import Candidates

_USUAL = 32.0
"""What counts as rounding to begin with: as many times the smallest step of a layer's strongest activation."""
_SAFETY = 8.0
"""And how many times the largest error seen, where that is more."""
_EQUAL = 1e-10
"""In double precision, what differs by less than this share of a layer's strongest activation is equal."""


@dataclass(frozen=True, eq=False)
class Exact:
    """Activations of one layer in double precision, one for each of n pairs of an image and a channel."""

    images: Tensor
    """(n,)."""
    channels: Tensor
    """(n,)."""
    values: Tensor
    """(n,): the maximum of the image's map."""
    positions: Tensor
    """(n, 2): where it is, of several equal places the first."""

    @classmethod
    def joined(cls, parts: Sequence[Exact]) -> Exact:
        """All of several."""
        names = ("images", "channels", "values", "positions")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def none(cls) -> Exact:
        """Of nothing."""
        empty = torch.zeros(0, dtype=torch.long)
        return cls(empty, empty, empty.double(), empty.view(0, 2))


@dataclass(frozen=True, eq=False)
class Settled:
    """What came of it."""

    candidates: dict[str, Candidates]
    recomputed: int
    """How many images were computed again."""
    uncertain: dict[str, list[int]] = field(default_factory=dict)
    """By layer, channels where more images are equal within rounding than were kept: of these the first met stand."""
    problem: str | None = None
    """Why it could not be done."""


def settle(
    model: nn.Module, source: ImageSource, candidates: dict[str, Candidates], k: int, ranks: Ranks, workers: int
) -> Settled:
    """Put the k best of each channel in the order that exact arithmetic gives, for a lent model."""
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        return Settled(candidates, 0, problem="the network computes in half precision, where most values are equal")
    exact = {layer: Exact.none() for layer in candidates}
    tolerance = {layer: _USUAL * torch.finfo(c.values.dtype).eps * _scale(c) for layer, c in candidates.items()}
    wanted: dict[str, Tensor] = {}
    done: set[int] = set()
    try:
        double = copy.deepcopy(model).double()
        if next((p.device.type for p in double.parameters()), "cpu") == "mps":  # has no double precision
            double = double.cpu()
        for _ in range(3):
            wanted = {layer: _doubtful(found, k, tolerance[layer]) for layer, found in candidates.items()}
            images = {i for layer, found in candidates.items() for i in found.images[wanted[layer]].tolist()} - done
            if not images and not done:  # one at least, to learn how large rounding is
                images = _example(candidates, k)
            found_now = _recompute(double, source, candidates, images, ranks, workers)
            exact = {layer: Exact.joined([exact[layer], found_now[layer]]) for layer in candidates}
            done |= images
            larger = {layer: max(tolerance[layer], _rounding(candidates[layer], exact[layer])) for layer in candidates}
            if larger == tolerance:
                break
            tolerance = larger
    except RankError:
        raise
    except Exception as error:  # whatever a network made for another precision raises, on all ranks alike
        reason = " ".join(str(error).split())[:200]
        return Settled(candidates, 0, problem=f"the network does not run in double precision: {reason}")
    settled = {layer: _in_order(found, wanted[layer], exact[layer]) for layer, found in candidates.items()}
    uncertain = {
        layer: channels
        for layer, found in candidates.items()
        if (channels := _beyond(found, k, tolerance[layer]))
    }  # fmt: skip
    return Settled(settled, len(done), uncertain)


def _example(candidates: dict[str, Candidates], k: int) -> set[int]:
    """The image that is among the strongest of most channels."""
    count = Counter(i for found in candidates.values() for i in found.images[:k].flatten().tolist() if i >= 0)
    return {min(count, key=lambda image: (-count[image], image))} if count else set()


def _recompute(
    double: nn.Module, source: ImageSource, candidates: dict[str, Candidates], images: set[int], ranks: Ranks,
    workers: int,
) -> dict[str, Exact]:  # fmt: skip
    """In double precision, every channel for which one of these images is a candidate. Ranks share the images."""
    mine = sorted(images)[ranks.rank :: ranks.count]
    parts: dict[str, list[Exact]] = {layer: [Exact.none()] for layer in candidates}
    error = None
    try:
        for image, maps in exact_maxima(double, source, mine, list(candidates), workers):
            for layer, values in maps.items():
                channels = (candidates[layer].images == image).any(0).nonzero()[:, 0]
                if not len(channels):
                    continue
                flat = values.cpu()[channels].flatten(1)
                strongest = flat.amax(1)
                equal = _EQUAL * _scale(candidates[layer])
                place = (flat >= strongest[:, None] - equal).int().argmax(1)  # the first
                width = values.shape[2]
                positions = torch.stack([place // width, place % width], 1)
                parts[layer].append(Exact(torch.full_like(channels, image), channels, strongest, positions))
                if len(parts[layer]) > 64:  # many small tensors take much more room than one
                    parts[layer] = [Exact.joined(parts[layer])]
    except Exception as found:
        error = found
    ranks.agree(error)
    together = ranks.gather({layer: Exact.joined(part) for layer, part in parts.items()})
    return {layer: Exact.joined([part[layer] for part in together]) for layer in candidates}


def _rounding(found: Candidates, exact: Exact) -> float:
    """What counts as rounding in a layer: several times the largest error that was seen."""
    here = found.images[:, exact.channels] == exact.images
    error = (found.values[:, exact.channels] - exact.values).abs().where(here, 0).nan_to_num(0, 0, 0)
    return _SAFETY * float(error.amax()) if error.numel() else 0.0


def _doubtful(found: Candidates, k: int, tolerance: float) -> Tensor:
    """Which candidates (K, C) may stand in another place of the k best, or at another position of their image."""
    values, there = found.values, found.images >= 0
    contender = there & (values >= values[min(k, len(values)) - 1] - tolerance)
    # What is exactly zero behind a ReLU is so for all images and places alike.
    close = contender[:-1] & contender[1:] & (values[:-1] - values[1:] <= tolerance)
    close &= ~((values[:-1] == 0) & (values[1:] == 0))
    doubtful = contender & (found.gaps <= tolerance) & (values != 0)
    doubtful[:-1] |= close
    doubtful[1:] |= close
    return doubtful & values.isfinite()


def _in_order(found: Candidates, wanted: Tensor, exact: Exact) -> Candidates:
    values, positions = found.values.double(), found.positions.clone()
    here = (found.images[:, exact.channels] == exact.images) & wanted[:, exact.channels]
    rows, which = here.nonzero(as_tuple=True)
    values[rows, exact.channels[which]] = exact.values[which]
    positions[rows, exact.channels[which]] = exact.positions[which]
    equal = _EQUAL * _scale(found)
    order = values.argsort(dim=0, descending=True, stable=True)
    ranked = values.gather(0, order)
    group = torch.zeros_like(order)
    group[1:] = (ranked[:-1] - ranked[1:] > equal).cumsum(0)
    by_image = found.images.gather(0, order).argsort(dim=0, stable=True)
    order = order.gather(0, by_image.gather(0, group.gather(0, by_image).argsort(dim=0, stable=True)))
    return Candidates(
        values.gather(0, order).to(found.values.dtype),
        found.images.gather(0, order),
        positions.gather(0, order[..., None].expand(-1, -1, 2)),
        found.gaps.gather(0, order),
    )


def _scale(found: Candidates) -> float:
    """The strongest activation of a layer."""
    return float(found.values.abs().where(found.values.isfinite(), 0).amax())


def _beyond(found: Candidates, k: int, tolerance: float) -> list[int]:
    """Channels whose last candidate could still be one of the k best: others, not kept, may be as strong."""
    last, kth = found.values[-1], found.values[min(k, len(found.values)) - 1]
    open_ended = (found.images[-1] >= 0) & (last >= kth - tolerance) & (kth != 0)
    listed: Any = open_ended.nonzero()[:, 0].tolist()
    return list(listed)
