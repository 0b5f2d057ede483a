"""One channel's part in the evidence for a class, at its layer or down at the pixels."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor

from torchviz_cnn.attribution.cam.heatmap import Layer, SignedHeatmap, heatmap_of, require_places
from torchviz_cnn.attribution.result import warn_of_empty
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, counted
from torchviz_cnn.hooks.inputs import Input, LayoutName, Output, Wrt, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.gradients import require_gradient, score_gradients
from torchviz_cnn.scores.targets import Score, Target, check_score
from torchviz_cnn.scores.trace import INPUT, Trace, layer_of, trace

At = Literal["layer", "input"]
"""Where a channel's part is shown: at the places of its map, or at the pixels that drove it."""


def channel_heatmap(
    model: Model,
    x: Input,
    layer: Layer,
    channel: int,
    target: Target = None,
    *,
    at: At = "layer",
    score: Score = "logit",
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> SignedHeatmap:
    """Show where in the picture one channel adds to the score of a class, or takes from it: a conditional heatmap.

    At the `layer` it is the channel's activation times the score's gradient with respect to it: the sum of the map is
    the channel's relevance, by which `top_activations(..., by="relevance")` orders, and the maps of all channels add up
    to HiResCAM. At the `input` that gradient is sent on, through this channel alone, to the pixels, and multiplied by
    the input: the maps of all channels add up to the `gradients` of `input_x_gradient`, summed over the colours, where
    the score depends on the input through this layer alone. This is relevance propagation by its basic rule (LRP-0),
    and as noisy as gradients are.

    Args:
        model, x: as for `grad_cam`.
        layer: a dotted name, or the module.
        channel: which channel of it.
        target, score: as for `grad_cam`.
        at: where the part is shown, `layer` or `input`.
        output, wrt, layout: as for `grad_cam`.

    Returns:
        A SignedHeatmap: values (B, h, w) or (B, K, h, w) at the layer, and with the sides of the input at the input.
        Its `activations` are those of all the layer's channels.

    Raises:
        LayerError, TargetError, ModelError: as `grad_cam` does.
        InputError: for a channel that the layer does not have, and for another `at`.

    Warns:
        EmptyMapWarning: where the channel neither adds to the score nor takes from it.

    Achtibat et al., arXiv 2206.03208.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> heat = channel_heatmap(model, torch.ones(1, 3, 8, 8), "1", channel=2, target=0)
    >>> heat.method, tuple(heat.values.shape)
    ('channel 2', (1, 6, 6))
    """
    check_score(score)
    checks.one_of("at", at, get_args(At))
    channel = checks.whole_number("channel", channel, 0)
    with prepared(model, x, output=output, wrt=wrt, layout=layout) as given:
        name = layer_of(given, layer, target)
        layers = [name] if at == "layer" else [INPUT, name]
        with trace(given, layers, target, score) as run:
            maps = run.maps(name)
            if channel >= maps.shape[1]:
                channels = counted(maps.shape[1], "channel")
                raise InputError(f"channel {channel} is out of range: layer {name!r} has {channels}")
            if at == "layer":
                require_places(given.model, name, maps)
                values = maps[:, None, channel].float() * run.gradient(name)[:, :, channel]
            else:
                values = _at_input(run, name, channel)
            shown = name.replace("{", "{{").replace("}", "}}")
            why = f"channel {channel} of layer {shown!r} has no part in {{target}} in image {{image}}"
            warn_of_empty(values.flatten(2).abs().amax(2) == 0, run.targets, why)
            method = f"channel {channel}" + (" at the input" if at == "input" else "")
            return cast("SignedHeatmap", heatmap_of(method, given, name, values, run, signed=True))


def _at_input(run: Trace, layer: str, channel: int) -> Tensor:
    """The input times the gradients that come to it through one channel of a layer: (B, K, *S)."""
    gave, leaf, layout = run.activations[layer], run.activations[INPUT], run.layouts[layer]
    values = []
    for (gradients,) in score_gradients(run.targets.scores, [gave], keep_graph=True, largest=run.largest):
        known = require_gradient(gradients, run.model, f"layer {layer!r}")
        own = torch.zeros_like(known)
        own.select(layout.channel_dim, channel).copy_(known.select(layout.channel_dim, channel))
        for one in own:
            (back,) = torch.autograd.grad(gave, leaf, one, retain_graph=True, allow_unused=True)
            sent = require_gradient(back, run.model, f"the input from layer {layer!r}")
            values.append((sent.float() * leaf.detach().float()).sum(1))
    return torch.stack(values, 1)
