"""What is explained: which class, and which number of it. Targets and scores mean the same in every method."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import ModelError, TargetError
from torchviz_cnn.hooks.inputs import Input, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, class_index

Score = Literal["logit", "probability", "log_probability", "cross_entropy"]
Target = int | str | Tensor | Sequence[Any] | np.ndarray[Any, Any] | None
"""None: each image's top class; an index or a class name: that class for all; (B,): one each; (B, K): K each."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The classes that are explained of a batch, and which number of each: resolved once, the same in every method."""

    logits: Tensor
    """What the model gives for all classes: (B, n), float32, part of the graph where there is one."""
    classes: Tensor
    """The indices of the K classes of each image: (B, K)."""
    single: bool
    """Whether one class per image was asked for; results are then without the dimension of the classes."""
    score: Score = "logit"

    @classmethod
    def of(
        cls,
        output: Any,
        batch: int,
        target: Target = None,
        score: Score = "logit",
        categories: tuple[str, ...] | None = None,
    ) -> Targets:
        """What a target asks for in a model's output for a batch of so many images.

        Raises ModelError for an output that is no class scores, TargetError for a target that does not fit.
        """
        check_score(score)
        logits = class_outputs(output, batch)
        classes, single = resolve_target(target, logits, categories)
        return cls(logits, classes, single, score)

    @property
    def scores(self) -> Tensor:
        """The score of each class: (B, K)."""
        return score_of(self.logits, self.classes, self.score)

    def squeezed(self, values: Tensor) -> Tensor:
        """Values (B, K, ...) without the dimension of the classes, where one class was asked for."""
        return values[:, 0] if self.single else values


def class_outputs(output: Any, batch: int) -> Tensor:
    """What a model gives, as class outputs (B, n) in float32.

    Takes a tensor (B, n), (B,) or (B, n, 1, 1), one in a field or key `logits`, or the first of a tuple. Raises
    ModelError for everything else, and for NaN.
    """
    logits = output
    if isinstance(output, dict):
        logits = output.get("logits", output.get("out"))
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        logits = output.logits
    elif isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise ModelError(f"the model gives a {type(output).__name__}, not class scores (B, n)")
    shape = tuple(logits.shape)
    if logits.ndim == 1 and batch == len(logits):
        logits = logits[:, None]
    if logits.ndim > 2 and all(side == 1 for side in shape[2:]):
        logits = logits.flatten(1)
    if logits.ndim != 2 or len(logits) != batch:
        raise ModelError(f"the model gives a tensor {shape} for {batch} images, not class scores ({batch}, n)")
    nan = logits.isnan().any(1)
    if bool(nan.any()):
        raise ModelError(
            f"the model gives NaN for image {int(nan.nonzero()[0, 0])}: some of its weights, its input or what it "
            "computes on the way are no finite numbers"
        )
    return logits.float()


def resolve_target(target: Target, outputs: Tensor, categories: tuple[str, ...] | None = None) -> tuple[Tensor, bool]:
    """Class indices (B, K) for a target, and whether it named one class per image (K = 1, to be left out again).

    Raises TargetError for a class out of range or unknown by name, and a shape that does not fit.
    """
    batch, classes = outputs.shape
    if target is None:
        return outputs.argmax(1, keepdim=True), True
    index = _as_index(_with_indices(target, categories))
    if index.ndim == 0:
        index = index.expand(batch)
    one = index.ndim == 1
    if index.ndim > 2 or len(index) != batch or index.numel() == 0:
        raise TargetError(
            f"a target of shape {tuple(index.shape)} does not fit a batch of {batch}: "
            f"give an int, ({batch},) or ({batch}, K)"
        )
    index = index.to(outputs.device, copy=True)  # one of inference mode could not take part in a graph
    wrong = index[(index < 0) | (index >= classes)]
    if len(wrong):
        raise TargetError(
            f"target {int(wrong[0])} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        )
    return (index[:, None] if one else index), one


def score_of(outputs: Tensor, target: Tensor, score: Score) -> Tensor:
    """The score of each target class: outputs (B, n) and classes (B, K) give (B, K).

    A model with a single output is taken for a binary one: its probability is the sigmoid.
    """
    check_score(score)
    if score == "logit":
        return outputs.gather(1, target)
    log = F.logsigmoid(outputs) if outputs.shape[1] == 1 else F.log_softmax(outputs, 1)
    chosen = log.gather(1, target)
    if score == "probability":
        return chosen.exp()
    return chosen if score == "log_probability" else -chosen


def probabilities(outputs: Tensor) -> Tensor:
    """Class probabilities (B, n) of logits: softmax, or the sigmoid of a single one."""
    return outputs.sigmoid() if outputs.shape[1] == 1 else outputs.softmax(1)


def predict(model: Model, x: Input) -> Tensor:
    """Predict class probabilities: the softmax of the logits, or the sigmoid of a single one.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) or, with a Network, photos.

    Returns:
        Probabilities (B, n) in float32.

    Raises:
        ModelError: for a model that gives no class scores.

    >>> from torch import nn
    >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.zeros(2, 3, 2, 2)).shape
    torch.Size([2, 5])
    """
    with prepared(model, x, images=False) as given, torch.no_grad(), HookManager(given.model) as hooks:
        output = hooks.run(given.x, stop_early=False)
        return probabilities(class_outputs(output, len(given.x)))


def check_score(score: str) -> None:
    """Raise InputError for a score that does not exist."""
    checks.one_of("score", score, get_args(Score))


def _with_indices(target: Any, categories: tuple[str, ...] | None) -> Any:
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
        raise TargetError(f"a target holds class indices, whole numbers, not {index.dtype}")
    return index.long()
