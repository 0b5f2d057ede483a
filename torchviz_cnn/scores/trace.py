"""One forward pass from which activations of layers, scores and their gradients are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from torchviz_cnn.core.errors import LayerError, ModelError
from torchviz_cnn.core.names import LayerName, one_call, one_or_several
from torchviz_cnn.hooks.inputs import Given
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.relu_rules import ReluRule, Rule
from torchviz_cnn.layers.defaults import explained_layer
from torchviz_cnn.layers.layout import Layout, Layouts
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
    """What the layers gave, by name, in execution order, as they gave it: part of the graph."""
    targets: Targets
    rule: ReluRule | None = None
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """How maps lie in what the layers gave."""
    largest: int = 0
    """The bytes of the largest tensor between the layers and the scores."""

    def maps(self, layer: str) -> Tensor:
        """The maps in what a layer gave, or the `INPUT`: (B, C, *S), detached; a view."""
        return self._maps_in(layer, self.activations[layer].detach())

    def _maps_in(self, layer: str, tensor: Tensor) -> Tensor:
        return self.layouts[layer].maps(tensor) if layer in self.layouts else tensor

    def gradients(
        self, layers: Sequence[str], *, rule: Rule | None = None, keep_graph: bool = False
    ) -> Iterator[dict[str, Tensor | None]]:
        """The gradients of the scores with respect to what some layers gave, a few classes at a time.

        Args:
            layers: names of layers of this trace, and `INPUT`.
            rule: the backward rule of ReLUs, of a trace that was made under another.
            keep_graph: whether gradients will be read once more after this (False).

        Yields:
            By layer, (B, k, C, *S) in float32; None for a layer that the scores do not depend on.
        """
        if self.rule is not None and rule is not None:
            self.rule.rule = rule
        scores, inputs = self.targets.scores, [self.activations[name] for name in layers]
        for parts in score_gradients(scores, inputs, keep_graph, largest=self.largest):
            # Class by class in memory, image by image in use: the transposition is a view.
            yield {
                name: None if part is None else self._maps_in(name, part.detach().transpose(0, 1)).float()
                for name, part in zip(layers, parts, strict=True)
            }

    def gradient(self, layer: str, *, rule: Rule | None = None, keep_graph: bool = False) -> Tensor:
        """The gradients of all classes with respect to one layer's maps or the `INPUT`: (B, K, C, *S), float32.

        Raises ModelError where none comes back.
        """
        parts = [
            self.required(layer, part[layer]) for part in self.gradients([layer], rule=rule, keep_graph=keep_graph)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def required(self, layer: str, gradient: Tensor | None) -> Tensor:
        """The gradient (B, K, C, *S) with respect to a layer; raises ModelError where none comes back to its places."""
        layout = self.layouts.get(layer)
        given = require_gradient(gradient, self.model, f"layer {layer!r}" if layer != INPUT else "the input")
        if layout is not None and layout.leading and not bool(given.any()):
            raise ModelError(
                f"no gradient comes back to the {layout} of layer {layer!r} of {type(self.model).__name__}: behind it "
                "the score depends on its class token alone, if at all; name a layer before the last attention, or none"
            )
        return given


@contextmanager
def trace(
    given: Given,
    layers: Sequence[str],
    target: Target | Targets = None,
    score: Score = "logit",
    rule: ReluRule | None = None,
    *,
    check: Callable[[str, Any], Any] | None = None,
    require_relu: bool = True,
    as_maps: bool = True,
) -> Iterator[Trace]:
    """Run a model once, to its end, and keep what is needed to differentiate scores with respect to layers' maps.

    The layer that runs first becomes the leaf of the graph: nothing before it is differentiated. With `INPUT` among
    them, the input does.

    Args:
        given: the model and its batch.
        layers: names of calls that give maps or tokens (see `Layouts`), and `INPUT`.
        target: which classes, see `Target`, or what was resolved before.
        score: the score to explain, see `Score`.
        rule: the backward rule of ReLUs.
        check: called with the name and the output of each call: gives None for one that is left out.
        require_relu: whether a rule that meets no ReLU is an error.
        as_maps: whether the layers must give maps; else their tensors are kept and differentiated as they are.

    Raises:
        LayerError: for a layer that does not exist, is not reached or gives no maps, and a rule that meets no ReLU.
        TargetError: for a target that does not fit.
        ModelError: for a model that gives no class scores.
    """
    model, x = given.model, given.x
    ruling = rule if rule is not None and rule.rule != "standard" else None
    leaf = x.detach().requires_grad_() if INPUT in layers else x.detach()
    named = [name for name in layers if name != INPUT]

    known, layouts = Layouts(model, x, given.layout), dict[str, Layout]()
    watched = _Watched()

    def maps(name: str, output: Any) -> Tensor | None:
        watched.begin()
        if check is not None and check(name, output) is None:
            return None
        tensor = known.tensor(name, output)
        if as_maps:
            layouts[name] = known.of(name, tensor)
        return tensor

    with HookManager(model) as hooks, hooks.record(named, maps) as acts:
        if named:
            known.watch(hooks)
        with ruling or contextlib.nullcontext():
            at_once = INPUT in layers or ruling is not None or hooks.asks_for_gradients
            run = partial(hooks.run_on, given.inputs(leaf.clone()), stop_early=False)
            output, ending = watched.run(run, at_once)
        hooks.require_reached()
        if ruling is not None:
            ruling.require_ruled(model, output)
            if require_relu:
                ruling.require_met(model)
        targets = Targets.of(given, output, target, score, ending)
        kept = {**acts, **({INPUT: leaf} if INPUT in layers else {})}
        yield Trace(model, kept, targets, rule, layouts, ending.largest)


class _Watched:
    """A forward pass of which it is noticed how it ends: from its first layer that is kept on, where that can be.

    The scores are computed after that layer, and the mode that watches takes time for each function it sees.
    """

    def __init__(self) -> None:
        self._ending = Ending()
        self._on, self._outer = contextlib.ExitStack(), _modes()
        self._waits = self._missed = False

    def begin(self) -> None:
        """Watch from here on; where the forward has put on a mode of its own, it would take off this one instead."""
        if self._waits:
            self._waits = False
            self._missed = _modes() != self._outer
            if not self._missed:
                self._on.enter_context(self._ending)

    def run(self, forward: Callable[[], Any], at_once: bool) -> tuple[Any, Ending]:
        """Return what the network gives, and how it ended."""
        with self._on:
            self._outer, self._waits = _modes(), not at_once
            if at_once:
                self._on.enter_context(self._ending)
            output = forward()
            self._waits = False
        if self._missed:
            _log.info("the network runs once more: at the layer that is explained, it has a mode of PyTorch's on")
            with self._ending:
                output = forward()
        return output, self._ending


def _modes() -> list[Any]:
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


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
            reached=reader.function is not None,
            inputs=some.inputs,
            layout=given.layout,
        )

    try:
        return default_layer([0])
    except (RuntimeError, IndexError, AssertionError, ValueError) as error:
        if len(given.x) == 1 or isinstance(error, torch.OutOfMemoryError):
            raise
        _log.info("the layer is looked for on the whole batch, not on one image: %s", str(error).partition("\n")[0])
        return default_layer(list(range(len(given.x))))
