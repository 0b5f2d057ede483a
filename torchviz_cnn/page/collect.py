"""The numbers of a report: one forward pass per batch of photos gives activations, heatmaps of every layer and class, and pixel maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.core.names import LayerPattern, expand, named_layers
from torchviz_cnn.hooks.inputs import input_for
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.relu_rules import Rule, relu_rule
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import CONVOLUTIONS, POOLINGS, explained_layer
from torchviz_cnn.scores.gradients import score_gradients
from torchviz_cnn.scores.targets import class_outputs
from torchviz_cnn.scores.trace import require_maps

MAP_SIDE = 96
"""Activation maps are averaged down to at most this many pixels a side before they are kept."""
HEAT_SIDE = 48
RULES: tuple[Rule, ...] = ("standard", "guided", "deconvnet")


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """What one layer gave for B photos."""

    shape: tuple[int, int, int]
    """(C, h, w) as the layer gave it."""
    maps: Tensor
    """(B, C, h', w') float32, at most `MAP_SIDE` a side."""
    peak: Tensor
    """The strongest value of each channel: (B, C)."""
    mean: Tensor
    """Mean of the positive part: (B, C)."""
    active: Tensor
    """Share of the values that are above zero: (B, C)."""
    cams: Tensor | None
    """Grad-CAM of K classes, after its ReLU: (B, K, h'', w''); None where no gradient comes back."""


@dataclass(frozen=True, eq=False)
class Measured:
    """All that forward and backward passes over B photos gave."""

    logits: Tensor
    """(B, n)."""
    classes: Tensor
    """The K classes explained for each photo, the likeliest first: (B, K)."""
    layers: dict[str, LayerMaps]
    """In execution order."""
    pixels: dict[Rule, Tensor]
    """Gradients of the class scores with respect to the input by ReLU rule: (B, K, C, H, W)."""
    explained: str | None
    """The layer whose heatmap is shown first: that of the last convolution; None where no layer has one."""
    added: str | None
    """The same, where it is there for its heatmap alone and not asked for."""


def measure(
    model: nn.Module,
    batches: Iterable[Tensor],
    layers: LayerPattern | Sequence[LayerPattern] | None,
    classes: int,
    done: Callable[[int], object],
    *,
    explain: bool = True,
) -> Measured | None:
    """Run batches (B, C, H, W) through a model; None where there are no batches. `done` gets the photos of each batch.

    `layers`: names, patterns or types; by default all convolution and pooling layers with maps larger than a pixel, and
    the one that Grad-CAM explains by default, unless `explain` is False.
    """
    parts: list[Measured] = []
    explained: str | None = None
    for x in batches:
        with untouched(model) as lent:
            x = input_for(lent, x)
            if explain and not parts:
                explained = _explained(lent, x[:1])
            parts.append(_measure(lent, x, _Wanted(lent, layers, explained), classes, explained))
        done(len(x))
    return _joined(parts) if parts else None


class _Wanted:
    """The calls of layers that are kept, and those of them that were asked for by name and so must have maps."""

    def __init__(
        self, model: nn.Module, layers: LayerPattern | Sequence[LayerPattern] | None, explained: str | None
    ) -> None:
        if layers is None:
            modules = list(named_layers(model).values())
            kinds = [kind for kind in (*CONVOLUTIONS, *POOLINGS) if any(isinstance(m, kind) for m in modules)]
            patterns: Sequence[LayerPattern] = kinds
        else:
            given: Any = layers if isinstance(layers, Iterable) and not isinstance(layers, (str, type)) else [layers]
            patterns = list(given)  # of one that is no pattern `expand` tells
            if not patterns:
                raise LayerError("the report was asked for no layer at all")
        calls = expand(model, named_layers(model), patterns)
        self.named = {str(call) for call in calls if call.index is not None}
        self.hooked = dict.fromkeys(str(call) for call in calls)
        self.added = None
        if explained is not None and not {explained, f"{explained.partition('#')[0]}#*"} & set(self.hooked):
            self.hooked[explained] = None
            self.added = explained


def _explained(model: nn.Module, x: Tensor) -> str | None:
    try:
        return explained_layer(model, x)
    except LayerError:
        return None


def _measure(model: nn.Module, x: Tensor, wanted: _Wanted, classes: int, explained: str | None) -> Measured:
    kept: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> Tensor | None:
        if name in wanted.named:
            require_maps(model, name, output, len(x))
        elif not isinstance(output, Tensor) or output.ndim != 4 or len(output) != len(x) or output.shape[2:] == (1, 1):
            return None
        if name in kept:
            return None
        kept[name] = output
        copy: Tensor = output.clone()  # what follows may overwrite it in place
        return copy

    leaf = x.detach().requires_grad_()
    # One graph under the guided rule: it goes back under the plain and the deconvnet rule too.
    rule = relu_rule("guided", other_activations="plain")
    with HookManager(model) as hooks:
        hooks.on_forward(list(wanted.hooked), keep)
        with rule:
            output = hooks.run(leaf.clone(), stop_early=False)
        hooks.require_reached(wanted.named)
        logits = class_outputs(output, len(x))
        chosen = logits.topk(min(classes, logits.shape[1]), 1).indices
        scores = logits.gather(1, chosen)
        cams: dict[str, list[Tensor]] = {name: [] for name in kept}
        pixels: dict[Rule, list[Tensor]] = {}
        rule.rule = "standard"
        if scores.requires_grad:
            for at_input, *at_layers in score_gradients(scores, [leaf, *kept.values()], keep_graph=True):
                if at_input is not None:
                    pixels.setdefault("standard", []).append(at_input.float())
                for (name, maps), gradient in zip(kept.items(), at_layers, strict=True):
                    if gradient is not None:
                        cams[name].append(_cam(maps.detach(), gradient))
            for other in RULES[1:] if rule.count and pixels else ():
                rule.rule = other
                for (at_input,) in score_gradients(scores, [leaf], keep_graph=True):
                    if at_input is not None:
                        pixels.setdefault(other, []).append(at_input.float())
    measured = {name: _layer_maps(maps.detach(), cams[name]) for name, maps in kept.items()}
    together = {name: torch.cat(parts).transpose(0, 1).cpu() for name, parts in pixels.items()}
    shown = explained if explained in measured else next((n for n in reversed(measured) if cams[n]), None)
    return Measured(logits.detach().cpu(), chosen.cpu(), measured, together, shown, wanted.added)


def _cam(maps: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM (k, B, h, w), after its ReLU, from maps (B, C, h, w) and gradients (k, B, C, h, w)."""
    with torch.autocast(maps.device.type, enabled=False):
        return torch.einsum("kbc,bchw->kbhw", gradient.float().mean((-2, -1)), maps.float()).relu()


def _layer_maps(maps: Tensor, cams: list[Tensor]) -> LayerMaps:
    maps = maps.float()
    _, channels, height, width = maps.shape
    positive = maps.relu()
    return LayerMaps(
        shape=(channels, height, width),
        maps=_at_most(maps, MAP_SIDE).cpu(),
        peak=maps.amax((2, 3)).cpu(),
        mean=positive.mean((2, 3)).cpu(),
        active=(maps > 0).float().mean((2, 3)).cpu(),
        cams=_at_most(torch.cat(cams).transpose(0, 1), HEAT_SIDE).cpu() if cams else None,
    )


def _at_most(maps: Tensor, side: int) -> Tensor:
    """Maps (B, C, h, w) averaged down to at most `side` pixels a side, in proportion."""
    height, width = maps.shape[2:]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return maps if size == (height, width) else F.adaptive_avg_pool2d(maps, size)


def _joined(parts: list[Measured]) -> Measured:
    def cat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(tensors))

    first = parts[0]
    layers = {}
    for name, of in first.layers.items():
        each = [part.layers[name] for part in parts]
        cams = [one.cams for one in each if one.cams is not None]
        layers[name] = LayerMaps(
            of.shape,
            cat(one.maps for one in each),
            cat(one.peak for one in each),
            cat(one.mean for one in each),
            cat(one.active for one in each),
            cat(cams) if len(cams) == len(parts) else None,
        )
    pixels = {rule: cat(part.pixels[rule] for part in parts) for rule in first.pixels}
    return Measured(
        cat(part.logits for part in parts),
        cat(part.classes for part in parts),
        layers,
        pixels,
        first.explained,
        first.added,
    )
