"""Which class, and which number of it: targets and scores mean the same in every method."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchviz_cnn.core.errors import InputError, ModelError, TargetError, did_you_mean
from torchviz_cnn.hooks.untouched import lend_input, untouched

Score = Literal["logit", "probability", "log_probability", "cross_entropy"]
Target = int | Tensor | Sequence[Any] | np.ndarray[Any, Any] | None

_BATCHED_BYTES = 512 * 2**20


def class_outputs(output: Any, batch: int) -> Tensor:
    """What a model gives, as class outputs (B, n) in float32.

    Takes a tensor (B, n), (B,) or (B, n, 1, 1), one in a field or key `logits`, or the first of a tuple. Raises
    ModelError for everything else, and for NaN.
    """
    found = output
    if isinstance(output, dict):
        found = output.get("logits", output.get("out"))
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ModelError(f"the model gives a {type(output).__name__}, not class scores (B, n)")
    shape = tuple(found.shape)
    if found.ndim == 1 and batch == len(found):
        found = found[:, None]
    if found.ndim > 2 and all(side == 1 for side in shape[2:]):
        found = found.flatten(1)
    if found.ndim != 2 or len(found) != batch:
        raise ModelError(f"the model gives a tensor {shape} for {batch} images, not class scores ({batch}, n)")
    nan = found.isnan().any(1)
    if bool(nan.any()):
        raise ModelError(
            f"the model gives NaN for image {int(nan.nonzero()[0, 0])}: some of its weights, its input or what it computes "
            "on the way are no finite numbers"
        )
    return found.float()


def resolve_target(target: Target, outputs: Tensor) -> tuple[Tensor, bool]:
    """Class indices (B, K) for a target, and whether it named one class per image (K = 1, to be left out again).

    None: each image's top class; an int: that class for all; (B,): one each; (B, K): K each. Raises TargetError for
    a class out of range or a shape that does not fit.
    """
    batch, classes = outputs.shape
    if target is None:
        return outputs.argmax(1, keepdim=True), True
    index = _as_index(target)
    if index.ndim == 0:
        index = index.expand(batch)
    one = index.ndim == 1
    if index.ndim > 2 or len(index) != batch or index.numel() == 0:
        raise TargetError(
            f"a target of shape {tuple(index.shape)} does not fit a batch of {batch}: give an int, ({batch},) or ({batch}, K)"
        )
    index = index.to(outputs.device)
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


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Class probabilities (B, n) in float32 of a batch: the softmax of the logits, or the sigmoid of a single one.

    Raises ModelError for a model that gives no class scores.

    >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.zeros(2, 3, 2, 2)).shape
    torch.Size([2, 5])
    """
    with untouched(model) as lent, torch.no_grad():
        return probabilities(class_outputs(lent(lend_input(lent, x)), len(x)))


def check_score(score: str) -> None:
    """Raise InputError for a score that does not exist."""
    if score not in get_args(Score):
        raise InputError(
            f"no score {score!r}{did_you_mean(str(score), get_args(Score)) or ';'} there are {', '.join(get_args(Score))}"
        )


def score_gradients(
    scores: Tensor, inputs: Sequence[Tensor], keep_graph: bool = False
) -> Iterator[tuple[slice, list[Tensor | None]]]:
    """Gradients of every column of scores (B, K) with respect to each input: (k, B, ...) for a slice of k columns.

    Several columns go back through the network in one batched pass, as many as memory allows; None stands for an
    input that the scores do not depend on. `keep_graph` keeps the graph for another pass over it.
    """
    for part in portions(scores.shape[1], inputs):
        keep = keep_graph or part.stop < scores.shape[1]
        yield part, passed_back(scores, inputs, one_hot(scores, part), keep)


def portions(count: int, inputs: Sequence[Tensor]) -> Iterator[slice]:
    """Of `count` gradients with respect to these inputs, as many at a time as memory allows."""
    step = max(1, _BATCHED_BYTES // max(1, 3 * sum(i.numel() * i.element_size() for i in inputs)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def one_hot(scores: Tensor, part: slice) -> Tensor:
    """What to pass back for some columns of scores (B, K), one by one: (k, B, K)."""
    select = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)[part, None]
    return select.expand(-1, *scores.shape)


def gradients_at(
    model: nn.Module, place: str, scores: Tensor, leaf: Tensor, keep_graph: bool = False
) -> Iterator[Tensor]:
    """The gradient of scores (B, K) with respect to one tensor, as (k, B, ...) for some of the classes at a time.

    Raises ModelError, which names the place, where none comes back.
    """
    parts = score_gradients(scores, [leaf], keep_graph) if scores.requires_grad else iter([(slice(0), [None])])
    for _, (gradient,) in parts:
        if gradient is not None:
            yield gradient
            continue
        raise ModelError(
            f"no gradient comes back to {place} of {type(model).__name__}: the score does not depend on it, or the "
            "model detaches it or runs a part of itself under torch.no_grad()"
        )


def passed_back(
    outputs: Tensor, inputs: Sequence[Tensor], gradients: Tensor, keep_graph: bool = False
) -> list[Tensor | None]:
    """Several gradients (k, ...) of one tensor, passed back to others in one pass: (k, ...) each, None if unrelated."""
    if len(gradients) > 1:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                return list(
                    torch.autograd.grad(
                        outputs, inputs, gradients, retain_graph=True, is_grads_batched=True, allow_unused=True
                    )
                )
        except RuntimeError:
            pass  # an operation of this model cannot be batched: one by one then
    last = len(gradients) - 1
    one_by_one = [
        torch.autograd.grad(outputs, inputs, gradient, retain_graph=keep_graph or k < last, allow_unused=True)
        for k, gradient in enumerate(gradients)
    ]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*one_by_one, strict=True)]


def _as_index(target: Any) -> Tensor:
    if isinstance(target, str):
        raise TargetError(f"a target is a class index, not {target!r}; categories.index(name) gives it")
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
