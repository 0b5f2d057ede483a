"""Scores of a batch, and the heatmaps of its predicted and true classes, from one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.cam.competition import competition
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS, cam_maps
from torchviz_cnn.attribution.cam.heatmap import require_places
from torchviz_cnn.attribution.methods import all_methods
from torchviz_cnn.core.errors import InputError, ModelError, TargetError
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.evaluation.rows import quiet
from torchviz_cnn.hooks.inputs import Given, Output, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.outputs import log_probabilities, probabilities
from torchviz_cnn.scores.targets import Targets, asked
from torchviz_cnn.scores.trace import Trace, layer_of, trace

COMPETITIVE = "competitive_cam"
LARGEST = 80
"""The most places a side that a map keeps; one of more, as of saliency, is averaged."""


class Explained(NamedTuple):
    """What a network says of a batch, on the CPU."""

    probabilities: Tensor
    """(B, n)."""
    log_probabilities: Tensor
    """(B, n)."""
    classes: Tensor
    """The predicted class and, with labels, the true one: (B, 1) or (B, 2)."""
    maps: Tensor
    """Their heatmaps: (B, 1, h, w) or (B, 2, h, w)."""


@dataclass(frozen=True)
class Explainer:
    """A network with the method that explains it."""

    model: Model
    method: str
    """Its name in the table of methods."""
    layer: LayerName | None = None
    """Whose maps are weighed; None for a method without one, and until `settled`, which makes a name of it."""
    output: Output = None

    def settled(self, x: Tensor) -> Explainer:
        """The same with the layer that the method takes by default on a batch of one, so that it is looked for once.

        Raises LayerError or ModelError for a network that the method cannot explain.
        """
        if self.layer is not None and "layer" not in all_methods()[self.method].options:
            raise InputError(f"{self.method} looks at no layer: leave layer out, or the method")
        if self.method not in (*CAM_METHODS, COMPETITIVE) and self.layer is None:
            return self
        with prepared(self.model, x, dims=(2,), output=self.output) as given:
            return replace(self, layer=layer_of(given, self.layer))

    def __call__(self, x: Tensor, true: Tensor | None = None) -> Explained:
        """The probabilities of a batch (B, C, H, W), and the heatmaps of its predicted and its true classes (B,)."""
        with prepared(self.model, x, dims=(2,), output=self.output) as given:
            if isinstance(self.layer, str) and self.method in (*CAM_METHODS, COMPETITIVE):
                targets, maps = self._of_trace(given, self.layer, true)
            else:
                targets, maps = self._of_any_method(given, x, true)
            logits = targets.logits.detach()
            shares = probabilities(logits, targets.activation).cpu()
            logs = log_probabilities(logits, targets.activation).cpu()
        return Explained(shares, logs, targets.classes.cpu(), _smaller(maps.detach().float()).cpu())

    def _of_trace(self, given: Given, layer: str, true: Tensor | None) -> tuple[Targets, Tensor]:
        with trace(given, [layer]) as run:
            require_places(given.model, layer, run.maps(layer))
            run = replace(run, targets=_both(run.targets, true))
            if self.method != COMPETITIVE:
                return run.targets, cam_maps(run, layer, [CAM_METHODS[self.method].formula])[0].relu()
        return run.targets, self._competing(given, layer, run)

    def _competing(self, given: Given, layer: str, run: Trace) -> Tensor:
        maps, shares = competition(given, layer, run)
        return maps.relu() * shares

    def _of_any_method(self, given: Given, x: Tensor, true: Tensor | None) -> tuple[Targets, Tensor]:
        """The same by the method's own function, after a forward pass that tells the predicted class."""
        targets = _both(asked(given, None, "logit"), true)
        options = {} if self.layer is None else {"layer": self.layer}
        explain = all_methods()[self.method].explain
        with quiet():
            heat = explain(self.model, x, target=targets.classes, output=self.output, **options)
        return targets, heat.values


def _both(targets: Targets, true: Tensor | None) -> Targets:
    """The predicted class, and the true one. Raises TargetError for one that the network does not have."""
    logits = targets.logits
    if logits.shape[1] == 1:
        raise ModelError(
            "the network has one output, and a survey needs the names of both classes: load_model(..., "
            "labels=['the class of 0', 'the class of 1']) names them"
        )
    predicted = logits.detach().argmax(1)
    if true is None:
        return replace(targets, classes=predicted[:, None], single=False)
    true = true.to(predicted.device)
    if bool((true >= logits.shape[1]).any()):
        wrong, count = int(true.max()), logits.shape[1]
        raise TargetError(f"a photo has the class {wrong}; the network has {count}, 0 to {count - 1}")
    return replace(targets, classes=torch.stack([predicted, true], 1), single=False)


def _smaller(maps: Tensor) -> Tensor:
    """Maps (B, K, h, w) of at most `LARGEST` places a side."""
    size = (min(maps.shape[2], LARGEST), min(maps.shape[3], LARGEST))
    return maps if size == tuple(maps.shape[2:]) else F.adaptive_avg_pool2d(maps, size)
