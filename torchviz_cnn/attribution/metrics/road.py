"""ROAD: what becomes of the score where pixels are removed, and filled in from their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import Images
from torchviz_cnn.attribution.metrics.parts import Maps, Part, Rows, measure, without
from torchviz_cnn.attribution.metrics.perturbation import EMPTY, in_batches, ranks
from torchviz_cnn.attribution.metrics.result import Curves, Measurement
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.targets import Target, scores_of

_TOLERANCE = 2e-5
"""About how far the filled-in pixels may be from the solution, as a share of the range of the image's values: scores of
SqueezeNet are then those of the exact solution to 1e-4."""
_MOST_ITERATIONS = 50


def road(
    model: Model,
    x: Images,
    maps: Maps,
    target: Target = None,
    *,
    shares: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    noise: float = 0.01,
    seed: int = 0,
    output: Output = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Measurement:
    """Measure how much more the class depends on the pixels that the map ranks first than on the last ones (ROAD).

    A share of the pixels is removed, once those where the map is strongest and once those where it is weakest. Noisy
    linear imputation fills them in, so that the network sees no edge around what is gone: each becomes the weighted
    mean of its neighbours (1/6 for each direct, 1/12 for each diagonal one; at the border of those that there are), and
    noise is added. The value is the class's probability with the weakest pixels removed minus that with the strongest
    removed, as a mean over the shares: about 0 for a random map, below 0 for an inverted one, at most 1. It is twice
    what `ROADCombined` of the package grad-cam gives for the same percentiles.

    Args:
        model, x, maps, target, output, batch_size, progress: as for `insertion`.
        shares: which shares of the pixels are removed, each above 0 and below 1.
        noise: standard deviation of the noise on the filled-in pixels, on the model's scale: 0.01 as in the
            authors' code, grad-cam and Quantus.
        seed: seed of the noise, which depends besides on the number of the image and the share alone, and of the order
            of pixels where the map is equally strong.

    Returns:
        A Measurement, -1..1; higher is better. Its `curves` are the difference by share; `details` has both
        probabilities by share: `most_relevant_removed` and `least_relevant_removed`, (N, S) or (N, K, S).

    Raises:
        InputError: for maps that do not fit the images, and a wrong option.
        TargetError: for a class that the network does not have.

    Rong et al., arXiv 2202.00449.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> measured = road(model, torch.rand(4, 3, 8, 8), torch.rand(4, 8, 8))
    >>> measured.values.shape, measured.details["most_relevant_removed"].shape
    (torch.Size([4]), torch.Size([4, 4]))
    """
    metric = partial(road_of, shares=shares_of(shares), noise=checks.number("noise", noise, 0), seed=seed)
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    return measure("road", "higher", metric, model, x, maps, target, **options)  # type: ignore[arg-type]


def shares_of(shares: Sequence[float]) -> list[float]:
    """Shares of the pixels to remove, checked."""
    several = [checks.number("a share", share) for share in shares]
    if not several or not all(0 < share < 1 for share in several):
        raise InputError(f"shares are numbers above 0 and below 1, at least one, not {several}")
    return several


def road_of(part: Part, *, shares: Sequence[float], noise: float, seed: int) -> Rows:
    """The scores of each image with its strongest, and with its weakest pixels filled in, and their mean difference."""
    x, places = part.given.x, ranks(part.maps, seed)
    images, classes, size = places.shape
    noises = [[noise_of(x, noise, seed, number, share) for share in range(len(shares))] for number in part.numbers]
    scores = part.targets.scores.new_empty(images, classes, 2, len(shares))
    cases = list(product(range(images), range(classes), range(2), range(len(shares))))
    for some in in_batches(cases, x):
        image, k, least, share = torch.tensor(some, device=x.device).T
        # Of one pixel nothing can be filled in, so that at least one stays.
        counts = [min(round(shares[place] * size), size - 1) for *_, place in some]
        count = torch.tensor(counts, device=x.device)[:, None]
        place = places[image, k]
        removed = torch.where(least[:, None].bool(), place >= size - count, place < count)
        removed = removed.view(len(some), 1, *x.shape[2:])
        pictures = filled_in(x[image].float(), removed)
        if noise:
            pictures += removed * torch.stack([noises[i][s] for i, _, _, s in some]).to(x.device)
        values = scores_of(part.given, pictures.to(x.dtype), image, part.targets).gather(1, k[:, None])[:, 0]
        scores[image, k, least, share] = values
    most, least = scores.cpu().unbind(2)
    label = f"difference of {part.targets.label or 'the probability'}"
    curves = Curves(torch.tensor(shares), least - most, "share of pixels removed", label)
    details = {"most_relevant_removed": most, "least_relevant_removed": least}
    rows = without(Rows((least - most).mean(2), details=details, curves=curves), part.empty, EMPTY)
    return without(rows, torch.full_like(part.empty, size < 2), "an image of one pixel has no neighbours to fill it in")


def noise_of(x: Tensor, noise: float, seed: int, number: int, share: int) -> Tensor:
    """The noise on one image (C, H, W), on the CPU, which depends on the three numbers alone."""
    chance = torch.Generator().manual_seed((seed * 1_000_003 + number) * 1_009 + share)
    return noise * torch.randn(x.shape[1:], generator=chance)


def filled_in(x: Tensor, removed: Tensor) -> Tensor:
    """Images (n, C, H, W) in which each removed pixel (n, 1, H, W) is the weighted mean of its neighbours.

    That is a sparse, symmetric and positive definite system of equations for the removed pixels. Conjugate gradients
    solve it, preconditioned by one multigrid cycle, from a first guess of coarse to fine, on the device of the images
    and for all at once. An image that is solved stays as it is, so that it gets what it would get alone.
    """
    levels = pyramid(removed)
    finest = levels[0]
    solution = first_guess(levels, x)
    known = x.masked_fill(removed, 0)
    tolerance = _TOLERANCE * (known.amax((1, 2, 3), keepdim=True) - known.amin((1, 2, 3), keepdim=True))
    residual = finest.removed * blur(solution) - finest.removed * finest.diagonal * solution
    correction = cycle(levels, residual)
    direction, energy = correction, dot(residual, correction)
    for _ in range(_MOST_ITERATIONS):
        # The correction is about as large as the error.
        open_ = correction.abs().amax((1, 2, 3), keepdim=True) > tolerance
        if not bool(open_.any()):
            break
        image = finest.diagonal * direction - finest.removed * blur(direction)
        step = torch.where(open_, energy / dot(direction, image).clamp(min=1e-30), 0)
        solution = solution + step * direction
        residual = residual - step * image
        correction = torch.where(open_, cycle(levels, residual), correction)
        former, energy = energy, dot(residual, correction)
        direction = correction + energy / former.clamp(min=1e-30) * direction
    return solution + correction


@dataclass(frozen=True, eq=False)
class Level:
    """A system of equations (diagonal - blur) u = r for the removed pixels, of images of some size."""

    removed: Tensor
    """1 where a pixel is removed, else 0: (n, 1, h, w)."""
    diagonal: Tensor
    """The sum of the weights of each pixel and of its neighbours: (1, 1, h, w)."""
    inverse: Tensor
    """1 / diagonal where a pixel is removed, else 0."""


def pyramid(removed: Tensor) -> list[Level]:
    """The equations at the size of the images, and at half of it each time, down to one pixel.

    A pixel of a coarser level is removed where all pixels that it stands for are.
    """
    levels, mask = [], removed.float()
    while True:
        diagonal = blur(torch.ones_like(mask[:1]))
        levels.append(Level(mask, diagonal, mask / diagonal))
        if mask.shape[2:] == (1, 1):
            return levels
        mask = -F.max_pool2d(-mask, 2, ceil_mode=True)


def first_guess(levels: list[Level], x: Tensor) -> Tensor:
    """The images with a guess in place of the removed pixels: the mean of those nearby, from coarse to fine."""
    values = [x]
    known = [1 - level.removed for level in levels]
    for fine, coarse in pairwise(known):
        values.append(coarse * halved(fine * values[-1]) / halved(fine).clamp(min=1))
    guess = values[-1]
    for level, value in zip(levels[-2::-1], values[-2::-1], strict=True):
        guess = torch.where(level.removed.bool(), doubled(guess, level), value)
        guess = torch.where(level.removed.bool(), level.inverse * blur(guess), value)
    return guess


def cycle(levels: list[Level], residual: Tensor) -> Tensor:
    """About what is to be added to the removed pixels where the equations have a residual: a V-cycle of multigrid.

    It is linear and symmetric: one sweep of damped Jacobi before and one after the correction of half the size, which
    is enlarged, and the residual made smaller, through one sweep too.
    """
    level = levels[0]
    solution = level.inverse * residual
    if len(levels) > 1:
        smaller = halved(blur(level.inverse * blur(solution)))
        solution = solution + level.inverse * blur(doubled(cycle(levels[1:], levels[1].removed * smaller), level))
    return level.inverse * (residual + blur(solution))


def blur(x: Tensor) -> Tensor:
    """The sum of each pixel (weight 4) and its direct (2) and diagonal neighbours (1): 12 times the weights of ROAD.

    The filter is separable, 1 2 1 in both directions; beyond the border are zeros.
    """
    for dim in (2, 3):
        inner, total = x.shape[dim] - 1, 2 * x
        total.narrow(dim, 1, inner).add_(x.narrow(dim, 0, inner))
        total.narrow(dim, 0, inner).add_(x.narrow(dim, 1, inner))
        x = total
    return x


def halved(x: Tensor) -> Tensor:
    """The sums of squares of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=1)


def doubled(x: Tensor, level: Level) -> Tensor:
    """Each pixel as a square of 2 x 2, at the size of a level."""
    height, width = level.removed.shape[2:]
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[..., :height, :width]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The products of channels (n, C, H, W) as vectors: (n, C, 1, 1)."""
    return (a * b).sum((2, 3), keepdim=True)
