"""One forward pass from which activations of layers, scores and their gradients are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.core.names import LayerName, one_call, one_or_several
from torchviz_cnn.hooks.inputs import Given
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.recorder import Check
from torchviz_cnn.hooks.relu_rules import ReluRule, Rule
from torchviz_cnn.layers.defaults import explained_layer
from torchviz_cnn.layers.layout import require_channels_first
from torchviz_cnn.scores.gradients import require_gradient, score_gradients
from torchviz_cnn.scores.outputs import Ending
from torchviz_cnn.scores.targets import Score, Target, Targets, reader_of

INPUT = ""
"""The name of the input itself, among the layers of a trace."""

_log = logging.getLogger("torchviz_cnn")


@dataclass(frozen=True, eq=False)
class Trace:
    """What one forward pass gave. Gradients are read inside the block of `trace`."""

    model: nn.Module
    activations: Mapping[str, Tensor]
    """What the layers gave, by name, in execution order: (B, C, h, w), part of the graph."""
    targets: Targets
    rule: ReluRule | None = None

    def gradients(
        self, layers: Sequence[str], *, rule: Rule | None = None, keep_graph: bool = False
    ) -> Iterator[dict[str, Tensor | None]]:
        """The gradients of the scores with respect to what some layers gave, a few classes at a time.

        Args:
            layers: names of layers of this trace, and `INPUT`.
            rule: the backward rule of ReLUs, of a trace that was made under another.
            keep_graph: whether gradients will be read once more after this (False).

        Yields:
            By layer, (B, k, C, h, w) in float32; None for a layer that the scores do not depend on.
        """
        if self.rule is not None and rule is not None:
            self.rule.rule = rule
        for parts in score_gradients(self.targets.scores, [self.activations[name] for name in layers], keep_graph):
            # Class by class in memory, image by image in use: the transposition is a view.
            yield {
                name: None if part is None else part.detach().float().transpose(0, 1)
                for name, part in zip(layers, parts, strict=True)
            }

    def gradient(self, layer: str, *, rule: Rule | None = None, keep_graph: bool = False) -> Tensor:
        """The gradients of all classes with respect to one layer's maps or the `INPUT`: (B, K, C, h, w), float32.

        Raises ModelError where none comes back.
        """
        place = f"layer {layer!r}" if layer != INPUT else "the input"
        parts = [
            require_gradient(part[layer], self.model, place)
            for part in self.gradients([layer], rule=rule, keep_graph=keep_graph)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@contextmanager
def trace(
    given: Given,
    layers: Sequence[str],
    target: Target | Targets = None,
    score: Score = "logit",
    rule: ReluRule | None = None,
    *,
    check: Check | None = None,
    require_relu: bool = True,
) -> Iterator[Trace]:
    """Run a model once, to its end, and keep what is needed to differentiate scores with respect to layers' maps.

    The layer that runs first becomes the leaf of the graph: nothing before it is differentiated. With `INPUT` among
    them, the input does.

    Args:
        given: the model and its batch.
        layers: names of calls that give maps (B, C, h, w), and `INPUT`.
        target: which classes, see `Target`, or what was resolved before.
        score: the score to explain, see `Score`.
        rule: the backward rule of ReLUs.
        check: what tests the outputs of layers, see `HookManager.record`; by default `require_maps`.
        require_relu: whether a rule that meets no ReLU is an error.

    Raises:
        LayerError: for a layer that does not exist, is not reached or gives no maps, and a rule that meets no ReLU.
        TargetError: for a target that does not fit.
        ModelError: for a model that gives no class scores.
    """
    model, x = given.model, given.x
    ruling = rule if rule is not None and rule.rule != "standard" else None
    leaf = x.detach().requires_grad_() if INPUT in layers else x.detach()
    named = [name for name in layers if name != INPUT]

    def maps(name: str, output: Any) -> Tensor:
        return require_maps(given, name, output)

    with HookManager(model) as hooks, hooks.record(named, check or maps) as acts:
        with ruling or contextlib.nullcontext(), Ending() as ending:
            output = hooks.run_on(given.inputs(leaf.clone()), stop_early=False)
        hooks.require_reached()
        if ruling is not None:
            ruling.require_ruled(model, output)
            if require_relu:
                ruling.require_met(model)
        targets = Targets.of(given, output, target, score, ending)
        yield Trace(model, {**acts, **({INPUT: leaf} if INPUT in layers else {})}, targets, rule)


def require_maps(given: Given, layer: str, output: Any) -> Tensor:
    """What a layer gives, if it is maps (B, C, h, w), as many as there are images; raises LayerError otherwise."""
    model, batch = given.model, len(given.x)
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(f"layer {layer!r} of {type(model).__name__} gives {shape}, not maps (B, C, h, w)")
    if len(output) != batch:
        raise LayerError(f"layer {layer!r} gives {len(output)} maps for {batch} images: they cannot be told apart")
    require_channels_first(model, layer, output, given.input_size)
    return output


def layer_of(
    given: Given,
    layer: LayerName | Sequence[LayerName] | None,
    target: Target | Targets = None,
    *,
    pooled: bool = False,
) -> str:
    """The name of the layer that was asked for, by name or as a module, alone or in a list; else the default one.

    The default layer is looked for on the first image (see `explained_layer`), or on the whole batch where the network
    does not run on one image. Raises LayerError for several layers, and where there is none.
    """
    if layer is not None:
        layers = one_or_several(layer)
        if len(layers) != 1:
            raise LayerError(f"one layer is explained at a time, and {len(layers)} were asked for")
        return one_call(given.model, layers[0])
    reader = reader_of(given, target)

    def default_layer(images: list[int]) -> str:
        some = given.of_images(images, given.x[images])
        reading = reader.of_images(torch.tensor(images))
        return explained_layer(
            given.model,
            some.x,
            lambda output: reading.read(output, len(images)).logits,
            pooled=pooled,
            inputs=some.inputs,
        )

    try:
        return default_layer([0])
    except (RuntimeError, IndexError, AssertionError, ValueError) as error:
        if len(given.x) == 1 or isinstance(error, torch.OutOfMemoryError):
            raise
        _log.info("the layer is looked for on the whole batch, not on one image: %s", str(error).partition("\n")[0])
        return default_layer(list(range(len(given.x))))
