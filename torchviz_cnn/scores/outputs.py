"""What a network gives, read as outputs of classes, and what makes probabilities of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.core.errors import ModelError, NotFiniteError, TorchvizWarning, counted, kind_of
from torchviz_cnn.core.warn import say_once
from torchviz_cnn.hooks.calls import OptionalGradients
from torchviz_cnn.hooks.network import listed_names

Activation = Literal["softmax", "sigmoid", "none"]
"""What makes probabilities of outputs: `none` where the network ends in a softmax or sigmoid itself."""
Categories = tuple[str, ...] | None

_SQUASHED = {"sigmoid", "expit", "special_expit", "hardsigmoid", "softmax", "softmin"}
_LOGARITHMS = {"log_softmax", "log_sigmoid"}
_COPIED = {
    *("amax", "bfloat16", "cat", "clamp", "clip", "clone", "concat", "contiguous", "double", "flatten", "float"),
    *("getitem", "half", "mean", "reshape", "stack", "to", "type", "type_as"),
}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "rsub": lambda a, b: b if a <= b else math.inf,
}
"""The greatest value of an operation on values of at least 0, from the greatest of both; a divisor is a number."""

_log = logging.getLogger("torchviz_cnn")


class Ending(OptionalGradients):
    """Notices, in a block in which a network runs, whether it ends in a softmax or sigmoid of its own.

    It does where its output is what a softmax or sigmoid gave, a copy or a mean of these; and where every row is a
    distribution, and the network has computed exponentials. Where the output is what a single softmax over classes, or
    sigmoid, or the logarithm of one, gave, what stood before it is known too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._squashed: list[tuple[Tensor, int, float]] = []
        """What was computed from softmax and sigmoid alone, with its version, which grows where something is written in
        it, and the greatest value that it can have."""
        self._before: list[tuple[Tensor, int, Tensor]] = []
        """What a softmax or sigmoid, or its logarithm, gave, with its version, and what it was given."""
        self._exponentials = False
        self.largest = 0
        """The bytes of the largest tensor that gradients come back to: what the backward pass holds of each score."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        self._exponentials |= name == "exp" or name in _SQUASHED
        greatest = self._greatest_of(name, args)
        output = super().__torch_function__(func, types, args, kwargs)
        if isinstance(output, Tensor) and output.requires_grad:
            self.largest = max(self.largest, output.numel() * output.element_size())
        # Gates of whole maps are left out, so that none is kept in memory.
        small = isinstance(output, Tensor) and (name == "stack" or all(side == 1 for side in output.shape[2:]))
        if small and greatest is not None:
            self._squashed.append((output, output._version, greatest))
        before = args[0] if args else (kwargs or {}).get("input")
        if name == "log" and isinstance(before, Tensor):
            before = self._given(before)
        ends = name == "log" or name in _SQUASHED or name in _LOGARITHMS
        if small and ends and isinstance(before, Tensor) and before.shape == output.shape:
            self._before.append((output, output._version, before))
        return output

    def _given(self, squashed: Tensor) -> Tensor | None:
        """What a softmax or sigmoid was given; None for a tensor that none of them gave."""
        for output, version, before in reversed(self._before if squashed.layout == torch.strided else []):
            if output._version == version and output.shape == squashed.shape and _storage(output) == _storage(squashed):
                return before
        return None

    def logits(self, outputs: Tensor, batch: int) -> tuple[Tensor, Activation] | None:
        """What a softmax or sigmoid at the end was given (B, n), and which it is; None where that is not known."""
        for output, version, before in reversed(self._before):
            rows = _as_rows(before, batch)
            same = (
                output._version == version
                and output.numel() == outputs.numel()
                and _storage(output) == _storage(outputs)
            )
            if same and rows is not None and rows.shape == outputs.shape:
                kinds: tuple[Activation, ...] = ("softmax", "sigmoid")
                return next(((rows, kind) for kind in kinds if _is_end(outputs, rows.detach().float(), kind)), None)
        return None

    def activation(self, outputs: Tensor) -> Activation | None:
        """`none` for outputs (B, n) of a network that ends in a softmax or sigmoid; None where nothing tells."""
        greatest = self._greatest(outputs)
        if greatest is not None:
            return "none" if greatest < 1 + 1e-6 else None
        rounding = 1e-5 if outputs.dtype in (torch.float32, torch.float64) else 1e-2
        values = outputs.detach().float()
        certain = self._exponentials and values.shape[1] > 1 and bool((values >= 0).all())
        return "none" if certain and bool(((values.sum(1) - 1).abs() < rounding).all()) else None

    def _greatest_of(self, name: str, args: tuple[Any, ...]) -> float | None:
        """The greatest value of what a function gives, where it is computed from softmax and sigmoid alone."""
        if name in _SQUASHED:
            return 1.0
        if name in _COPIED and args and self._squashed:
            several = args[0] if isinstance(args[0], (tuple, list)) else args[:1]
        elif name in _ARITHMETIC and len(args) > 1 and self._squashed:
            several = args[:2]
        else:
            return None
        known = [greatest for part in several if (greatest := self._greatest(part)) is not None]
        if not known or len(known) < len(several) or (name == "div" and isinstance(args[1], Tensor)):
            return None
        return max(known) if name in _COPIED else _ARITHMETIC[name](*known)

    def _greatest(self, value: Any) -> float | None:
        if isinstance(value, (int, float)):
            return value if value > 0 else None
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return None
        for tensor, version, greatest in reversed(self._squashed):
            if tensor._version == version and _storage(tensor) == _storage(value):
                return greatest
        return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_end(outputs: Tensor, logits: Tensor, activation: Activation) -> bool:
    """Whether outputs are the probabilities that follow from logits, or their logarithms, but for rounding."""
    rounding = 1e-5 if outputs.dtype in (torch.float32, torch.float64) else 1e-2
    own = outputs.detach().float()
    return torch.allclose(own, probabilities(logits, activation), rtol=0, atol=rounding) or torch.allclose(
        own, log_probabilities(logits, activation), rtol=rounding, atol=rounding
    )


def class_outputs(output: Any, batch: int, categories: Categories = None) -> Tensor:
    """What a model gives, as class outputs (B, n) in float32; of one output with two class names, both: (B, 2).

    Takes a tensor (B, n), (B,), (B, n, 1, 1) or, for one image, (n,) or (); or one in a field or key `logits` or `out`,
    or in a tuple: its only one of these shapes, the one that the class names fit, or the first of several with the same
    n. Raises ModelError for everything else, and for NaN.
    """
    return read_classes(output, batch, categories)[0]


def read_classes(
    output: Any, batch: int, categories: Categories = None, ending: Ending | None = None
) -> tuple[Tensor, Activation]:
    """The class outputs of a model, as `class_outputs` gives them, and what makes probabilities of them.

    Of a model that ends in a softmax or sigmoid, what stands before it, if `ending` knows it.
    """
    scores = _scores_in(output, batch, categories)
    logits = _as_rows(scores, batch)
    if scores.shape == (batch, 0):
        raise ModelError(
            f"the model gives a tensor ({batch}, 0) for {counted(batch, 'image')}, no classes: it has no head"
        )
    if logits is None:
        kind = "" if scores.is_floating_point() else f" of {str(scores.dtype).removeprefix('torch.')}"
        what = f"a tensor {tuple(scores.shape)}{kind} for {counted(batch, 'image')}, not class scores ({batch}, n)"
        hint = _OF_MAPS.format(_place(scores, output)) if scores.ndim > 2 and len(scores) == batch else ""
        raise ModelError(f"the model gives {what}; {_CHOOSE}{hint}")
    nan = logits.isnan().any(1)
    if bool(nan.any()):
        raise NotFiniteError(
            f"the model gives NaN for image {int(nan.nonzero()[0, 0])}: some of its weights, its input or what it "
            "computes on the way are not finite numbers"
        )
    before = ending.logits(logits, batch) if ending is not None else None
    if before is not None:
        logits, activation = before
    else:
        activation = (ending and ending.activation(logits)) or usual_activation(logits)
    binary = logits.shape[1] == 1 and categories is not None and len(categories) == 2
    if categories is not None:
        warn_of_names(categories, logits.shape[1])
    return (both_classes(logits.float(), activation) if binary else logits.float()), activation


def warn_of_names(categories: Sequence[str], scores: int) -> None:
    """Warn, once, of class names of another number than the scores; two may name both classes of a single score."""
    if len(categories) != scores and (len(categories), scores) != (2, 1):
        names, scored = counted(len(categories), "class name"), counted(scores, "score")
        say_once(
            f"there {'is' if len(categories) == 1 else 'are'} {names}, and the network gives {scored}: names may stand "
            "beside other classes than theirs; give one for each score, in the order of the scores",
            TorchvizWarning,
        )


def shown_names(categories: Sequence[str] | None, own: Categories, scores: int | None) -> Categories:
    """The names of the classes in a picture: those that are given for it, or else the Network's own.

    Warns of another number than the scores, where that is known. Raises InputError for what is no list of names.
    """
    names = own if categories is None else listed_names(categories)
    if names is not None and scores is not None:
        warn_of_names(names, scores)
    return names


def usual_activation(outputs: Tensor) -> Activation:
    """What makes probabilities of outputs (B, n) where nothing else is known: a model of one output is binary."""
    return "sigmoid" if outputs.shape[1] == 1 else "softmax"


def both_classes(output: Tensor, activation: Activation) -> Tensor:
    """Both classes (B, 2) of the only output (B, 1) of a binary network, which is that of the second."""
    return torch.cat([1 - output if activation == "none" else -output, output], 1)


def probabilities(outputs: Tensor, activation: Activation | None = None) -> Tensor:
    """Probabilities (B, n) of class outputs; by default their softmax, or the sigmoid of a single one."""
    activation = activation or usual_activation(outputs)
    if activation == "none":
        return outputs
    return outputs.sigmoid() if activation == "sigmoid" else _defined(outputs).softmax(1)


def log_probabilities(outputs: Tensor, activation: Activation | None = None) -> Tensor:
    """The logarithm of `probabilities`."""
    activation = activation or usual_activation(outputs)
    if activation == "none":
        return outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()
    return F.logsigmoid(outputs) if activation == "sigmoid" else F.log_softmax(_defined(outputs), 1)


def _defined(outputs: Tensor) -> Tensor:
    """Outputs with a softmax that is defined: one infinite logit is a class that is certain. Raises ModelError."""
    if bool(outputs.detach().sum().isfinite()):
        return outputs
    certain = outputs.isposinf().sum(1)
    undefined = (certain > 1) | outputs.isneginf().all(1)
    if bool(undefined.any()):
        raise ModelError(
            f"the model gives infinite scores for image {int(undefined.nonzero()[0, 0])}, of which no probabilities "
            "follow: its numbers are too large for their type; run it in float32, or in bfloat16 where it is in float16"
        )
    return outputs.clamp(max=torch.finfo(outputs.dtype).max)


def _scores_in(output: Any, batch: int, categories: Categories) -> Tensor:
    """The tensor of class scores in what a model gives. Raises ModelError where there is none, or several."""
    scores: Any = output
    if isinstance(output, dict):
        scores = output.get("logits", output.get("out"))
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        scores = output.logits
    elif isinstance(output, (tuple, list)) and output:
        return _scores_among(output, batch, categories)
    if not isinstance(scores, Tensor):
        keys = f" with the keys {', '.join(map(repr, output))}" if isinstance(output, dict) else ""
        raise ModelError(f"the model gives {kind_of(output)}{keys}, not class scores (B, n); {_CHOOSE}")
    return scores


def _place(scores: Tensor, output: Any) -> str:
    """The option that chooses this part of what a model gives."""
    if isinstance(output, Tensor):
        return ""
    parts = (
        output.items() if isinstance(output, dict) else enumerate(output) if isinstance(output, (tuple, list)) else ()
    )
    return f" with output={next((key for key, part in parts if part is scores), 'logits')!r}"


_CHOOSE = "output= chooses a part of it, and target=, as grad_cam has it, takes a function of it"
_OF_MAPS = ", as tvc.targets.region(mask, class){}"
_OF_BOXES = ", as tvc.targets.box()"


def _scores_among(parts: tuple[Any, ...] | list[Any], batch: int, categories: Categories) -> Tensor:
    tensors = {place: part for place, part in enumerate(parts) if isinstance(part, Tensor) and part.is_floating_point()}
    rows = {place: _as_rows(part, batch) for place, part in tensors.items() if part.ndim}
    counts = {place: row.shape[1] for place, row in rows.items() if row is not None}
    fitting = [place for place, count in counts.items() if categories is not None and count == len(categories)]
    if len(fitting) == 1 or len(set(counts.values())) == 1:
        place = (fitting or list(counts))[0]
        if place:
            _log.info("the class scores are taken from place %d of what the model gives", place)
        return tensors[place]
    if counts:
        shapes = ", ".join(f"{place}: {tuple(tensors[place].shape)}" for place in counts)
        raise ModelError(f"several tensors that the model gives may be class scores ({shapes}); {_CHOOSE}")
    if not isinstance(parts[0], Tensor):
        hint = _CHOOSE + _OF_BOXES * (isinstance(parts[0], dict) and "scores" in parts[0])
        raise ModelError(f"the model gives {kind_of(parts)}, not class scores (B, n); {hint}")
    return parts[0]


def _as_rows(scores: Tensor, batch: int) -> Tensor | None:
    """Class scores as rows (B, n), also of a model that squeezes its output; None for another shape or kind."""
    if not scores.is_floating_point() or scores.layout != torch.strided or not scores.numel():
        return None
    if scores.ndim < 2 and (batch == 1 or scores.shape == (batch,)):
        return scores.reshape(batch, -1)
    if scores.ndim < 2 or len(scores) != batch or any(side != 1 for side in scores.shape[2:]):
        return None
    return scores.flatten(1)
