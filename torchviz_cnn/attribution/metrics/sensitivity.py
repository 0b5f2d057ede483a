"""Sensitivity: how much a map changes where its photo changes so little that nobody sees it."""

from __future__ import annotations

import hashlib
from functools import partial

import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import Images
from torchviz_cnn.attribution.metrics.parts import Method, Part, Rows, measure, method_of, without
from torchviz_cnn.attribution.metrics.perturbation import EMPTY
from torchviz_cnn.attribution.metrics.randomization import random_maps, require_method
from torchviz_cnn.attribution.metrics.result import Measurement
from torchviz_cnn.core import checks
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.targets import Target


def sensitivity(
    model: Model,
    x: Images,
    method: str | Method,
    target: Target = None,
    *,
    radius: float = 0.02,
    copies: int = 10,
    seed: int = 0,
    output: Output = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Measurement:
    """Measure how much the map of a method changes, at most, where a little noise is added to the photo.

    The value is the largest change of the map over the noisy copies, as a share of the map's own size (both are
    Euclidean norms), so a lower value is better: 0 is a map that does not change at all. It explains the class that the
    photo without noise has.

    Args:
        model, x, target, output: as for `insertion`.
        method: what makes the maps, by its name (`"grad_cam"`) or as a function (model, x, target=...).
        radius: how much a value of the input may change, as a share of the range (maximum minus minimum) that the image
            has on the model's scale; each value changes by a random number between minus and plus that.
        copies: how many noisy copies are made of each image.
        seed: seed of the noise, which depends on (seed, number of the image) alone.
        batch_size: how many images are read, and explained, at a time.
        progress: whether to show a bar.

    Returns:
        A Measurement. Its `details` have the `mean` change over the copies beside the largest.

    Raises:
        InputError: for maps that are made already, and a wrong option.
        TargetError: for a class that the network does not have.

    Yeh et al., arXiv 1901.09392 (max-sensitivity).

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> sensitivity(model, torch.rand(4, 3, 8, 8), "saliency").values  # the gradient of a linear network is constant
    tensor([0., 0., 0., 0.])
    """
    metric = partial(
        changes,
        method=method_of(require_method("sensitivity", method)),
        radius=checks.number("radius", radius, 0),
        copies=checks.whole_number("copies", copies),
        seed=checks.whole_number("seed", seed, 0),
    )
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    return measure("sensitivity", "lower", metric, model, x, method, target, **options)  # type: ignore[arg-type]


def changes(part: Part, *, method: Method, radius: float, copies: int, seed: int) -> Rows:
    """How much each map of a part changes in noisy copies of its image, relative to its norm."""
    x = part.given.x
    ranges = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
    noise = torch.stack([uniform(seed, number, copies, x[0]) for number in part.numbers], 1)
    norms = part.raw.flatten(2).norm(dim=2)
    changed = []
    for unit in noise:
        maps = random_maps(part, part.model, method, x + radius * ranges * unit)
        changed.append((maps - part.raw).flatten(2).norm(dim=2) / norms)
    every = torch.stack(changed).cpu()
    rows = without(Rows(every.amax(0), details={"mean": every.mean(0)}), part.empty, EMPTY)
    return without(rows, every.isnan().any(0) & ~part.empty.cpu(), "the map of a noisy copy is not finite")


def uniform(seed: int, number: int, copies: int, like: Tensor) -> Tensor:
    """The noise of one image, before it is scaled: (copies, C, H, W) between -1 and 1, drawn on the CPU."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return (2 * torch.rand(copies, *like.shape, generator=generator) - 1).to(like)
