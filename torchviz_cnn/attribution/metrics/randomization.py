"""Sanity checks: do the maps change where the network's weights become random, and so explain what it has learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import Images
from torchviz_cnn.attribution.metrics.parts import REFUSALS, Method, Part, Rows, at_size, made_maps, measure, method_of
from torchviz_cnn.attribution.metrics.perturbation import EMPTY
from torchviz_cnn.attribution.metrics.result import Better, Curves, Measurement
from torchviz_cnn.attribution.result import ClassMap
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, kind_of, one_line
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.layers.random_weights import RandomLayers, random_copy
from torchviz_cnn.scores.targets import Target

__all__ = ["random_copy", "randomization", "rank_correlation", "structural_similarity"]

Order = Literal["cascading", "independent", "all", "efficient"]
"""Which weights become random: those of the last layer, then of the last two, and so on; of one layer at a time; or of
all layers at once."""
Key = TypeVar("Key")
_STEPS = 8
"""In how many steps, at most, the weights of a `cascade` become random."""
_BINS = 100
_WINDOW = 11
_SIGMA = 1.5
_CONSTANT = 1e-12
"""The variance of a map from 0 to 1 that counts as none."""
SHOWS_EDGES = 0.5
"""A method whose maps keep more of their structure than this, on the mean of a cascade, shows edges, not evidence. On
four trained networks guided backpropagation keeps 0.65 to 0.88, guided Grad-CAM 0.57 to 0.73, the gradient times the
input at most 0.36, the gradient 0.21, Grad-CAM and competitive CAM 0.1."""


def randomization(
    model: Model,
    x: Images,
    method: str | Method,
    target: Target = None,
    *,
    order: Order = "cascading",
    steps: int | None = None,
    seed: int = 0,
    draws: int = 1,
    output: Output = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Measurement:
    """Measure how alike the maps of a method stay where the network's weights become random.

    A map that stays as it is does not explain what the network has learned: it shows edges of the photo, say. The value
    is the rank correlation (Spearman's, -1..1) of the map with the one of the same class where all weights are random,
    so a lower value is better. It is taken of the result's `.values` as they are, at their own resolution: for
    gradients these are absolute values already.

    With all weights random hardly any method keeps its map, so look at the curve, and at the mean of
    `details["structure"]`: guided backpropagation draws the same lines while all but the first layers are random. Above
    0.5 a method shows edges, not evidence. SSIM alone does not tell: maps that are dark nearly everywhere are alike by
    it, also those of two photos.

    The model itself is not changed: a copy gets the weights that its layers begin with (see `random_copy`). A layer and
    the normalisations behind it become random together. What the method is called with is the copy: one that uses
    another network, of its own, always has a correlation of 1.

    Args:
        model, x, target, output: as for `insertion`. The target stays the class of the model as it is.
        method: what makes the maps, by its name (`"grad_cam"`) or as a function (model, x, target=...).
        order: `cascading` replaces the weights from the output down, more at each step, and the value is that of the
            last, at which all are random; `independent` those of one layer at a time, and the value is the mean;
            `all` only those of all layers at once, at a fraction of the time. `efficient` measures, with all weights
            random, by how much the entropy of the map's histogram (100 bins) grows, in proportion: a higher value is
            better.
        steps: at how many of the layers, evenly spread from the last to the first, maps are compared; None: at all.
        seed: seed of the weights, and of the noise for the statistics of normalisations.
        draws: over how many random networks the numbers are averaged.
        batch_size: how many images are read, and explained, at a time.
        progress: whether to show a bar.

    Returns:
        A Measurement. Its `curves` are the rank correlation by layer, with the layers' names, from the last to the
        first; its `details`, (N, L) each, have `rank_correlation`, `ssim` (the structural similarity of the maps at the
        size of the input, each stretched to 0..1) and `structure` (the third term of it: whether the maps have the
        same lines, 1 for the same and about 0 for others). A map that is constant or not finite has no rank
        correlation: NaN, with a reason, and means are over the others.

    Raises:
        InputError: for maps that are made already, and a wrong option.
        ModelError: for a model without weights.
        TargetError: for a class that the network does not have.

    Adebayo et al., arXiv 1810.03292; Hedström et al., arXiv 2401.06465 (efficient).

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> randomization(model, torch.rand(4, 3, 16, 16), "saliency").details["rank_correlation"].shape
    torch.Size([4, 2])
    """
    check = RandomWeights(
        method_of(require_method("randomization", method)),
        checks.one_of("order", order, get_args(Order)),
        None if steps is None else checks.whole_number("steps", steps),
        checks.whole_number("seed", seed, 0),
        checks.whole_number("draws", draws),
    )
    better: Better = "higher" if order == "efficient" else "lower"
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    return measure("randomization", better, check, model, x, method, target, **options)  # type: ignore[arg-type]


def require_method(metric: str, method: str | Method) -> str | Method:
    """The method. Raises InputError for maps that are made already."""
    if isinstance(method, (ClassMap, Tensor)) or not (callable(method) or isinstance(method, str)):
        raise InputError(f"{metric} makes further maps: give the method that makes them, not {kind_of(method)}")
    return method


class _Step(NamedTuple):
    """Which layers are random at one place of the axis."""

    label: str
    layers: tuple[str, ...]


class RandomWeights:
    """What becomes of the maps of a part where weights are random. The copy of the model is kept for the next part."""

    def __init__(
        self, method: Method, order: Order = "all", steps: int | None = None, seed: int = 0, draws: int = 1
    ) -> None:
        self._method, self._order, self._count, self._seed, self._draws = method, order, steps, seed, draws
        self._copy: RandomLayers | None = None

    def __call__(self, part: Part) -> Rows:
        """The rows of one part."""
        if self._copy is None:
            self._copy = RandomLayers(part.model, part.given.x[:1])
        steps = self._steps(self._copy.names)
        measured = entropies if self._order == "efficient" else similarities
        numbers = torch.stack(
            [
                torch.stack([measured(part, maps) for maps in self._maps(part, self._copy, steps, seed)], 2)
                for seed in range(self._seed, self._seed + self._draws)
            ]
        ).nanmean(0)  # (B, K, L, and as many numbers as there are)
        return self._rows(part, numbers.cpu(), steps)

    def _steps(self, names: tuple[str, ...]) -> list[_Step]:
        if self._order not in ("cascading", "independent"):
            return [_Step("all layers", names)]
        count = len(names) if self._count is None else min(self._count, len(names))
        places = torch.linspace(len(names) - 1, 0, count).round().int().tolist() if count > 1 else [0]
        last = 1 if self._order == "independent" else len(names)
        return [_Step(names[place], names[place : place + last]) for place in places]

    def _maps(self, part: Part, copy: RandomLayers, steps: list[_Step], seed: int) -> Iterator[Tensor]:
        for step in steps:
            yield random_maps(part, copy.draw(step.layers, seed), self._method)

    def _rows(self, part: Part, numbers: Tensor, steps: list[_Step]) -> Rows:
        first = numbers[..., 0]
        if self._order == "efficient":
            before, after = numbers[..., 0, :].unbind(2)
            rows = Rows((after - before) / before, details={"entropy": before, "entropy_random": after})
        else:
            value = first.nanmean(2) if self._order == "independent" else first[..., -1]
            details = dict(zip(("rank_correlation", "ssim", "structure"), numbers.unbind(3), strict=True))
            rows = Rows(value, details=details)
            if len(steps) > 1:
                label = "weights are random from here to the output" if self._order == "cascading" else "random layer"
                ticks = tuple(step.label for step in steps)
                rows.curves = Curves(torch.arange(1.0, len(steps) + 1), first, label, "rank correlation", ticks)
        labels = [step.label for step in steps]
        for place, wrong in enumerate(numbers.isnan().any(3).any(1).tolist()):
            where = [label for label, bad in zip(labels, wrong, strict=True) if bad]
            if where:
                rows.reasons[place] = reason(part.raw[place].cpu(), where, len(labels))
        return rows


def reason(maps: Tensor, where: list[str], count: int) -> str:
    """Why maps (K, h, w) of an image have no number where these of `count` layers are random."""
    if not maps.any():
        return EMPTY
    if bool((maps.flatten(1).amax(1) == maps.flatten(1).amin(1)).any()):
        return "the map is constant"
    at = f" at {len(where)} of {count} layers ({', '.join(where[:3])}{', ...' * (len(where) > 3)})" * (count > 1)
    return f"with random weights the map is constant or not finite{at}"


def random_maps(part: Part, model: Model, method: Method, x: Tensor | None = None) -> Tensor:
    """The maps (B, K, h, w) that a method makes of a part with another model, or of other images in their place.

    NaN where they are not finite.
    """
    maps, wrong = made_maps(part, method, model, part.given.x if x is None else x)
    maps[list(wrong)] = float("nan")
    return maps.to(part.raw.device)


def cascade(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Which layers are random at each of a few steps, from the last alone to all, evenly.

    >>> cascade(["first", "second", "last"])
    [('last',), ('second', 'last'), ('first', 'second', 'last')]
    """
    count = min(len(layers), _STEPS)
    last = len(layers) - 1
    starts = [last - round(step * last / max(count - 1, 1)) for step in range(count)]
    return [tuple(layers[start:]) for start in starts]


def cascaded(
    layers: RandomLayers, methods: Mapping[Key, tuple[Part, Method]], seed: int
) -> Iterator[tuple[Key, int, Tensor | str]]:
    """How alike the maps of several methods stay, step by step, while the weights become random: see `cascade`.

    Yields the key of a method, the number of the step, and the `similarities` (B, K, 3); or why the method refuses the
    network with random weights.
    """
    for step, names in enumerate(cascade(layers.names)):
        model = layers.draw(names, seed)
        for key, (part, method) in methods.items():
            try:
                yield key, step, similarities(part, random_maps(part, model, method))
            except REFUSALS as error:
                yield key, step, one_line(error)


def similarities(part: Part, maps: Tensor) -> Tensor:
    """The rank correlation of a part's maps with others (B, K, h, w), their SSIM and its structure: (B, K, 3)."""
    ranks = rank_correlation(part.raw, maps)
    ssim, structure = structural_similarity(part.maps, at_size(maps, part.given.input_size))
    wrong = ranks.isnan()
    return torch.stack([ranks, ssim.masked_fill(wrong, float("nan")), structure.masked_fill(wrong, float("nan"))], 2)


def entropies(part: Part, maps: Tensor) -> Tensor:
    """The entropy of a part's maps and of others (B, K, h, w): (B, K, 2)."""
    return torch.stack([histogram_entropy(part.raw), histogram_entropy(maps)], 2)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlate the ranks of maps (B, K, h, w) with those of others: Spearman's, with ties averaged, (B, K).

    NaN where a map is constant, or holds NaN or infinity.

    >>> maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> rank_correlation(maps, maps**3), rank_correlation(maps, -maps)
    (tensor([[1.]]), tensor([[-1.]]))
    """
    first, second = averaged_ranks(a.flatten(2)), averaged_ranks(b.flatten(2))
    product = (first * second).sum(-1)
    correlation = product / (first.square().sum(-1) * second.square().sum(-1)).sqrt()  # 0 / 0 of a constant map is NaN
    finite = a.flatten(2).isfinite().all(-1) & b.flatten(2).isfinite().all(-1)
    return correlation.clamp(-1, 1).masked_fill(~finite, float("nan")).float()


def averaged_ranks(values: Tensor) -> Tensor:
    """The rank of each of the values (..., n), the mean of the ranks where several are equal, minus the mean rank."""
    values = values.contiguous()
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values)
    ranks = below + torch.searchsorted(ordered, values, right=True)
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    return (ranks.to(exact) - values.shape[-1]) / 2


def structural_similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compare maps (B, K, H, W) with others, each stretched to 0..1: their similarity and its third term, (B, K) each.

    The mean structural similarity (SSIM), and the mean correlation inside the window alone (its term of structure),
    which says whether the maps have the same lines, however strong: 1 for the same lines, about 0 for others. The
    window is a Gaussian of 11 pixels and a standard deviation of 1.5, where it lies whole inside the map; of smaller
    maps it has their size. Where a map is constant in the window, that has no structure. NaN where a map is not finite.

    Wang et al., IEEE Transactions on Image Processing 13(4), 2004.
    """
    exact = torch.float32 if a.device.type == "mps" else torch.float64
    side = min(_WINDOW, *(length - (length % 2 == 0) for length in a.shape[2:]))
    distances = torch.arange(side, device=a.device, dtype=exact) - side // 2
    window = torch.exp(-0.5 * (distances / _SIGMA) ** 2)
    window = window / window.sum()
    first, second = (stretched(maps.to(exact)).flatten(0, 1)[:, None] for maps in (a, b))

    def averaged(maps: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean, other = averaged(first), averaged(second)
    variance, another = averaged(first**2) - mean**2, averaged(second**2) - other**2
    covariance = averaged(first * second) - mean * other
    brightness = (2 * mean * other + 0.01**2) / (mean**2 + other**2 + 0.01**2)
    similarity = brightness * (2 * covariance + 0.03**2) / (variance + another + 0.03**2)
    lines = (variance > _CONSTANT) & (another > _CONSTANT) | similarity.isnan()
    structure = (covariance / (variance * another).clamp(min=_CONSTANT**2).sqrt()).clamp(-1, 1).where(lines, 0.0)
    structure = structure.sum((1, 2, 3)) / lines.sum((1, 2, 3))
    return similarity.mean((1, 2, 3)).view(a.shape[:2]).float(), structure.view(a.shape[:2]).float()


def stretched(maps: Tensor) -> Tensor:
    """Maps (B, K, H, W) from their minimum to their maximum as 0..1; constant ones are zeros."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def histogram_entropy(maps: Tensor) -> Tensor:
    """The entropy in nats of the histogram of each map (B, K, h, w), of 100 bins from minimum to maximum: (B, K).

    NaN where a map is constant, or not finite.
    """
    values = maps.flatten(2)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    known = (values.isfinite().all(-1, keepdim=True)) & (high > low)
    share = torch.where(known, (values - low) / torch.where(known, high - low, 1.0), 0.0)
    bins = (share * _BINS).long().clamp(max=_BINS - 1)
    counts = share.new_zeros(*values.shape[:2], _BINS).scatter_add_(2, bins, torch.ones_like(share))
    shares = counts / values.shape[-1]
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy.masked_fill(~known[..., 0], float("nan"))
