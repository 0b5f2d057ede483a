"""FullGrad: a score as the sum of what the input and the biases of all layers add to it, place by place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.attribution.cam.gradient_free import enlarged
from torchviz_cnn.attribution.result import of_targets, warn_of_empty
from torchviz_cnn.attribution.saliency import Saliency
from torchviz_cnn.core.errors import LayerError, kind_of
from torchviz_cnn.core.names import named_layers, resolve
from torchviz_cnn.hooks.inputs import Given, Input, Output, Wrt, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.gradients import require_gradient
from torchviz_cnn.scores.targets import Score, Target, check_score
from torchviz_cnn.scores.trace import INPUT, trace

_Normalised = nn.modules.batchnorm._BatchNorm
_Convolution = nn.modules.conv._ConvNd


def full_grad(
    model: Model,
    x: Input,
    target: Target = None,
    *,
    score: Score = "logit",
    output: Output = None,
    wrt: Wrt = None,
) -> Saliency:
    """Compute FullGrad: input times gradient and the bias gradients of all layers, added up place by place.

        score = <d score / dx, x>  +  sum over layers and places  (d score / d output) * bias
        values = psi(input x gradient)  +  sum over convolutions and normalisations  psi(bias gradient)

    The first line is exact for networks of convolutions, linear layers, batch normalisations (of which the running mean
    is a part of the bias), ReLUs and poolings; how far it is missed is in `completeness_error`. In the second, psi is
    the absolute value, from 0 to 1 over a layer, enlarged to the input, and summed over the channels; linear layers
    have no places. One forward and one batched backward pass give all K classes.

    Args:
        model, x, target, score, output, wrt: as for `saliency`. The first line is that of `logit`.

    Returns:
        A Saliency with `values` (B, H, W), and `gradients` (B, 1, H, W): the terms of the first line with their sign,
        summed over channels and layers, each shared out over the pixels that its place covers. K stands after B where
        (B, K) was asked for.

    Raises:
        TargetError: for a class that the network does not have.
        InputError: for a wrong option.
        ModelError: where no gradient comes back.

    Warns:
        EmptyMapWarning: where a map is all zeros.

    Srinivas & Fleuret, arXiv 1905.00780, scaled as in the authors' program.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> full = full_grad(model, torch.rand(4, 3, 8, 8), target=1)
    >>> full.values.shape, bool(full.completeness_error.abs().max() < 1e-5)
    (torch.Size([4, 8, 8]), True)
    """
    check_score(score)
    with prepared(model, x, output=output, wrt=wrt) as given:
        all_biases = {name: _bias_of(layer) for name, layer in named_layers(given.model).items()}
        biases = {name: bias for name, bias in all_biases.items() if bias is not None}
        layers = [INPUT, *(f"{name}#*" for name in biases)]
        with trace(given, layers, target, score, check=_tensor, as_maps=False) as run:
            parts = [_shares(given, biases, gradients) for gradients in run.gradients(list(run.activations))]
        values, signed, total = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        why = "no pixel of image {image} matters for {label}"
        warn_of_empty(~values.flatten(2).any(2), run.targets, why, "FullGrad ")
        return Saliency(
            gradients=run.targets.squeezed(signed),
            values=run.targets.squeezed(values),
            method="FullGrad",
            completeness_error=run.targets.squeezed(total - run.targets.scores.detach()),
            score=score,
            **of_targets(given, run.targets),
        )


def _shares(given: Given, biases: dict[str, Tensor], gradients: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """Of k classes the map (B, k, *S), the terms with their sign (B, k, 1, *S), and the sum of all terms (B, k)."""
    of_input = require_gradient(gradients.pop(INPUT), given.model, "the input") * given.x.float()[:, None]
    values, signed, total = _psi(of_input), of_input.sum(2), of_input.flatten(2).sum(2)
    pixels, layers = of_input.shape[3:], named_layers(given.model)
    for call, gradient in gradients.items():
        if gradient is None:
            continue  # as of a head for training alone
        name = resolve(given.model, layers, call).name
        of_tokens = isinstance(layers[name], nn.Linear)
        shape = (-1,) if of_tokens else (-1, *[1] * (gradient.ndim - 3))
        part = gradient * biases[name].view(shape)
        total = total + part.flatten(2).sum(2)
        if not of_tokens and part.ndim == of_input.ndim:
            values = values + enlarged(_psi(part), pixels)
            covered = math.prod(pixels) / math.prod(part.shape[3:])
            signed = signed + enlarged(part.sum(2), pixels) / covered
    return values, signed[:, :, None], total


def _psi(parts: Tensor) -> Tensor:
    """The absolute values of parts (B, k, C, *S), from 0 to 1 over each layer, summed over its channels: (B, k, *S)."""
    strength = parts.abs().flatten(2)
    strength = strength - strength.amin(2, keepdim=True)
    most = strength.amax(2, keepdim=True)
    return torch.where(most > 0, strength / most, 0).view(parts.shape).sum(2)


def _bias_of(layer: nn.Module) -> Tensor | None:
    """What a layer adds to each of its channels, of a normalisation with what its running mean takes away; or None."""
    if not isinstance(layer, (_Convolution, nn.Linear, _Normalised)):
        return None
    bias = None if layer.bias is None else layer.bias.detach().float()
    if not isinstance(layer, _Normalised) or layer.running_mean is None or layer.running_var is None:
        return bias
    scale = (layer.running_var + layer.eps).rsqrt()
    shift = -layer.running_mean * (scale if layer.weight is None else scale * layer.weight.detach())
    return shift.float() if bias is None else shift.float() + bias


def _tensor(name: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise LayerError(f"layer {name!r} gives {kind_of(output)}, not a tensor: its bias cannot be followed")
    return output
