"""What is explained: which class, and which score of it. Targets and scores mean the same in every method."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, TargetError, TorchvizWarning, counted
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.inputs import Given, Input, Output, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, class_index
from torchviz_cnn.media.origin import names_of
from torchviz_cnn.scores.outputs import Activation, Categories, Ending, log_probabilities, probabilities
from torchviz_cnn.scores.predictions import Predictions
from torchviz_cnn.scores.reader import Reader, ReadyTarget, TargetFunction, label_of

Score = Literal["logit", "probability", "log_probability", "cross_entropy"]
Target = int | str | Tensor | Sequence[Any] | np.ndarray[Any, Any] | TargetFunction | None
"""None: each image's top class; an index or a class name: that class for all; (B,): one each; (B, K): K each; or a
function of the model's output."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What is explained of a batch: classes and which score of each, or a function; the same in every method."""

    logits: Tensor
    """What the model gives for all classes: (B, n), float32, part of the graph where there is one. Of one output with
    two class names, z, it is -z and z: (B, 2). Of a function, its K numbers: (B, K)."""
    classes: Tensor
    """The indices of the K classes of each image: (B, K). Of a function, 0 to K - 1."""
    single: bool
    """Whether one class per image was asked for; results are then without the dimension of the classes."""
    score: Score = "logit"
    activation: Activation | None = None
    """What makes probabilities of the logits; None: a softmax, or the sigmoid of a single one."""
    reader: Reader = field(default_factory=Reader)
    """How the logits are read from what the model gives."""

    @classmethod
    def of(
        cls,
        given: Given,
        output: Any,
        target: Target | Targets = None,
        score: Score = "logit",
        ending: Ending | None = None,
    ) -> Targets:
        """What a target asks for in a model's output for a batch.

        A target that is resolved already is taken over as it is. `ending` was on while the model ran, and tells whether
        the model ends in a softmax or sigmoid: what stands before it is explained then, or, where that cannot be
        reached, its output as it is, which a warning says.

        Raises ModelError for an output that is not class scores, TargetError for a target that does not fit.
        """
        if isinstance(target, Targets):
            return target.again(output, ending)
        reader = reader_of(given, target)
        check_score(score)
        logits, activation, single = reader.read(output, len(given.x), ending)
        if reader.function is not None:
            if score != "logit":
                raise InputError(f"score={score!r} is of classes, and the target is a function: it gives its own score")
            warn_of_probabilities(activation, score, label_of(reader.function))
            columns = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
            return cls(logits, columns, single, score, "none", reader.settled(output))
        classes, single = resolve_target(target, logits, reader.categories)
        warn_of_probabilities(activation, score)
        return cls(logits, classes, single, score, activation, reader)

    @property
    def scores(self) -> Tensor:
        """The score of each class: (B, K)."""
        return score_of(self.logits, self.classes, self.score, self.activation)

    @property
    def label(self) -> str | None:
        """What a function explains, in words; None for classes."""
        return None if self.reader.function is None else label_of(self.reader.function)

    def words(self, image: int, k: int) -> str:
        """What one score of an image is of, in words."""
        if self.label is None:
            return f"class {int(self.classes[image, k])}"
        return self.label if self.single else f"{self.label}[{k}]"

    def again(self, output: Any, ending: Ending | None = None) -> Targets:
        """The same, asked of another output of the model for as many images."""
        return replace(self, logits=self.reader.read(output, len(self.classes), ending).logits)

    def of_images(self, images: Tensor | Sequence[int]) -> Targets:
        """What is explained of some images of the batch, each as often as its index is named."""
        rows = torch.as_tensor(images, device=self.classes.device)
        reader = self.reader.of_images(rows)
        return replace(self, logits=self.logits[rows], classes=self.classes[rows], reader=reader)

    def squeezed(self, values: Tensor) -> Tensor:
        """Values (B, K, ...) without the dimension of the classes, where one class was asked for."""
        return values[:, 0] if self.single else values


def reader_of(given: Given, target: Target | Targets) -> Reader:
    """How what a target asks for is read from a model's output."""
    if isinstance(target, Targets):
        return target.reader
    function = target if callable(target) else None
    if isinstance(function, ReadyTarget):
        function = function.named(given.origin.categories)
    return Reader(given.output, given.origin.categories, function)


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
            f"target {int(wrong[0])} is out of range: the model has {counted(classes, 'class')}, 0 to {classes - 1}"
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


def predict(model: Model, x: Input, *, activation: Activation | None = None, output: Output = None) -> Predictions:
    """Predict class probabilities: a tensor that is shown as a table of the likeliest classes.

    `net.predict(photo)` of a Network is the same.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) or, with a Network, photos.
        activation: what makes probabilities of the outputs: `softmax`, `sigmoid` (classes that do not exclude each
            other), or `none` for the outputs as they are. By default `none` for a model that ends in a softmax or
            sigmoid itself, the sigmoid of a single output, or else the softmax.
        output: where the class scores are in what the model gives: a key, an index, an attribute (`"out"`,
            `"heads.0.logits"`), or a function that picks them. By default they are looked for.

    Returns:
        Probabilities (B, n) in float32; of a Network with one output and two class names, of both: (B, 2). `print` and
        notebooks show each image's five likeliest classes, `.table()` lists them.

    Raises:
        ModelError: for a model that gives no class scores.
        InputError: for an activation that does not exist.

    >>> from torch import nn
    >>> predictions = predict(nn.Sequential(nn.Flatten(), nn.Softmax(1)), torch.tensor([[[[1.0]], [[3.0]], [[0.0]]]]))
    >>> predictions
    image 0
      0.844  class 1 (1)
      0.114  class 0 (0)
      0.042  class 2 (2)
    >>> predictions.argmax(1)
    tensor([1])
    """
    if activation is not None:
        checks.one_of("activation", activation, get_args(Activation))
    with prepared(model, x, images=False, output=output) as given:
        with torch.no_grad(), HookManager(given.model) as hooks, Ending() as ending:
            raw = hooks.run_on(given.inputs(given.x), stop_early=False)
        outputs, usual, _ = reader_of(given, None).read(raw, len(given.x), ending)
        return Predictions.of(probabilities(outputs, activation or usual), given.origin, names_of(x, len(outputs)))


def asked(given: Given, target: Target, score: Score) -> Targets:
    """What a target asks for in the output of a model for its batch, which runs without gradients."""
    with torch.no_grad():  # also while the output is read: a function may have weights of its own
        with HookManager(given.model) as hooks, Ending() as ending:
            output = hooks.run_on(given.inputs(given.x.clone()), stop_early=False)
        return Targets.of(given, output, target, score, ending)


def scores_of(given: Given, x: Tensor, images: Tensor | Sequence[int], targets: Targets) -> Tensor:
    """The scores (n, K) of other inputs `x`, without gradients; `images` says to which of the batch each belongs."""
    some = given.of_images(images, x)
    with torch.no_grad():
        with HookManager(given.model) as hooks, Ending() as ending:
            output = hooks.run_on(some.inputs(x), stop_early=False)
        return targets.of_images(images).again(output, ending).scores


def warn_of_probabilities(activation: Activation | None, score: Score, function: str = "") -> None:
    """Warn that what is explained are not logits, where the model ends in a softmax or sigmoid.

    `function` is what explains a function of the class scores, which gives its own score.
    """
    if activation == "none" and score == "logit":
        what = f"what {function} is of" if function else "what is explained"
        instead = "" if function else "; score='log_probability', as grad_cam has it, explains their logarithm"
        warn(
            f"the model ends in a softmax or sigmoid: {what} are its probabilities, not logits, which hardly change "
            f"where they are near 0 or 1{instead}",
            TorchvizWarning,
        )


def check_score(score: str) -> None:
    """Raise InputError for a score that does not exist."""
    checks.one_of("score", score, get_args(Score))


def _with_indices(target: Any, categories: Categories) -> Any:
    """A target with class names replaced by their indices."""
    if isinstance(target, str):
        return class_index(categories, target)
    if isinstance(target, np.ndarray) and target.dtype.kind in "UO":
        target = target.tolist()
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
