"""Competitive CAM: the classes compete for every place of a layer."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from torchviz_cnn.attribution.cam.exact import tolerance_of
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS, cam_maps
from torchviz_cnn.attribution.cam.heatmap import Heatmap, Layer, heatmap_of, positive, require_places
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, ModelError
from torchviz_cnn.hooks.inputs import Given, Input, LayoutName, Output, Wrt, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.gradients import require_gradient, score_gradients
from torchviz_cnn.scores.outputs import Ending
from torchviz_cnn.scores.targets import Target
from torchviz_cnn.scores.trace import Trace, layer_of, trace

RIVALS = 50
"""How many classes compete where no global average pooling follows the layer."""
_log = logging.getLogger("torchviz_cnn")


def competitive_cam(
    model: Model,
    x: Input,
    layer: Layer = None,
    target: Target = None,
    *,
    rivals: int | None = None,
    temperature: float | None = None,
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Heatmap:
    """Compute Grad-CAM in which classes compete for every place: where a class is the best explanation.

        values = ReLU(M_c) * softmax_k( E_k / T )[c],   E_k = area * M_k + (logit_k - sum_S M_k)

    M_k is the Grad-CAM map of class k before its ReLU, and E_k what the logit would be if the whole layer were as at
    this place: exactly so in networks that end in global average pooling and a linear layer. To be preferred where a
    photo shows several things, or classes are alike; for a photo of one thing, Grad-CAM keeps more of the evidence
    that classes share.

    Args:
        model: a module or a Network.
        x: as for `grad_cam`.
        layer: as for `grad_cam`.
        target: classes, as for `grad_cam`.
        rivals: how many of the likeliest classes compete with the target; by default all where global average
            pooling follows the layer, else 50.
        temperature: T, above 0; by default the standard deviation of E over the classes at each place.
        output, wrt, layout: as for `grad_cam`.

    Returns:
        A Heatmap with values (B, *S) or (B, K, *S), at least 0.

    Raises:
        InputError: for rivals below 1, a temperature that is not above 0, and a function as target.
        LayerError, TargetError, ModelError: as for `grad_cam`.

    Warns:
        EmptyMapWarning: where a map has no positive value.

    The idea of competition: Gupta & Arora, arXiv 1905.12152.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> competitive_cam(model, torch.rand(3, 1, 8, 8), "1").values.shape
    torch.Size([3, 6, 6])
    """
    if rivals is not None:
        checks.whole_number("rivals", rivals)
    if temperature is not None and not checks.number("temperature", temperature) > 0:
        raise InputError(f"temperature is above 0, not {temperature!r}")
    if callable(target):
        raise InputError("classes compete, and the target is a function: it has no rivals; grad_cam takes it")
    with prepared(model, x, output=output, wrt=wrt, layout=layout) as given:
        name = layer_of(given, layer)
        with trace(given, [name], target) as run:
            require_places(given.model, name, run.maps(name))
        maps, shares = competition(given, name, run, rivals, temperature)
        return heatmap_of("Competitive CAM", given, name, positive(maps, name, run.targets) * shares, run)


def competition(
    given: Given, layer: str, run: Trace, rivals: int | None = None, temperature: float | None = None
) -> tuple[Tensor, Tensor]:
    """The Grad-CAM maps of the targets of a trace, before their ReLU, and their shares in the competition: (B, K, *S).

    Called after the block of the trace, as it runs the model again.
    """
    asked, logits = run.targets.classes, run.targets.logits.detach()
    weights = _pooled_weights(given, layer, run)
    count = min(rivals or (logits.shape[1] if weights is not None else RIVALS), logits.shape[1])
    likeliest = logits.topk(count, 1).indices
    classes = torch.cat([asked, likeliest], 1)
    if weights is not None:
        own = weights.gather(1, classes[..., None].expand(-1, -1, weights.shape[2]))
        maps = torch.einsum("bkc,bc...->bk...", own, run.maps(layer).float())
    else:
        with trace(given, [layer], replace(run.targets, classes=classes, single=False)) as everyone:
            (maps,) = cam_maps(everyone, layer, [CAM_METHODS["grad_cam"].formula])
    local = maps[0, 0].numel() * maps + _constant(logits.gather(1, classes), maps)
    mine, theirs = local[:, : asked.shape[1]], local[:, asked.shape[1] :]
    shares = [_share(mine[:, k], theirs, asked[:, k, None] == likeliest, temperature) for k in range(asked.shape[1])]
    return maps[:, : asked.shape[1]], torch.stack(shares, 1)


def _pooled_weights(given: Given, layer: str, run: Trace) -> Tensor | None:
    """The mean gradient of every class over each map of a layer: (B, n, C); None where it is not simply pooled.

    Where global average pooling follows the layer, the network gives the same for maps of one place, their means (of
    tokens, for means everywhere), and only what follows the pooling is differentiated.
    """
    maps, own, logits = run.maps(layer), run.activations[layer].detach(), run.targets.logits.detach()
    places = tuple(range(2, maps.ndim))
    for count in sorted({1, len(maps)}):  # the first image alone tells that of most networks, at little cost
        first = torch.arange(count, device=maps.device)
        some = given.of_images(first, given.x[:count])
        try:
            with torch.enable_grad(), HookManager(given.model) as hooks, Ending() as ending:
                means = maps[:count].mean(places, keepdim=True).requires_grad_()
                same = run.layouts[layer].own(means, own[:count])
                output = hooks.run_from(layer, same, some.inputs(some.x))
                pooled = run.targets.of_images(first).again(output, ending).logits
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ModelError) as error:
            _log.info("%d classes compete, not all: %s", RIVALS, str(error).partition("\n")[0])
            return None
        tolerance = tolerance_of(maps) * float(logits[:count].abs().max())
        if not torch.allclose(pooled, logits[:count], rtol=0, atol=tolerance):
            _log.info("%d classes compete, not all: layer %r is not followed by global average pooling", RIVALS, layer)
            return None
    parts = [require_gradient(part, given.model, layer) for (part,) in score_gradients(pooled, [means])]
    return torch.cat(parts).flatten(2).float().transpose(0, 1) / maps[0, 0].numel()


def _constant(logits: Tensor, maps: Tensor) -> Tensor:
    """What of each logit its map does not account for: (B, K, 1, ...), to be added to maps (B, K, *S)."""
    return (logits - maps.flatten(2).sum(2)).view(*logits.shape, *[1] * (maps.ndim - 2))


def _share(mine: Tensor, theirs: Tensor, same: Tensor, temperature: float | None) -> Tensor:
    """The softmax of a class's local logits (B, *S) among its rivals' (B, R, *S), of which it may be one itself."""
    local = torch.cat([mine[:, None], theirs], 1)
    competing = torch.cat([torch.ones_like(same[:, :1]), ~same], 1).view(*local.shape[:2], *[1] * (local.ndim - 2))
    mean = torch.where(competing, local, 0).sum(1, keepdim=True) / competing.sum(1, keepdim=True)
    above = local - mean
    if temperature is None:
        variance = torch.where(competing, above.square(), 0).sum(1, keepdim=True) / competing.sum(1, keepdim=True)
        scale = variance.sqrt().clamp(min=torch.finfo(local.dtype).tiny)
    else:
        scale = torch.full_like(mean, temperature)
    return (above / scale).masked_fill(~competing, -math.inf).softmax(1)[:, 0]
