"""What is watched of a network while it is trained, and how one step of the training is looked at."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.ascent.maximize import filter_patterns
from torchviz_cnn.ascent.recipes import Recipe, as_settings
from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.core.errors import DeadFilterWarning, EmptyMapWarning, NotFiniteError, TorchvizWarning, one_line
from torchviz_cnn.core.names import Call, named_layers, unwrap
from torchviz_cnn.hooks.inputs import Output, input_for
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, category_name, module_of
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.layout import channels_last
from torchviz_cnn.media import render
from torchviz_cnn.media.bands import colour
from torchviz_cnn.scores.outputs import probabilities, warn_of_names
from torchviz_cnn.watch.checkpoint import Checkpoint
from torchviz_cnn.watch.photos import WatchedPhoto

_log = logging.getLogger("torchviz_cnn")


@dataclass(frozen=True, eq=False)
class Subject:
    """The same over all of a training: whose photos, which class of each, by which method, at which layer."""

    model: Model
    x: Tensor
    """The photos as the network gets them: (B, C, H, W)."""
    photos: tuple[WatchedPhoto, ...]
    target: int | list[int] | None
    """One class for all photos, one for each, or None for the likeliest of each at each step."""
    method: str
    layer: str | None
    """The layer of the heatmaps; None for the one that the method takes by default."""
    channels: Mapping[str, list[int]]
    """The channels of each layer of which filter patterns are made."""
    first: str | None
    """The convolution whose weights are shown as they are; None where there is none, or patterns are made."""
    counted: tuple[Call, ...]
    """The calls of layers whose dead channels are counted."""
    categories: tuple[str, ...] | None
    output: Output
    recipe: Recipe
    seed: int

    @property
    def name(self) -> str:
        """What the network is called."""
        own = getattr(self.model, "name", None)
        return own if isinstance(own, str) and own != "network" else type(unwrap(module_of(self.model))).__name__

    def words(self, target: int) -> str:
        """The name of a class."""
        return category_name(self.categories, target)

    def identity(self) -> dict[str, Any]:
        """What two runs that share a folder have in common, as JSON can hold it."""
        pixels = self.x.detach().float().cpu().contiguous().numpy().tobytes()
        return {
            "network": self.name,
            "photos": hashlib.sha256(f"{tuple(self.x.shape)}".encode() + pixels).hexdigest(),
            "target": self.target,
            "method": self.method,
            "layer": self.layer,
            "channels": dict(self.channels),
            "first_filters": self.first,
            "counted": [str(call) for call in self.counted],
            "patterns": as_settings(self.recipe),
            "seed": self.seed,
        }

    def look(self, step: int, loss: float | None, layer: str | None, *, again: bool) -> tuple[Checkpoint, str | None]:
        """Look at the network as it is now, and leave it as it is. Gives also the layer that was explained.

        With autocast off, whatever the loop has on: heatmaps of all steps are of one precision. What is said of the
        network (a TorchvizWarning) is said once: not where it is looked at `again`.
        """
        device = next((p.device.type for p in unwrap(module_of(self.model)).parameters()), "cpu")
        explain = methods_of("cam")[self.method].explain
        with untouched(self.model) as module, torch.autocast(device, enabled=False), warnings.catch_warnings():
            for category in (TorchvizWarning,) if again else (EmptyMapWarning, DeadFilterWarning):
                warnings.simplefilter("ignore", category)
            try:
                heat: Any = explain(self.model, self.x, target=self.target, layer=layer, output=self.output)
                shares = probabilities(heat.logits, heat.activation).float().cpu()
                layers, dead, channels = self._dead(module)
                pictures = self._pictures(module)
            except NotFiniteError as error:
                _log.warning("step %d has no heatmap: %s", step, one_line(error))
                target = torch.tensor(self.target if self.target is not None else 0).expand(len(self.x)).clone()
                return Checkpoint.without_numbers(step, loss, target, one_line(error)), layer
            if self.categories is not None:
                warn_of_names(self.categories, heat.logits.shape[1])
        target = heat.target.cpu()
        confidence, predicted = shares.max(1)
        own = shares.gather(1, target[:, None])[:, 0]
        values = heat.values.relu().float().cpu()
        seen = (values, target, own, predicted, confidence, layers, dead, channels)
        return Checkpoint(step, loss, *seen, pictures), heat.layer

    def _dead(self, module: nn.Module) -> tuple[tuple[str, ...], Tensor, Tensor]:
        """Which layers ran, how many channels of each are never above zero on the photos, and how many it has."""
        layers, alive = named_layers(module), dict[str, Tensor]()

        def note(name: str, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 2:
                last = channels_last(layers[name.partition("#")[0]], output, tuple(self.x.shape[2:]))
                maps = output.detach().movedim(-1, 1) if last else output.detach()
                alive[name] = maps.transpose(0, 1).flatten(1).amax(1) > 0

        with torch.no_grad(), HookManager(module) as hooks:
            hooks.on_forward([str(call) for call in self.counted], note)
            hooks.run(input_for(module, self.x), stop_early=False)
        counts = torch.tensor([[int((~one).sum()), len(one)] for one in alive.values()]).view(-1, 2)
        return tuple(alive), counts[:, 0].contiguous(), counts[:, 1].contiguous()

    def _pictures(self, module: nn.Module) -> dict[str, Tensor]:
        """Filter patterns as pictures, each from the same noise at every step; or the weights of the first layer."""
        pictures = {}
        for layer, channels in self.channels.items():
            made = filter_patterns(self.model, layer, channels, preset=self.recipe, seed=self.seed)
            tiles = [np.asarray(made.image(i)) for i in range(len(channels))]
            pictures[layer] = torch.from_numpy(np.stack(tiles))
        if self.first is not None:
            weight = named_layers(module)[self.first].weight.detach().float().cpu()  # type: ignore[union-attr, operator]
            drawn = [colour(one.numpy()) for one in weight]  # type: ignore[union-attr]
            peak = float(np.abs(drawn).max()) or 1.0
            pictures[self.first] = torch.from_numpy(np.stack([render.signed_colours(one, peak=peak) for one in drawn]))
        return pictures
