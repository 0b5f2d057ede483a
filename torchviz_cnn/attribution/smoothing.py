"""Gradients averaged over many inputs: SmoothGrad and VarGrad over noise, integrated gradients along a path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.attribution.result import require_images
from torchviz_cnn.attribution.saliency import Channels, Saliency, check_options, differentiate, explained
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.relu_rules import OtherActivations, Rule, relu_rule
from torchviz_cnn.hooks.untouched import lend_input, untouched
from torchviz_cnn.scores.targets import Score, Target, class_outputs, resolve_target, score_of

Statistic = Literal["mean", "square", "variance"]


def smooth_grad(
    model: nn.Module, x: Tensor, target: Target = None, *, samples: int = 25, noise: float = 0.15,
    statistic: Statistic = "mean", seed: int = 0, relu: Rule = "standard", score: Score = "logit",
    channels: Channels = "max", other_activations: OtherActivations = "error", batch_size: int = 16,
) -> Saliency:  # fmt: skip
    """SmoothGrad: the gradient's mean over copies of each image with noise; what is left is not the noise's.

    `noise` is the deviation of the Gaussian noise as a share of the image's range (its maximum minus its minimum).
    `statistic`: `"mean"`; `"square"`, the mean of the squares; `"variance"`, which is VarGrad. Every image meets the
    same noise, drawn from `seed` alone: it gets what it would get in another batch, and the global random state stays.
    The class, where None, is that of the image without noise. `batch_size` copies run at a time.

    Other arguments, shapes and errors as for `saliency`; InputError for less than 1 sample (2 for the variance).
    Smilkov et al., arXiv 1706.03825; Adebayo et al., arXiv 1810.03307 (VarGrad).

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> smooth_grad(model, torch.rand(4, 3, 8, 8), target=1, samples=3).values.shape
    torch.Size([4, 8, 8])
    """
    check_options(score, channels)
    if statistic not in get_args(Statistic):
        raise InputError(f"statistic is 'mean', 'square' or 'variance', not {statistic!r}")
    least = 2 if statistic == "variance" else 1
    whole = isinstance(samples, int) and isinstance(batch_size, int)
    if not whole or samples < least or not 0 <= noise < math.inf or batch_size < 1:
        raise InputError(
            f"SmoothGrad takes {least} or more samples, noise and batch_size, not {samples}, {noise}, {batch_size}"
        )
    names = {"mean": "SmoothGrad", "square": "SmoothGrad squared", "variance": "VarGrad"}

    def average(model: nn.Module, one: Tensor, classes: Tensor) -> Tensor:
        drawn = noise * (one.max() - one.min()) * gaussian(seed, samples, one)
        mean = spread = square = torch.zeros(())
        for count, gradient in enumerate(
            _gradients(model, one + drawn, classes, score, batch_size, relu, other_activations), 1
        ):
            step = gradient - mean
            mean = mean + step / count
            spread = spread + step * (gradient - mean)  # Welford: no difference of large numbers
            square = square + (gradient**2 - square) / count
        return {"mean": mean, "square": square, "variance": spread / samples}[statistic]

    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        logits, classes, one = _classes(lent, x, target)
        gradients = torch.stack([average(lent, x[i], classes[i]) for i in range(len(x))])
        return explained(names[statistic], lent, x, gradients, channels, classes, one, logits, score)


def gaussian(seed: int, samples: int, like: Tensor) -> Tensor:
    """The noise that SmoothGrad adds to one image, before it is scaled: (samples, C, H, W), of `like`'s kind."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *like.shape, generator=generator).to(like)


def integrated_gradients(
    model: nn.Module, x: Tensor, target: Target = None, *, baselines: Tensor | float | Sequence[Any] = 0.0,
    steps: int = 50, score: Score = "logit", channels: Channels = "max", batch_size: int = 16,
) -> Saliency:  # fmt: skip
    """Integrated gradients: what each input value adds to the score on the straight way from a baseline to the image.

        gradients = (x - x0)  integral_0..1  d score / dx (x0 + a (x - x0))  da

    `baselines`: a number, an image (C, H, W), one for each image (B, C, H, W), or a list of these, over which the
    attributions are averaged. 0, the default, is the mean colour for a network with the usual normalisation. The
    integral is taken at `steps` points (Gauss-Legendre). The attributions of an image add up to its score minus the
    baseline's (the mean over several); how far they miss it is in `completeness_error`: take more steps where that
    is large.

    Other arguments, shapes and errors as for `saliency`; InputError for a baseline that does not fit.
    Sundararajan et al., arXiv 1703.01365.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> found = integrated_gradients(model, torch.rand(4, 3, 8, 8), target=1, steps=20)
    >>> found.gradients.shape, found.completeness_error.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """
    check_options(score, channels)
    if not (isinstance(steps, int) and isinstance(batch_size, int)) or steps < 1 or batch_size < 1:
        raise InputError(f"steps and batch_size are whole numbers of at least 1, not {steps} and {batch_size}")
    points, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(steps))
    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        starts = _baselines(baselines, x)
        logits, classes, one = _classes(lent, x, target)
        points, weights = ((points + 1) / 2).to(x), (weights / 2).to(x.device, torch.float32)

        def attribute(image: Tensor, start: Tensor, classes: Tensor) -> Tensor:
            way = start + points[:, None, None, None] * (image - start)
            total = torch.zeros(())
            for weight, gradient in zip(weights, _gradients(lent, way, classes, score, batch_size), strict=True):
                total = total + weight * gradient
            return total * (image - start).float()

        attributions = torch.stack(
            [torch.stack([attribute(x[i], s[i], classes[i]) for s in starts]).mean(0) for i in range(len(x))]
        )
        ends = score_of(logits, classes, score)
        begins = torch.stack([score_of(_logits(lent, s), classes, score) for s in starts]).mean(0)
        error = attributions.sum((2, 3, 4)) - (ends - begins)
        return explained("integrated gradients", lent, x, attributions, channels, classes, one, logits, score, error)


def _baselines(given: Tensor | float | Sequence[Any], x: Tensor) -> list[Tensor]:
    """Each baseline as a batch like x."""
    found = []
    for baseline in given if isinstance(given, (list, tuple)) else [given]:
        try:
            values = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).detach()
            if values.ndim not in (0, 3, 4) or not bool(values.isfinite().all()):
                raise ValueError
            found.append(values.expand_as(x))
        except (TypeError, ValueError, RuntimeError):
            shape = tuple(baseline.shape) if isinstance(baseline, Tensor) else baseline
            raise InputError(
                f"a baseline is a finite number, (C, H, W) or (B, C, H, W), not {shape} for an input {tuple(x.shape)}"
            ) from None
    if not found:
        raise InputError("integrated gradients take at least one baseline")
    return found


def _classes(model: nn.Module, x: Tensor, target: Target) -> tuple[Tensor, Tensor, bool]:
    logits = _logits(model, x)
    return logits, *resolve_target(target, logits)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), HookManager(model) as hooks:
        return class_outputs(hooks.run(x.clone(), stop_early=False), len(x))


def _gradients(
    model: nn.Module, samples: Tensor, classes: Tensor, score: Score, batch_size: int, relu: Rule = "standard",
    other_activations: OtherActivations = "error",
) -> Iterator[Tensor]:  # fmt: skip
    """The gradient of each sample (n, C, H, W) for the classes (K,) of one image, one by one: (K, C, H, W)."""
    for part in samples.split(batch_size):  # type: ignore[no-untyped-call]
        rule = relu_rule(relu, other_activations=other_activations)
        yield from differentiate(model, part, classes.expand(len(part), -1), score, rule)[-1]
