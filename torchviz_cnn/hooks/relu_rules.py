"""The backward rule of every ReLU, at the level of functions: its own, guided backpropagation's, or the deconvnet's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import BackwardHookFunction

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.core.graph import graph_nodes
from torchviz_cnn.hooks.interrupts import FunctionMode
from torchviz_cnn.hooks.untouched import saved_tensors_hooks

Rule = Literal["standard", "guided", "deconvnet"]
OtherActivations = Literal["error", "plain"]
_PLAIN = "other_activations='plain', as saliency and deconvnet have it, lets its own gradient through"


def relu_rule(rule: Rule, *, other_activations: OtherActivations = "error") -> ReluRule:
    """Give every ReLU that runs inside the block a backward rule, for g the gradient that comes to it and x its input:

        standard    g * (x > 0)
        guided      relu(g) * (x > 0)      Springenberg et al., arXiv 1412.6806
        deconvnet   relu(g)                Zeiler & Fergus, arXiv 1311.2901

    A ReLU is `nn.ReLU`, `F.relu`, `torch.relu`, `Tensor.relu`, `clamp(min=0)` and `threshold(x, 0, 0)`, in place or
    not; also those that clip above (`relu6`, `hardtanh(0, c)`, `clamp(0, 6)`), open where 0 < x < 6. The model is not
    touched: the rule belongs to the block, and its `count` tells how many ReLUs ran that a gradient goes back through.
    A graph made inside the block keeps its rule, wherever it is differentiated; also under activation checkpointing
    (`use_reentrant=False`).

    Args:
        rule: `standard`, `guided` or `deconvnet`.
        other_activations: `error`: others on the way (GELU, SiLU, Hardswish, LeakyReLU, tanh, ...) raise LayerError,
            and so do ReLUs that the rule does not reach (scripted, written as a mask or a maximum, custom functions);
            `plain`: they keep their own gradient, as gates that squash (sigmoid, softmax) always do.

    Returns:
        The block, a context manager.

    Raises:
        InputError: for a rule that does not exist.

    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> with relu_rule("guided") as rule:
    ...     y = torch.relu(x) * torch.tensor([1.0, 1.0, -1.0])
    ...     torch.autograd.grad(y.sum(), x)[0].tolist(), rule.count
    ([0.0, 1.0, 0.0], 1)
    """
    checks.one_of("ReLU rule", rule, get_args(Rule))
    checks.one_of("other_activations", other_activations, get_args(OtherActivations))
    return ReluRule(rule, other_activations)


class ReluRule(FunctionMode):
    """The block that `relu_rule` opens."""

    def __init__(self, rule: Rule, other_activations: OtherActivations) -> None:
        super().__init__()
        self.rule: Rule = rule
        """Read when a gradient passes: a graph made under `guided` can go back under `standard` too."""
        self.count = 0
        """How many ReLUs ran that a gradient goes back through; not those of a table of positions, say."""
        self._other_activations = other_activations
        self._packed = False

    def require_met(self, model: nn.Module) -> None:
        """Raise LayerError if a gradient goes back through no ReLU, as the rule then had nothing to rule."""
        if not self.count:
            raise LayerError(f"the {self.rule} rule met no ReLU in {type(model).__name__}, so nothing would change")

    def require_ruled(self, model: nn.Module, output: Any) -> None:
        """Raise LayerError where a ReLU, or another activation, made this output and the rule does not reach it.

        Those are scripted code, a ReLU written as a maximum, a mask or `torch.where`, and an `autograd.Function`. They
        are looked for in the graph of the output, which the forward pass has made. A mask that is a parameter or buffer
        of the model is none: it is the same for every input.
        """
        if self.rule == "standard" or self._other_activations != "error":
            return
        constants = {_memory(t) for t in (*model.parameters(), *model.buffers())}
        for node in graph_nodes(output):
            if _masks(node, self._packed, constants):
                name = node.name().rpartition("::")[2].rstrip("01").removesuffix("Backward")
                raise LayerError(
                    f"the {self.rule} rule does not reach everything in {type(model).__name__} that may be an "
                    f"activation: its graph has {name!r}, from scripted code, a custom autograd.Function, or a ReLU "
                    f"written by hand; write it as torch.relu, or {_PLAIN}"
                )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._packed = self._packed or saved_tensors_hooks() is not None
        read = _RECTIFIERS.get(func)
        call = read(*args, **kwargs) if read is not None else None
        if call is None:
            if func in _OTHERS and self._other_activations == "error":
                self._refuse(_OTHERS[func], args)
            if self._packed and func in _COMPARISONS and self._other_activations == "error":
                self._refuse("a comparison under activation checkpointing, which may make a mask", args)
            return func(*args, **kwargs)
        differentiated = torch.is_grad_enabled() and call.input.requires_grad
        self.count += differentiated
        if self.rule == "standard" or not differentiated:
            return _rectified(*call)
        return _Rectify.apply(call.input, self, call.top, call.inplace)  # type: ignore[no-untyped-call]

    def _refuse(self, name: str, args: tuple[Any, ...]) -> None:
        differentiated = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if differentiated and self.rule != "standard":
            raise LayerError(f"the {self.rule} rule is one for ReLUs, and this network also uses {name}; {_PLAIN}")


class _Call(NamedTuple):
    """One call of a ReLU: its input, the value it clips at (infinity: none), and whether it writes into its input."""

    input: Tensor
    top: float
    inplace: bool


def _rectified(x: Tensor, top: float, inplace: bool) -> Tensor:
    if top == math.inf:
        return x.relu_() if inplace else x.relu()
    return F.hardtanh(x, 0.0, top, inplace)


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, rule: ReluRule, top: float, inplace: bool) -> Tensor:
        return _rectified(x, top, inplace)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.rule, ctx.top, inplace = inputs
        if inplace:
            ctx.mark_dirty(x)
        # Saved under every rule: activation checkpointing runs the model's own ReLU again to get it back (PyTorch takes
        # the mode off while it differentiates), and one saves as many tensors as the other.
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rule, aten = ctx.rule.rule, torch.ops.aten
        if rule == "deconvnet":
            return aten.threshold_backward(gradient, gradient, 0), None, None, None
        (output,) = ctx.saved_tensors
        if ctx.top == math.inf:
            gradient = aten.threshold_backward(gradient, output, 0)
        else:
            gradient = aten.hardtanh_backward(gradient, output, 0, ctx.top)
        if rule == "guided":
            gradient = aten.relu_(gradient)  # in place, as it is new: memory is what this takes time for
        return gradient, None, None, None


def _masks(node: Any, packed: bool, constants: set[int]) -> bool:
    """Whether a node of a graph, not made by a rule, masks or reshapes the gradient by value."""
    name = node.name().rpartition("::")[2].removesuffix("0").removesuffix("1").removesuffix("Backward")
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return getattr(node, "_forward_cls", None) not in (_Rectify, BackwardHookFunction)
    if name in ("Maximum", "Minimum", "Fmax", "Fmin"):  # with a constant, or with a multiple of the same
        (one, _), (other, _) = node.next_functions
        return one is None or other is None or _made_by(one, other) or _made_by(other, one)
    if name in _LIMITS and not packed:
        top = getattr(node, "_saved_max", None)
        gate = top is not None and _is_zero(top - 1)  # clamp(0, 1), as in a hard sigmoid, squashes
        return not gate and any(_is_zero(getattr(node, f"_saved_{limit}", None)) for limit in _LIMITS[name])
    if name == "Mul" and not packed:
        factors = [factor for factor in (node._saved_self, node._saved_other) if factor is not None]
        return any(_is_mask(factor) and _memory(factor) not in constants for factor in factors)
    if name in _SELECTING and not packed:
        return _memory(getattr(node, f"_saved_{_SELECTING[name]}")) not in constants
    return name in _ACTIVATION_NODES


def _made_by(node: Any, source: Any) -> bool:
    return any(parent is source for parent, _ in node.next_functions)


def _is_zero(limit: Any) -> bool:
    return limit is not None and not bool(torch.as_tensor(limit).any())


def _is_mask(factor: Tensor) -> bool:
    """Whether a factor is of zeros and ones, both, and no gradient goes to it."""
    if factor.requires_grad or factor.numel() < 2:
        return False
    ones = factor == 1
    return bool(ones.any()) and not bool(ones.all()) and bool((ones | (factor == 0)).all())


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


_LIMITS = {"Clamp": ("min", "max"), "ClampMin": ("min",), "ClampMax": ("max",), "Hardtanh": ("min_val",)}
"""Nodes that are a ReLU where one of their limits is zero."""

_SELECTING = {"Where": "condition", "MaskedFill": "mask"}
"""Nodes that let a gradient through where the mask that they have saved says so."""

_COMPARISONS = {
    *(Tensor.__gt__, Tensor.__ge__, Tensor.__lt__, Tensor.__le__, Tensor.gt, Tensor.ge, Tensor.lt, Tensor.le),
    *(torch.gt, torch.ge, torch.lt, torch.le, torch.sign, Tensor.sign),
}
"""What makes a mask of an activation; a graph that is packed does not show it."""

_ACTIVATION_NODES = {
    *("Relu", *_SELECTING, "MaskedScatter", "IndexPut", "Abs", "Sign", "DifferentiableGraph"),
    *("Gelu", "Silu", "Mish", "Hardswish", "Softplus", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Tanh"),
    *("Threshold", "LogSigmoid", "Hardshrink", "Softshrink"),
}
"""Nodes that stand for an activation, or for code that may have one."""


def _relu(input: Tensor, inplace: bool = False, *, top: float = math.inf) -> _Call:
    return _Call(input, top, inplace)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Call | None:
    return _Call(input, float(max_val), inplace) if min_val == 0 and max_val > 0 else None


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> _Call | None:
    return _Call(input, math.inf, inplace) if threshold == 0 and value == 0 else None


def _clamp(input: Tensor, min: Any = None, max: Any = None, *, out: Any = None, inplace: bool = False) -> _Call | None:
    # Other limits are arithmetic, as in a hard sigmoid written by hand.
    known = isinstance(min, (int, float)) and min == 0 and (max is None or (isinstance(max, (int, float)) and max == 6))
    return _Call(input, math.inf if max is None else 6.0, inplace) if known and out is None else None


_THRESHOLD_ = F.threshold_  # type: ignore[attr-defined]
_RECTIFIERS: dict[Any, Callable[..., _Call | None]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((F.relu_, torch.relu_, Tensor.relu_), partial(_relu, inplace=True)),
    F.relu6: partial(_relu, top=6.0),
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
    **dict.fromkeys((F.threshold, torch.threshold), _threshold),
    _THRESHOLD_: partial(_threshold, inplace=True),
    **dict.fromkeys((torch.clamp, torch.clip, torch.clamp_min), _clamp),
    **dict.fromkeys((Tensor.clamp, Tensor.clip, Tensor.clamp_min), _clamp),
    **dict.fromkeys((torch.clamp_, torch.clip_, torch.clamp_min_), partial(_clamp, inplace=True)),
    **dict.fromkeys((Tensor.clamp_, Tensor.clip_, Tensor.clamp_min_), partial(_clamp, inplace=True)),
}
"""Every function that may be a ReLU, with what reads its arguments; None where they make it something else."""

_OTHERS: dict[Any, str] = {
    F.gelu: "GELU",
    F.silu: "SiLU",
    F.mish: "Mish",
    F.hardswish: "Hardswish",
    F.softplus: "Softplus",
    F.softsign: "Softsign",
    F.logsigmoid: "LogSigmoid",
    F.softshrink: "Softshrink",
    **dict.fromkeys((F.hardshrink, torch.hardshrink, Tensor.hardshrink), "Hardshrink"),
    **dict.fromkeys((F.threshold, _THRESHOLD_, torch.threshold), "Threshold"),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), "Hardtanh"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "LeakyReLU"),
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), "PReLU"),
    **dict.fromkeys((F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_), "RReLU"),
    **dict.fromkeys((F.elu, F.elu_), "ELU"),
    **dict.fromkeys((F.selu, F.selu_, torch.selu, torch.selu_), "SELU"),
    **dict.fromkeys((F.celu, F.celu_, torch.celu, torch.celu_), "CELU"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_), "tanh"),
}
