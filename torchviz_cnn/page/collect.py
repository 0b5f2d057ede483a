"""The numbers of a report: activations, heatmaps and pixel gradients, from one graph per batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchviz_cnn.attribution.cam.competition import competition
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS
from torchviz_cnn.core.errors import LayerError, TargetError
from torchviz_cnn.core.names import Call, expand, named_layers
from torchviz_cnn.hooks.inputs import Given, Input, Output, prepared
from torchviz_cnn.hooks.network import Network
from torchviz_cnn.hooks.relu_rules import Rule, relu_rule
from torchviz_cnn.layers.defaults import Layers, chosen_patterns
from torchviz_cnn.runs.encode import fitted
from torchviz_cnn.scores.outputs import Activation
from torchviz_cnn.scores.reader import ReadyTarget, TargetFunction
from torchviz_cnn.scores.targets import Target
from torchviz_cnn.scores.trace import INPUT, Trace, layer_of, trace

MAP_SIDE = 96
"""Activation maps are averaged down to at most this many pixels a side before they are kept."""
HEAT_SIDE = 48
Explained = int | str | Sequence[int | str] | TargetFunction | None
"""What is explained of every photo: classes by index or name, a function, or None for its likeliest classes."""
Done = Callable[[int], Any]
"""What is called with the number of images, or channels, that are done."""
PIXEL_METHODS: Mapping[str, Rule] = {"saliency": "standard", "guided": "guided", "deconvnet": "deconvnet"}
"""The methods of the table that are the gradient at the input under a rule of the ReLUs, and that rule."""

_log = logging.getLogger("torchviz_cnn")


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
    sparsity: Tensor
    """Share of the values that are zero or below: (B, C)."""
    heat: Mapping[str, Tensor]
    """Heatmaps of K classes by method of `CAM_METHODS`, after their ReLU: (B, K, h'', w''); empty where no gradient
    comes back. The layer that is explained by default also has `competitive_cam`."""


@dataclass(frozen=True, eq=False)
class Collected:
    """All that forward and backward passes over B photos gave."""

    logits: Tensor
    """(B, n)."""
    classes: Tensor
    """The K classes explained for each photo, the likeliest first: (B, K)."""
    layers: Mapping[str, LayerMaps]
    """In execution order."""
    pixels: Mapping[str, Tensor]
    """Gradients of the class scores with respect to the input, by method of `PIXEL_METHODS`: (B, K, C, H, W)."""
    explained: str | None
    """The layer whose heatmap is shown first: that of the last convolution; None where no layer has one."""
    added: str | None
    """The same, where it is there for its heatmap alone and was not asked for."""
    activation: Activation | None = None
    """What makes probabilities of the logits."""
    pooled: bool = False
    """Whether the score changes alike with each place of the layer explained, as behind global average pooling."""
    label: str | None = None
    """What a function explains, in words, of which the logits are the numbers (B, K); None for classes."""


def collect(
    net: Network,
    batches: Iterable[Input],
    layers: Layers,
    classes: int,
    done: Done,
    *,
    explain: bool = True,
    targets: Explained = None,
    output: Output = None,
) -> Collected:
    """Run batches of photos, or of inputs (B, C, H, W), through a network.

    With `explain`, the layer that heatmaps explain by default is added where it was not asked for. `targets` are
    explained of every photo, by default as many of the likeliest classes as `classes` says.
    """
    parts: list[Collected] = []
    explained: str | None = None
    for x in batches:
        with prepared(net, x, dims=(2,), output=output) as given:
            target = target_of(net, targets, sum(len(part.logits) for part in parts), len(given.x))
            if explain and not parts:
                explained = _explained_layer(given, target)
            parts.append(_collect(given, _calls(given.model, layers), classes, explained, target))
            done(len(given.x))
    merged: Collected = _merged(parts)
    return merged


def target_of(net: Network, targets: Explained, start: int, count: int, classes: Tensor | None = None) -> Target:
    """What is explained of some photos, from this one on; where nothing is asked for, the `classes` (B, K) of all."""
    if targets is None:
        return None if classes is None else classes[start : start + count]
    if isinstance(targets, ReadyTarget):
        return targets.of_images(torch.arange(start, start + count))
    if callable(targets):
        return targets
    plain: Any = targets.tolist() if hasattr(targets, "tolist") else targets  # of an array, or a number of one
    several = [plain] if isinstance(plain, (int, str)) else list(plain)
    if not several:
        raise TargetError("the page explains at least one class; targets=None takes the likeliest")
    return [[net.class_index(one) for one in several]] * count


def _calls(model: nn.Module, layers: Layers) -> list[Call]:
    """The calls of layers that were asked for; none where the model has no layer of the default kinds."""
    try:
        return expand(model, named_layers(model), chosen_patterns(model, layers))
    except LayerError as error:
        if layers is not None:
            raise
        _log.info("the report has no layers: %s", error)
        return []


def _explained_layer(given: Given, target: Target) -> str | None:
    try:
        return layer_of(given, None, target)
    except LayerError as error:
        _log.info("the report has no heatmap of a layer: %s", error)
        return None


def _collect(
    given: Given, calls: Sequence[Call], classes: int, explained: str | None, target: Target = None
) -> Collected:
    batch, wanted = len(given.x), {str(call): None for call in calls}
    by_name = {str(call) for call in calls if call.index is not None}
    known = explained is None or explained in wanted or f"{explained.partition('#')[0]}#*" in wanted
    added = None if known else explained

    def check(name: str, output: Any) -> Any:
        if name in by_name or name == added:
            return output
        maps = isinstance(output, Tensor) and output.ndim == 4 and len(output) == batch and output.is_floating_point()
        return output if maps and output.shape[2:] != (1, 1) else None

    # One graph under the guided rule: gradients go back through it under the other rules too.
    rule = relu_rule("guided", other_activations="plain")
    names = [INPUT, *wanted, *([added] if added else [])]
    with trace(given, names, target, rule=rule, check=check, require_relu=False) as run:
        logits, chosen = run.targets.logits, run.targets.classes
        if target is None:
            chosen = logits.detach().topk(min(classes, logits.shape[1]), 1).indices
        run = replace(run, targets=replace(run.targets, classes=chosen, single=False))
        names = [name for name in run.activations if name != INPUT]
        for name in names:
            if run.layouts[name].dims != 2:
                raise LayerError(f"layer {name!r} gives maps of {run.layouts[name].dims} dimensions, the page shows 2")
        heat, standard, even = _heatmaps(run, names)
        pixels: dict[str, Tensor] = {}
        for name, own in PIXEL_METHODS.items():
            if standard is not None and (own == "standard" or rule.count):
                pixels[name] = standard if own == "standard" else run.gradient(INPUT, rule=own, keep_graph=True).cpu()
        layers = {name: _layer_maps(run.maps(name), heat[name]) for name in names}
    if run.targets.label is None and explained in layers and heat[explained]:
        maps, shares = competition(given, explained, run)
        competing = {"competitive_cam": _at_most(maps.relu() * shares, HEAT_SIDE).cpu()}
        layers[explained] = replace(layers[explained], heat={**heat[explained], **competing})
    pooled = explained in even
    shown = explained if explained in layers else next((name for name in reversed(names) if heat[name]), None)
    about = (run.targets.activation, pooled, run.targets.label)
    return Collected(logits.detach().cpu(), chosen.cpu(), layers, pixels, shown, added, *about)


def _heatmaps(run: Trace, layers: Sequence[str]) -> tuple[dict[str, dict[str, Tensor]], Tensor | None, set[str]]:
    """Heatmaps (B, K, h, w) by layer and method, and the gradients at the input, all from one backward pass.

    Last, the layers whose gradients are the same at each of their places. There are no heatmaps of a layer, nor
    gradients at the input, where no gradient comes back.
    """
    heat: dict[str, dict[str, list[Tensor]]] = {layer: {} for layer in layers}
    at_input, even = [], set(layers)
    for gradients in run.gradients([INPUT, *layers], rule="standard", keep_graph=True):
        if (part := gradients.pop(INPUT)) is not None:
            at_input.append(part.cpu())
        for layer, gradient in gradients.items():
            if gradient is None or not _is_even(gradient):
                even.discard(layer)
            if gradient is None:
                continue
            maps = run.maps(layer).float()
            with torch.autocast(maps.device.type, enabled=False):
                for name, method in CAM_METHODS.items():
                    values = _at_most(method.formula(maps, gradient).relu(), HEAT_SIDE)
                    heat[layer].setdefault(name, []).append(values.cpu())
    joined = {layer: {name: torch.cat(parts, 1) for name, parts in by.items()} for layer, by in heat.items()}
    return joined, torch.cat(at_input, 1) if at_input else None, even


def _is_even(gradient: Tensor) -> bool:
    """Whether gradients (B, K, C, h, w) are the same at each place, and not zero."""
    peak = float(gradient.abs().amax())
    return peak > 0 and float((gradient - gradient[..., :1, :1]).abs().amax()) <= 1e-4 * peak


def _layer_maps(maps: Tensor, heat: Mapping[str, Tensor]) -> LayerMaps:
    maps = maps.float()
    _, channels, height, width = maps.shape
    return LayerMaps(
        shape=(channels, height, width),
        maps=_at_most(maps, MAP_SIDE).cpu(),
        peak=maps.amax((2, 3)).cpu(),
        mean=maps.relu().mean((2, 3)).cpu(),
        sparsity=1 - (maps > 0).float().mean((2, 3)).cpu(),
        heat=heat,
    )


def _at_most(maps: Tensor, side: int) -> Tensor:
    """Maps (B, C, h, w) averaged down to at most `side` pixels a side, in proportion."""
    size = fitted(maps.shape[2:], side)
    return maps if size == maps.shape[2:] else F.adaptive_avg_pool2d(maps, size)


def _merged(parts: Sequence[Any]) -> Any:
    """Join what batches gave: concatenate tensors, join mappings entry by entry, keep the first of anything else."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: _merged([part[key] for part in parts]) for key in first if all(key in part for part in parts)}
    if isinstance(first, (Collected, LayerMaps)):
        return type(first)(*(_merged([getattr(part, field.name) for part in parts]) for field in fields(first)))
    return first
