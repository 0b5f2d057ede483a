"""Faithfulness: what becomes of the score where the pixels that a map calls important are taken away or put in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import Images
from torchviz_cnn.attribution.metrics.parts import Maps, Part, Rows, measure, without
from torchviz_cnn.attribution.metrics.result import Curves, Measurement
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.targets import Target, scores_of

Baseline = Literal["mean", "blur"] | float | Tensor
"""What stands where there is no photo: 0 on the model's scale, which is the mean colour of a network with the usual
normalisation, the photo blurred, or a value or colour (C,)."""
T = TypeVar("T")
EMPTY = "the map is all zeros"
_BATCH_ON_CPU = 8  # images of 224 x 224 at a time: more fall out of its cache
_BATCH_ON_GPU = 128


def insertion(
    model: Model,
    x: Images,
    maps: Maps,
    target: Target = None,
    *,
    steps: int = 32,
    baseline: Baseline = "blur",
    output: Output = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Measurement:
    """Measure how early the class is recognised as the photo comes back, the strongest pixels of the map first.

    The value is the area under the class's probability over the share of pixels that are in place, 0..1: a good map
    makes it rise early.

    Args:
        model: a module or a Network.
        x: a batch (N, C, H, W); with a Network also photos, a folder of them, or any map-style dataset, of which a few
            are read at a time.
        maps: a result of this library, or a tensor (N, h, w), or (N, K, h, w) of K classes; or the method that makes
            them, by its name (`"grad_cam"`) or as a function (model, x, target=...), which is called for a few images
            at a time.
        target: what the maps explain: see `grad_cam`. By default what a result explains, else each image's top class.
            Of a function of the output its own numbers are read instead of a probability.
        steps: in how many equal shares the pixels are put in.
        baseline: what stands where no pixel is: `blur` (the photo blurred by 51 pixels of a standard deviation of 50 at
            a side of 224, and in proportion), `mean` (0 on the model's scale), a number, or a colour (C,).
        output: as for `grad_cam`.
        batch_size: how many images are read, and explained, at a time.
        seed: seed of the order of pixels where the map is equally strong.
        progress: whether to show a bar.

    Returns:
        A Measurement; its `curves` are the probability by the share of pixels in place.

    Raises:
        InputError: for maps that do not fit the images, and a wrong option.
        TargetError: for a class that the network does not have.

    Petsiuk et al., arXiv 1806.07421.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> insertion(model, torch.rand(4, 3, 8, 8), torch.rand(4, 8, 8)).values.shape
    torch.Size([4])
    """
    metric = partial(curve, removing=False, steps=checks.whole_number("steps", steps), baseline=baseline, seed=seed)
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    return measure("insertion", "higher", metric, model, x, maps, target, **options)  # type: ignore[arg-type]


def deletion(
    model: Model,
    x: Images,
    maps: Maps,
    target: Target = None,
    *,
    steps: int = 32,
    baseline: Baseline = "mean",
    output: Output = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Measurement:
    """Measure how early the class is lost as the photo is taken away, the strongest pixels of the map first.

    The value is the area under the class's probability over the share of pixels that are gone, 0..1: a good map makes
    it fall early, so a lower value is better.

    Args:
        model, x, maps, target, output, batch_size, seed, progress: as for `insertion`.
        steps: in how many equal shares the pixels are taken away.
        baseline: what stands in their place: as for `insertion`.

    Returns:
        A Measurement; its `curves` are the probability by the share of pixels that are gone.

    Raises:
        InputError: for maps that do not fit the images, and a wrong option.
        TargetError: for a class that the network does not have.

    Petsiuk et al., arXiv 1806.07421.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> deletion(model, torch.rand(4, 3, 8, 8), "saliency").better
    'lower'
    """
    metric = partial(curve, removing=True, steps=checks.whole_number("steps", steps), baseline=baseline, seed=seed)
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    return measure("deletion", "lower", metric, model, x, maps, target, **options)  # type: ignore[arg-type]


def average_drop(
    model: Model,
    x: Images,
    maps: Maps,
    target: Target = None,
    *,
    output: Output = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Measurement:
    """Measure which share of the class's probability is lost where the photo is seen through its map.

    The photo, on the model's scale, is multiplied by the map from its minimum to its maximum as 0..1, negative values
    as 0. The value is max(0, p - p') / p; `details["increase"]` is 1 where the probability rose instead.

    Args:
        model, x, maps, target, output, batch_size, progress: as for `insertion`.

    Returns:
        A Measurement, 0..1; lower is better.

    Raises:
        InputError: for maps that do not fit the images, and a wrong option.
        TargetError: for a class that the network does not have.

    Chattopadhay et al., arXiv 1710.11063, section 5.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> measured = average_drop(model, torch.rand(4, 3, 8, 8), torch.ones(4, 8, 8).cumsum(2))
    >>> measured.values.shape, measured.details["increase"].shape
    (torch.Size([4]), torch.Size([4]))
    """
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    return measure("average_drop", "lower", drop, model, x, maps, target, **options)  # type: ignore[arg-type]


def curve(part: Part, *, removing: bool, steps: int, baseline: Baseline, seed: int) -> Rows:
    """The scores of each image while its pixels go, or come, and the area under them."""
    x = part.given.x
    start, end = baseline_of(x, baseline), x
    if removing:
        start, end = end, start
    places = ranks(part.maps, seed)
    size = places.shape[-1]
    images, classes = part.targets.classes.shape
    known, plain = part.targets.scores, torch.arange(images)
    other = scores_of(part.given, start if not removing else end, plain, part.targets)
    scores = known.new_empty(images, classes, steps + 1)
    scores[..., 0], scores[..., -1] = (known, other) if removing else (other, known)
    inner = [(image, k, step) for image in range(images) for k in range(classes) for step in range(1, steps)]
    for some in in_batches(inner, x):
        image, k, step = torch.tensor(some, device=x.device).T
        count = (step * size / steps).round()
        changed = (places[image, k] < count[:, None]).view(len(some), 1, *x.shape[2:])
        pictures = torch.where(changed, end[image], start[image])
        scores[image, k, step] = scores_of(part.given, pictures, image, part.targets).gather(1, k[:, None])[:, 0]
    shares = torch.linspace(0, 1, steps + 1)
    y = scores.cpu()
    label = part.targets.label or "probability"
    axis = "share of pixels that are gone" if removing else "share of pixels in place"
    rows = Rows(torch.trapezoid(y, shares, dim=2), curves=Curves(shares, y, axis, label))
    return without(rows, part.empty, EMPTY)


def drop(part: Part) -> Rows:
    """Which share of each score is lost where the image is seen through its map."""
    through = unit_maps(part.maps).flatten(0, 1)[:, None]
    images, classes = part.targets.classes.shape
    seen = part.targets.scores.new_empty(images * classes)
    for some in in_batches(list(range(images * classes)), part.given.x):
        place = torch.tensor(some, device=seen.device)
        image, k = place // classes, place % classes
        pictures = part.given.x[image] * through[place].to(part.given.x.dtype)
        seen[place] = scores_of(part.given, pictures, image, part.targets).gather(1, k[:, None])[:, 0]
    seen, whole = seen.view(images, classes), part.targets.scores
    rows = Rows(((whole - seen).clamp(min=0) / whole).cpu(), details={"increase": (seen > whole).float().cpu()})
    highest, lowest = part.maps.amax((2, 3)), part.maps.amin((2, 3))
    rows = without(without(rows, part.empty, EMPTY), highest <= 0, "the map is nowhere above 0")
    rows = without(rows, lowest == highest, "the map is the same everywhere")
    return without(rows, whole <= 0, "the score of the whole photo is not above 0")


def ranks(maps: Tensor, seed: int) -> Tensor:
    """The place of each pixel in the order of its map, the strongest 0: (B, K, H*W).

    Equally strong pixels come in one random order, which is the same for all maps.
    """
    values = maps.flatten(2)
    mixed = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(seed)).to(values.device)
    order = mixed[values[..., mixed].argsort(dim=-1, descending=True, stable=True)]
    counted = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, counted)


def unit_maps(maps: Tensor) -> Tensor:
    """Maps (B, K, H, W) from their minimum to their maximum as 0..1, negative values as 0."""
    positive = maps.relu()
    low, high = positive.amin((2, 3), keepdim=True), positive.amax((2, 3), keepdim=True)
    return (positive - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def baseline_of(x: Tensor, baseline: Baseline) -> Tensor:
    """What stands in place of each image (B, C, H, W). Raises InputError for what is no baseline."""
    if isinstance(baseline, str):
        checks.one_of("baseline", baseline, ("mean", "blur"))
        return blurred(x) if baseline == "blur" else torch.zeros_like(x)
    try:
        colour = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"baseline is mean, blur, a number, or {x.shape[1]} of them, not {baseline!r}") from None
    if len(colour) not in (1, x.shape[1]) or not bool(colour.isfinite().all()):
        raise InputError(f"baseline is mean, blur, a number, or {x.shape[1]} of them, not {colour.tolist()}")
    return colour[:, None, None].expand_as(x)


def blurred(x: Tensor) -> Tensor:
    """Images (B, C, H, W) blurred by 51 pixels of a standard deviation of 50 at a side of 224, and in proportion."""
    scale = min(x.shape[2:]) / 224
    half = min(round(25 * scale), min(x.shape[2:]) - 1)
    distances = torch.arange(-half, half + 1, device=x.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (distances / max(50 * scale, 1e-6)) ** 2)
    weights = (weights / weights.sum()).to(x.dtype)
    rows = x.flatten(0, 1)[:, None]
    for shape, pad in (((1, 1, -1, 1), (0, 0, half, half)), ((1, 1, 1, -1), (half, half, 0, 0))):
        rows = F.conv2d(F.pad(rows, pad, mode="reflect"), weights.view(shape))
    return rows.view_as(x)


def in_batches(items: list[T], x: Tensor) -> Iterator[list[T]]:
    """As many at a time as are fast on the device of the input: of small images more."""
    usual = _BATCH_ON_CPU if x.device.type == "cpu" else _BATCH_ON_GPU
    size = usual * min(max(224 * 224 // (x.shape[2] * x.shape[3]), 1), 16)
    for start in range(0, len(items), size):
        yield items[start : start + size]
