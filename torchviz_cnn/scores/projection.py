"""Units projected down to the pixels of the input: the deconvnet's way, or by guided gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import LayerError, ModelError, counted
from torchviz_cnn.hooks.inputs import Given
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.relu_rules import OtherActivations, relu_rule
from torchviz_cnn.layers.layout import require_channels_first
from torchviz_cnn.scores.gradients import require_gradient, score_gradients

Projection = Literal["deconvnet", "guided"]
"""`deconvnet`: a unit's activation sent down through the deconvnet of Zeiler & Fergus; `guided`: the unit's gradient
under guided backpropagation."""


@dataclass(frozen=True, eq=False)
class Units:
    """Layers' maps under a backward rule, from which units are projected.

    Used inside the block of `projected_units`.
    """

    maps: dict[str, Tensor]
    """What each layer gave: (B, C, h, w), of one place for features (B, C); part of the graph."""
    projection: Projection
    _model: nn.Module
    _leaf: Tensor

    def project(self, layer: str, channels: Tensor, unit_masks: Tensor, *, keep_graph: bool = False) -> Tensor:
        """Project units of a layer: (B, U, C, H, W), float32.

        Args:
            layer: a layer of `maps`.
            channels: the channel of each of U units for each image: (B, U).
            unit_masks: which places of the channel's map belong to each unit, as 0 or 1: (B, U, h, w).
            keep_graph: whether another call follows.
        """
        maps = self.maps[layer].float()
        own = maps[torch.arange(len(maps), device=maps.device)[:, None], channels] * unit_masks
        # The gradient of this is the unit's own gradient times the unit.
        signal = own.detach() if self.projection == "deconvnet" else torch.ones_like(own)
        scores = (own * signal).sum((2, 3))
        parts = [
            require_gradient(part, self._model, f"the input from layer {layer!r}").float()
            for (part,) in score_gradients(scores, [self._leaf], keep_graph)
        ]
        return torch.cat(parts).transpose(0, 1).contiguous()


@contextmanager
def projected_units(
    given: Given,
    layers: Sequence[str],
    projection: Projection = "deconvnet",
    other_activations: OtherActivations = "error",
) -> Iterator[Units]:
    """Run a model as far as the last of these layers, so that units of them can be projected down to the input.

    Raises LayerError for a layer that does not exist, is not reached or gives no maps, and for activations that are not
    ReLUs (see `relu_rule`); ModelError for NaN.
    """
    checks.one_of("projection", projection, get_args(Projection))
    model, leaf = given.model, given.x.detach().requires_grad_()

    def check(name: str, output: Any) -> Tensor:
        return require_features(model, name, output, len(leaf), given.input_size)

    rule = relu_rule(projection, other_activations=other_activations)
    with HookManager(model) as hooks, hooks.record(layers, check) as acts:
        with rule:
            hooks.run_on(given.inputs(leaf.clone()))
        hooks.require_reached()
        rule.require_ruled(model, dict(acts))
        for name, output in acts.items():
            if not bool(output.detach().sum().isfinite()) and bool(output.detach().isnan().any()):
                raise ModelError(
                    f"layer {name!r} of {type(model).__name__} gives NaN: some of its weights, or what it computes, "
                    "are not numbers"
                )
        yield Units({name: as_maps(output) for name, output in acts.items()}, projection, model, leaf)


def require_features(
    model: nn.Module, layer: str, output: Any, batch: int, image: tuple[int, ...] | None = None
) -> Tensor:
    """What a layer gives, if it is maps (B, C, h, w) or features (B, C); raises LayerError otherwise."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 4) or not output.is_floating_point():
        what = f"{tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(
            f"layer {layer!r} of {type(model).__name__} gives {what}, neither maps (B, C, h, w) nor numbers (B, C)"
        )
    if len(output) != batch or not output.numel():
        raise LayerError(
            f"layer {layer!r} gives {tuple(output.shape)} for {counted(batch, 'image')}: they cannot be told apart"
        )
    require_channels_first(model, layer, output, image)
    return output


def as_maps(output: Tensor) -> Tensor:
    """Maps (B, C, h, w) as they are, features (B, C) as maps of one place."""
    return output if output.ndim == 4 else output[:, :, None, None]
