"""The exact class activation map of networks that end in global average pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchviz_cnn.attribution.cam.heatmap import Heatmap, Layer, heatmap_of, require_places
from torchviz_cnn.core.errors import ModelError
from torchviz_cnn.hooks.inputs import Given, Input, LayoutName, Output, Wrt, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.outputs import Ending
from torchviz_cnn.scores.targets import Target
from torchviz_cnn.scores.trace import Trace, layer_of, trace


def class_activation_map(
    model: Model,
    x: Input,
    target: Target = None,
    *,
    layer: Layer = None,
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Heatmap:
    """Compute the exact class activation map of a network whose score is the mean of a map, up to a constant.

        values = sum_c w_kc A_c,   score_k = mean_S values + b_k

    Such networks end in global average pooling and a linear layer (ResNet, DenseNet, ...), or in a 1 x 1 convolution
    and global average pooling (SqueezeNet). That it holds is not looked up but measured: the score's gradient is the
    same at every place of the map (behind a ReLU: wherever the map is positive) and accounts for the whole score.

    Args:
        model: a module or a Network.
        x: as for `grad_cam`.
        target, output, wrt: as for `grad_cam`.
        layer: by default the last with a map larger than one pixel.
        layout: as for `grad_cam`.

    Returns:
        A Heatmap with values (B, *S) or (B, K, *S), with their sign.

    Raises:
        ModelError: for a network that has no exact class activation map, as VGG.
        LayerError, TargetError: as for `grad_cam`.

    Zhou et al., arXiv 1512.04150.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> class_activation_map(model, torch.rand(3, 1, 8, 8), target=4).values.shape
    torch.Size([3, 6, 6])
    """
    with prepared(model, x, output=output, wrt=wrt, layout=layout) as given:
        name = layer_of(given, layer, target, pooled=True)
        with trace(given, [name], target) as run:
            maps = run.maps(name)
            require_places(given.model, name, maps)
            gradients = run.gradient(name)
            _require_pooled(given.model, name, maps, gradients)
            with torch.autocast(maps.device.type, enabled=False):
                values = maps[0, 0].numel() * torch.einsum("bkc...,bc...->bk...", gradients, maps.float())
        _require_linear(given, name, run, values)
        return heatmap_of("CAM", given, name, values, run)


_LARGE = 64
"""What follows a layer is linear if it is so for its own maps and for maps this many times as large."""


def _require_linear(given: Given, layer: str, run: Trace, values: Tensor) -> None:
    """Raise ModelError unless the maps account for the scores, and for those of much larger maps."""
    own, maps, targets = run.activations[layer].detach()[:1], run.maps(layer)[:1], run.targets
    large = _LARGE if own.dtype != torch.float16 else 1 / _LARGE  # half precision ends at 65504
    changed = run.layouts[layer].own(torch.cat([0 * maps, large * maps]), own)
    image = given.of_images([0], given.x[:1])
    with torch.no_grad(), HookManager(given.model) as hooks, Ending() as ending:
        output = hooks.run_from(layer, changed, image.inputs(image.x))
        constant, scaled = targets.of_images([0, 0]).again(output, ending).logits
    explained, classes = values.flatten(2).mean(2), targets.classes
    if not (
        _equal(targets.scores, explained + constant[classes], own)
        and _equal(scaled[classes[0]], large * explained[0] + constant[classes[0]], own)
    ):
        raise _not_pooled(given.model, layer, "what follows it is not linear")


def _require_pooled(model: nn.Module, layer: str, maps: Tensor, gradients: Tensor) -> None:
    """Raise ModelError unless gradients (B, K, C, *S) are one number per channel, except where a ReLU gives 0."""
    gradients, maps = gradients.flatten(3), maps.flatten(2)
    passes = gradients != 0
    weight = gradients.sum(3, keepdim=True) / passes.sum(3, keepdim=True).clamp(min=1)
    scale = gradients.abs().amax(dim=(2, 3), keepdim=True)
    tolerance = tolerance_of(maps) * scale
    uneven = passes & ((gradients - weight).abs() > tolerance)
    blocked = ~passes & (maps[:, None] > 0) & (weight.abs() > tolerance)
    if bool((uneven | blocked).any()):
        raise _not_pooled(model, layer, "the gradient of the score varies over it")


def _equal(a: Tensor, b: Tensor, leaf: Tensor) -> bool:
    close = (a.detach() - b.detach()).abs() <= tolerance_of(leaf) * torch.maximum(a.abs().max(), b.abs().max())
    return bool(close.all())


def tolerance_of(leaf: Tensor) -> float:
    return 1e-3 if leaf.dtype in (torch.float32, torch.float64) else 5e-2


def _not_pooled(model: nn.Module, layer: str, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} has no exact class activation map: it does not end in global average pooling and a "
        "linear layer, or a 1 x 1 convolution and global average pooling "
        f"(the last map is that of {layer!r}, and {why}); use grad_cam"
    )
