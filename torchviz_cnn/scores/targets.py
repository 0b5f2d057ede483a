"""What is explained: which class, and which score of it. Targets and scores mean the same in every method."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import TargetError, TorchvizWarning
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.inputs import Given, Input, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, class_index
from torchviz_cnn.scores.outputs import (
    Activation,
    Categories,
    Ending,
    class_outputs,
    log_probabilities,
    probabilities,
    read_classes,
)

Score = Literal["logit", "probability", "log_probability", "cross_entropy"]
Target = int | str | Tensor | Sequence[Any] | np.ndarray[Any, Any] | None
"""None: each image's top class; an index or a class name: that class for all; (B,): one each; (B, K): K each."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The classes that are explained of a batch, and which score of each: resolved once, the same in every method."""

    logits: Tensor
    """What the model gives for all classes: (B, n), float32, part of the graph where there is one. Of one output with
    two class names, z, it is -z and z: (B, 2)."""
    classes: Tensor
    """The indices of the K classes of each image: (B, K)."""
    single: bool
    """Whether one class per image was asked for; results are then without the dimension of the classes."""
    score: Score = "logit"
    activation: Activation | None = None
    """What makes probabilities of the logits; None: a softmax, or the sigmoid of a single one."""

    @classmethod
    def of(
        cls,
        output: Any,
        batch: int,
        target: Target | Targets = None,
        score: Score = "logit",
        categories: Categories = None,
        ending: Ending | None = None,
    ) -> Targets:
        """What a target asks for in a model's output for a batch of this many images.

        A target that is resolved already is taken over as it is. `ending` was on while the model ran, and tells whether
        the model ends in a softmax or sigmoid: its output is then explained as it is, which a warning says.

        Raises ModelError for an output that is not class scores, TargetError for a target that does not fit.
        """
        if isinstance(target, Targets):
            return replace(target, logits=class_outputs(output, batch, categories))
        return cls.of_classes(*read_classes(output, batch, categories, ending), target, score, categories)

    @classmethod
    def of_classes(
        cls, logits: Tensor, activation: Activation, target: Target, score: Score, categories: Categories
    ) -> Targets:
        """The same, of class outputs that are read already."""
        check_score(score)
        classes, single = resolve_target(target, logits, categories)
        warn_of_probabilities(activation, score)
        return cls(logits, classes, single, score, activation)

    @property
    def scores(self) -> Tensor:
        """The score of each class: (B, K)."""
        return score_of(self.logits, self.classes, self.score, self.activation)

    def of_image(self, index: int) -> Targets:
        """What is explained of one image alone."""
        one = slice(index, index + 1)
        return replace(self, logits=self.logits[one], classes=self.classes[one])

    def squeezed(self, values: Tensor) -> Tensor:
        """Values (B, K, ...) without the dimension of the classes, where one class was asked for."""
        return values[:, 0] if self.single else values


def resolve_target(target: Target, outputs: Tensor, categories: Categories = None) -> tuple[Tensor, bool]:
    """Class indices (B, K) for a target, and whether it named one class per image (K = 1, to be left out again).

    Raises TargetError for a class out of range or unknown by name, and a shape that does not fit.
    """
    batch, classes = outputs.shape
    if target is None:
        return outputs.argmax(1, keepdim=True), True
    index = _as_index(_with_indices(target, categories))
    if index.ndim == 0:
        index = index.expand(batch)
    single = index.ndim == 1
    if index.ndim > 2 or len(index) != batch or index.numel() == 0:
        raise TargetError(
            f"a target of shape {tuple(index.shape)} does not fit a batch of {batch}: "
            f"give an int, ({batch},) or ({batch}, K)"
        )
    if index.ndim == 2 and index.shape[1] == classes > 2 and _is_one_hot(index):
        raise TargetError("the target is one-hot; give the indices: target.argmax(1)")
    index = index.to(outputs.device, copy=True)  # one of inference mode could not take part in a graph
    wrong = index[(index < 0) | (index >= classes)]
    if len(wrong):
        raise TargetError(
            f"target {int(wrong[0])} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        )
    return (index[:, None] if single else index), single


def score_of(outputs: Tensor, target: Tensor, score: Score, activation: Activation | None = None) -> Tensor:
    """The score of each target class: outputs (B, n) and classes (B, K) give (B, K)."""
    check_score(score)
    if score == "logit":
        return outputs.gather(1, target)
    if score == "probability":
        return probabilities(outputs, activation).gather(1, target)
    log = log_probabilities(outputs, activation).gather(1, target)
    return log if score == "log_probability" else -log


def predict(model: Model, x: Input, *, activation: Activation | None = None) -> Tensor:
    """Predict class probabilities.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) or, with a Network, photos.
        activation: what makes probabilities of the outputs: `softmax`, `sigmoid` (classes that do not exclude each
            other), or `none` for the outputs as they are. By default `none` for a model that ends in a softmax or
            sigmoid itself, the sigmoid of a single output, or else the softmax.

    Returns:
        Probabilities (B, n) in float32; of a Network with one output and two class names, of both: (B, 2).

    Raises:
        ModelError: for a model that gives no class scores.
        InputError: for an activation that does not exist.

    >>> from torch import nn
    >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.zeros(2, 3, 2, 2)).shape
    torch.Size([2, 5])
    """
    if activation is not None:
        checks.one_of("activation", activation, get_args(Activation))
    with prepared(model, x, images=False) as given:
        outputs, usual = run_classes(given, given.x)
        return probabilities(outputs, activation or usual)


def run_classes(given: Given, x: Tensor) -> tuple[Tensor, Activation]:
    """The class outputs of a batch (B, n), without gradients, and what makes probabilities of them."""
    with torch.no_grad(), HookManager(given.model) as hooks, Ending() as ending:
        output = hooks.run(x, stop_early=False)
    return read_classes(output, len(x), given.origin.categories, ending)


def warn_of_probabilities(activation: Activation, score: Score) -> None:
    """Warn that what is explained are not logits, where the model ends in a softmax or sigmoid."""
    if activation == "none" and score == "logit":
        warn(
            "the model ends in a softmax or sigmoid: what is explained are its probabilities, not logits, which "
            "hardly change where they are near 0 or 1; score='log_probability' explains their logarithm",
            TorchvizWarning,
        )


def check_score(score: str) -> None:
    """Raise InputError for a score that does not exist."""
    checks.one_of("score", score, get_args(Score))


def _with_indices(target: Any, categories: Categories) -> Any:
    """A target with class names replaced by their indices."""
    if isinstance(target, str):
        return class_index(categories, target)
    if isinstance(target, (list, tuple)):
        return [_with_indices(one, categories) for one in target]
    return target


def _as_index(target: Any) -> Tensor:
    if not isinstance(target, (Tensor, np.ndarray, list, tuple)):
        try:
            if isinstance(target, bool):
                raise TypeError
            return torch.tensor(operator.index(target))
        except (TypeError, RuntimeError, OverflowError):
            raise TargetError(f"a target is None, an int or a tensor of class indices, not {target!r}") from None
    try:
        index = torch.as_tensor(target).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TargetError(f"a target is a rectangle of class indices, (B,) or (B, K), not {target!r}") from None
    if index.numel() and (index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool):
        raise TargetError(f"a target holds class indices, whole numbers, not {index.dtype}{_mended(index)}")
    return index.long()


def _is_one_hot(rows: Tensor) -> bool:
    return bool(((rows == 0) | (rows == 1)).all() and (rows != 0).sum(-1).eq(1).all())


def _mended(index: Tensor) -> str:
    """How a target of another type becomes one of indices."""
    if index.ndim in (1, 2) and index.shape[-1] > 1 and _is_one_hot(index):
        return f"; if it is one-hot, give the indices: target.argmax({index.ndim - 1})"
    whole = index.is_floating_point() and bool((index == index.round()).all())
    return "; target.long() makes indices of it" if whole else ""
