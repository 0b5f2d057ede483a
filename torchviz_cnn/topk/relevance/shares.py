"""Each unit's share in a score: activation x gradient, of all layers from one forward and one backward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import ModelError, TargetError, counted
from torchviz_cnn.hooks.inputs import Given, Output
from torchviz_cnn.hooks.network import Model, Network, category_name, class_index
from torchviz_cnn.media.origin import Origin
from torchviz_cnn.scores.gradients import score_gradients
from torchviz_cnn.scores.reader import ReadyTarget, label_of
from torchviz_cnn.scores.targets import Score, Target, check_score
from torchviz_cnn.scores.trace import trace


@dataclass(frozen=True, eq=False)
class Relevance:
    """The score in which channels have a share: one number for each image of a dataset."""

    target: Target
    """None, one class for all images, (N,) a class for each of them, or a function."""
    score: Score
    output: Output
    categories: tuple[str, ...] | None
    """The names of the classes, where they are known."""

    @classmethod
    def of(cls, model: Model, count: int, target: Target, score: Score, output: Output) -> Relevance:
        """What is asked of a dataset of `count` images. Raises TargetError for a target that does not fit."""
        check_score(score)
        categories = model.categories if isinstance(model, Network) else None
        if isinstance(target, ReadyTarget):
            target = target.named(categories)
        elif isinstance(target, str):
            target = class_index(categories, target)
        elif isinstance(target, (Tensor, np.ndarray, list, tuple)):
            target = _of_each(target, count, categories)
        return cls(target, score, output, categories)

    def shares(
        self, model: nn.Module, x: Tensor, images: Tensor, layers: Sequence[str]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Give of each layer its name, what it gave, and each unit's share in the score, of the same shape.

        Args:
            model: a frozen module.
            x: a batch (B, C, H, W) on its device.
            images: the places of its images in the dataset: (B,).
            layers: names of calls.
        """
        with self._traced(model, x, images, layers) as (activations, gradients):
            for layer in layers:
                gave, gradient = activations[layer].detach(), gradients.pop(layer)
                gave = gave.to(torch.promote_types(gave.dtype, torch.float32))
                yield layer, gave, torch.zeros_like(gave) if gradient is None else gave * gradient.to(gave.dtype)

    def reached(self, model: nn.Module, x: Tensor, layers: Sequence[str], asked: set[str]) -> list[str]:
        """The layers on which the score of an image depends, of all of them.

        Raises ModelError where it does not depend on one that was asked for by its name, or on none.
        """
        with self._traced(model, x, torch.zeros(len(x), dtype=torch.long), layers) as (_, gradients):
            without = [layer for layer in layers if gradients[layer] is None]
        wrong = [layer for layer in without if layer in asked or len(without) == len(layers)]
        if wrong:
            raise ModelError(
                f"the score of {self.words()} does not depend on layer {wrong[0]!r} of {type(model).__name__}: its "
                "channels have no relevance; name a layer before the score, or another target or output"
            )
        return [layer for layer in layers if layer not in without]

    def words(self) -> str:
        """Whose score it is, in words."""
        if self.target is None:
            return "each image's top class"
        if callable(self.target):
            return label_of(self.target)
        if isinstance(self.target, Tensor):
            return "a class given for each image"
        return category_name(self.categories, int(self.target))  # type: ignore[arg-type]

    def identity(self) -> dict[str, Any]:
        """What identifies it, the same in every process. Of a function it is its name, not what it does."""
        target: Any = self.target if isinstance(self.target, int) else self.words()
        if isinstance(self.target, Tensor):
            target = hashlib.sha256(self.target.numpy().tobytes()).hexdigest()
        elif callable(self.target) and not isinstance(self.target, ReadyTarget):
            target = _name_of(self.target)
        output = _name_of(self.output) if callable(self.output) else self.output
        return {"by": "relevance", "target": target, "score": self.score, "output": output}

    def _of_images(self, images: Tensor) -> Target:
        if isinstance(self.target, ReadyTarget):
            return self.target.of_images(images)
        return self.target[images] if isinstance(self.target, Tensor) else self.target

    @contextmanager
    def _traced(
        self, model: nn.Module, x: Tensor, images: Tensor, layers: Sequence[str]
    ) -> Iterator[tuple[Mapping[str, Tensor], dict[str, Tensor | None]]]:
        """What layers gave for a batch, and the gradients of the scores with respect to it; None: there is none."""
        given = Given(model, x, Origin(None, None, self.categories), self.output)
        with torch.enable_grad(), trace(given, layers, self._of_images(images), self.score, as_maps=False) as run:
            scores, activations = run.targets.scores, [run.activations[layer] for layer in layers]
            if scores.shape[1] != 1:
                raise TargetError(
                    f"the target {self.words()} gives {scores.shape[1]} numbers for each image: relevance is of one"
                )
            (gradients,) = score_gradients(scores, activations, largest=run.largest)
            yield (
                run.activations,
                {
                    layer: None if gradient is None else gradient[0]
                    for layer, gradient in zip(layers, gradients, strict=True)
                },
            )


def _of_each(target: Any, count: int, categories: tuple[str, ...] | None) -> Tensor:
    """A class for each image of a dataset, by its index. Raises TargetError for what is not one for each."""
    if isinstance(target, (list, tuple)):
        target = [class_index(categories, one) if isinstance(one, str) else one for one in target]
    try:
        rows = torch.as_tensor(target).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"a target is a class, or one for each image of the dataset, not {target!r}") from None
    whole = rows.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if tuple(rows.shape) != (count,) or not whole:
        raise TargetError(
            f"a target of {rows.dtype} {tuple(rows.shape)} does not fit a dataset of {counted(count, 'image')}: "
            f"relevance is of one class for all, of one for each by its index ({count},), or of a function"
        )
    return rows.long()


def _name_of(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
