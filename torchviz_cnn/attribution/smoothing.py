"""Gradients averaged over many inputs: SmoothGrad and VarGrad over noise, integrated gradients along a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.attribution.saliency import Reduce, Saliency, check_options, input_gradients, saliency_of
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.inputs import Given, Input, Output, Wrt, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.relu_rules import OtherActivations, Rule
from torchviz_cnn.scores.targets import Score, Target, Targets, asked, scores_of

Statistic = Literal["mean", "square", "variance"]
_TITLES = {"mean": "SmoothGrad", "square": "SmoothGrad squared", "variance": "VarGrad"}


def smooth_grad(
    model: Model,
    x: Input,
    target: Target = None,
    *,
    samples: int = 25,
    noise: float = 0.15,
    statistic: Statistic = "mean",
    seed: int = 0,
    relu: Rule = "standard",
    score: Score = "logit",
    reduce: Reduce = "max",
    other_activations: OtherActivations = "error",
    batch_size: int = 16,
    output: Output = None,
    wrt: Wrt = None,
) -> Saliency:
    """Average the gradient over noisy copies of each image (SmoothGrad), so that noise in the gradient averages out.

    Every image meets the same noise, drawn from `seed` alone: it gets what it would get in another batch. The class,
    where None, is that of the image without noise.

    Args:
        model, x, target, relu, score, reduce, other_activations, output, wrt: as for `saliency`.
        samples: how many noisy copies of each image, at least 1 (2 for the variance).
        noise: the deviation of the Gaussian noise as a share of the image's range (its maximum minus its minimum).
        statistic: the `mean` of the gradients; the mean of their `square`; their `variance`, which is VarGrad.
        seed: seed of the noise (0).
        batch_size: how many copies run at a time.

    Returns:
        A Saliency, as `saliency` gives it.

    Raises:
        InputError: for too few samples, and what `saliency` raises.

    Smilkov et al., arXiv 1706.03825; Adebayo et al., arXiv 1810.03307 (VarGrad).

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> smooth_grad(model, torch.rand(4, 3, 8, 8), target=1, samples=3).values.shape
    torch.Size([4, 8, 8])
    """
    check_options(score, reduce)
    checks.one_of("statistic", statistic, get_args(Statistic))
    checks.whole_number("samples", samples, 2 if statistic == "variance" else 1)
    checks.number("noise", noise, 0)
    checks.whole_number("seed", seed, 0)
    checks.whole_number("batch_size", batch_size)

    def average(image: Tensor, index: int) -> Tensor:
        noisy = image + noise * (image.max() - image.min()) * gaussian(seed, samples, image)
        mean = spread = square = torch.zeros(())
        gradients = _gradients(given, noisy, index, targets, batch_size, relu, other_activations)
        for count, gradient in enumerate(gradients, 1):
            step = gradient - mean
            mean = mean + step / count
            spread = spread + step * (gradient - mean)  # Welford: no difference of large numbers
            square = square + (gradient**2 - square) / count
        return {"mean": mean, "square": square, "variance": spread / samples}[statistic]

    with prepared(model, x, output=output, wrt=wrt) as given:
        targets = asked(given, target, score)
        averaged = torch.stack([average(image, index) for index, image in enumerate(given.x)])
        return saliency_of(_TITLES[statistic], given, targets, averaged, reduce)


def gaussian(seed: int, samples: int, like: Tensor) -> Tensor:
    """The noise that SmoothGrad adds to one image, before it is scaled: (samples, C, H, W), of `like`'s kind."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *like.shape, generator=generator).to(like)


def integrated_gradients(
    model: Model,
    x: Input,
    target: Target = None,
    *,
    baselines: Tensor | float | Sequence[Any] = 0.0,
    steps: int = 50,
    score: Score = "logit",
    reduce: Reduce = "max",
    batch_size: int = 16,
    output: Output = None,
    wrt: Wrt = None,
) -> Saliency:
    """Integrate the gradient on the straight line from a baseline to the image: what each value adds to the score.

        gradients = (x - x0)  integral_0..1  d score / dx (x0 + a (x - x0))  da

    The attributions of an image add up to its score minus the baseline's (the mean over several); how far they miss it
    is in `completeness_error`: take more steps where that is large.

    Args:
        model, x, target, score, reduce, output, wrt: as for `saliency`.
        baselines: a number, an image (C, H, W), one for each image (B, C, H, W), or a list of these, over which the
            attributions are averaged. 0 is the mean colour for a network with the usual normalisation.
        steps: at how many points the integral is taken (Gauss-Legendre).
        batch_size: how many points run at a time.

    Returns:
        A Saliency, as `saliency` gives it.

    Raises:
        InputError: for a baseline that does not fit, and what `saliency` raises.

    Sundararajan et al., arXiv 1703.01365.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> path = integrated_gradients(model, torch.rand(4, 3, 8, 8), target=1, steps=20)
    >>> path.gradients.shape, path.completeness_error.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """
    check_options(score, reduce)
    checks.whole_number("steps", steps)
    checks.whole_number("batch_size", batch_size)
    nodes, shares = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(steps))
    with prepared(model, x, output=output, wrt=wrt) as given:
        starts = _baselines(baselines, given.x)
        targets = asked(given, target, score)
        points, weights = ((nodes + 1) / 2).to(given.x), (shares / 2).to(given.x.device, torch.float32)

        def attribute(image: Tensor, start: Tensor, index: int) -> Tensor:
            path = start + points.view(-1, *[1] * image.ndim) * (image - start)
            gradients = _gradients(given, path, index, targets, batch_size)
            total = torch.zeros(())
            for weight, gradient in zip(weights, gradients, strict=True):
                total = total + weight * gradient
            return total * (image - start).float()

        def mean_over_baselines(index: int) -> Tensor:
            return torch.stack([attribute(given.x[index], start[index], index) for start in starts]).mean(0)

        attributions = torch.stack([mean_over_baselines(index) for index in range(len(given.x))])
        at_starts = [scores_of(given, start.clone(), range(len(start)), targets) for start in starts]
        error = attributions.flatten(2).sum(2) - (targets.scores - torch.stack(at_starts).mean(0))
        return saliency_of("integrated gradients", given, targets, attributions, reduce, error)


def _baselines(given: Tensor | float | Sequence[Any], x: Tensor) -> list[Tensor]:
    """Each baseline as a batch like x."""
    starts = []
    for baseline in given if isinstance(given, (list, tuple)) else [given]:
        try:
            values = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).detach()
            if values.ndim not in (0, x.ndim - 1, x.ndim) or not bool(values.isfinite().all()):
                raise ValueError
            starts.append(values.expand_as(x))
        except (TypeError, ValueError, RuntimeError):
            shape = tuple(baseline.shape) if isinstance(baseline, Tensor) else baseline
            raise InputError(
                f"a baseline is a finite number, (C, H, W) or (B, C, H, W), not {shape} for an input {tuple(x.shape)}"
            ) from None
    if not starts:
        raise InputError("integrated gradients take at least one baseline")
    return starts


def _gradients(
    given: Given,
    samples: Tensor,
    index: int,
    targets: Targets,
    batch_size: int,
    relu: Rule = "standard",
    other_activations: OtherActivations = "error",
) -> Iterator[Tensor]:
    """The gradient of each sample (n, C, H, W), made from one image, for its classes, one by one: (K, C, H, W)."""
    for part in samples.split(batch_size):  # type: ignore[no-untyped-call]
        images = [index] * len(part)
        same, copies = targets.of_images(images), given.of_images(images, part)
        yield from input_gradients(copies, same, targets.score, relu, other_activations)[1]
