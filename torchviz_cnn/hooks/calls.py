"""Calls of a network: which one is running, why one failed, and what it takes and gives."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from torchviz_cnn.core.errors import InputError, counted
from torchviz_cnn.core.names import all_modules, is_compiled
from torchviz_cnn.hooks.interrupts import FunctionMode

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""One input of a model, a tuple of several, or a dict of keyword inputs."""
_CALL = nn.Module._call_impl.__code__
_CALLS = {_CALL, *(part for part in _CALL.co_consts if isinstance(part, CodeType))}
"""What runs a module's hooks and its forward."""


def running_calls(model: nn.Module) -> list[int]:
    """Return, for each running call of the model (innermost first), how many hook frames lie between it and here."""
    calls, hooks = [], 0
    frame: FrameType = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        if caller.f_code in _CALLS:
            module = caller.f_locals["self"]
            hooks += frame.f_code in _hooks_of(module)
            if module is model and caller.f_code is _CALL:
                calls.append(hooks)
        frame = caller
    return calls


def _hooks_of(module: nn.Module) -> set[CodeType | None]:
    registries = (
        module._forward_pre_hooks,
        module._forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_forward_hooks,
    )
    return {_code_of(hook) for hooks in registries for hook in hooks.values()} - {None}


def _code_of(hook: Any) -> CodeType | None:
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    code = getattr(function, "__code__", None) or getattr(type(hook).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


class OptionalGradients(FunctionMode):
    """Lets a forward pass ask for the gradient of a tensor that here has none, as of what stands before the leaf.

    PyTorch refuses `register_hook` and `retain_grad` there; where the same model runs in training, it takes them.
    """

    def remove(self) -> None:
        """Take the mode off, where a Ctrl-C left it on."""
        self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ASKING and not args[0].requires_grad:
            return None if func is Tensor.retain_grad else RemovableHandle(OrderedDict())
        return func(*args, **(kwargs or {}))


_NAMES = frozenset({"register_hook", "register_post_accumulate_grad_hook", "retain_grad"})
"""What a forward pass calls to ask a tensor for its gradient."""
_ASKING = {getattr(Tensor, name) for name in _NAMES}
_CHECKED: weakref.WeakKeyDictionary[CodeType, bool] = weakref.WeakKeyDictionary()


def asks_for_gradients(model: nn.Module) -> bool:
    """Whether the code of a model or of hooks on it asks tensors for their gradients, as tutorials on Grad-CAM do.

    Read are the methods of its modules and of objects in them, but for PyTorch's own, and the functions they name.
    """
    modules = list(all_modules(model).values())
    own = [module for module in modules if not _is_of_torch(type(module))]
    objects = {type(part) for module in own for part in vars(module).values()}
    kinds = {type(module) for module in own} | {kind for kind in objects if not _is_of_torch(kind)}
    bases = {base for kind in kinds for base in kind.__mro__ if not _is_of_torch(base)}
    methods = (part for base in bases for part in vars(base).values())
    hooks = (hook for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks) for hook in hooks.values())
    patched = (vars(module)["forward"] for module in modules if "forward" in vars(module))
    return any(_asks(part) for part in (*methods, *hooks, *patched))


def _asks(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    function = function.fget if isinstance(function, property) else getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return False
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or _is_of_torch(function):
        return False
    code = function.__code__
    if code not in _CHECKED:
        _CHECKED[code] = False  # where it calls itself
        names = set(_names_in(code))
        named = [function.__globals__.get(name) for name in names]
        named += [vars(part).get(name) for part in named if isinstance(part, ModuleType) for name in names]
        named += inspect.getclosurevars(function).nonlocals.values()
        _CHECKED[code] = not _NAMES.isdisjoint(names) or any(_asks(part) for part in named)
    return _CHECKED[code]


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names_in(part)


def _is_of_torch(part: Any) -> bool:
    return str(getattr(part, "__module__", "")).partition(".")[0] in ("torch", "builtins", "torchviz_cnn")


def explain_shape(error: RuntimeError | ValueError, model: nn.Module, args: tuple[Any, ...]) -> None:
    """Raise InputError where the input itself had another number of channels or dimensions than the model takes."""
    shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
    convolution = next((layer for layer in model.modules() if isinstance(layer, nn.modules.conv._ConvNd)), None)
    if isinstance(convolution, nn.Conv3d) and len(shape) == 4:
        raise InputError(
            f"{type(model).__name__} takes videos or volumes (B, C, D, H, W), and the input is {shape}; {OF_FRAMES}"
        ) from error
    mismatch = re.search(r"expected input\[([\d, ]+)\] to have (\d+) channels", str(error))
    if mismatch and tuple(int(side) for side in mismatch[1].split(",")) == shape:
        raise InputError(
            f"{type(model).__name__} takes images of {counted(int(mismatch[2]), 'channel')}, "
            f"and the input has {shape[1]}"
        ) from error


OF_FRAMES = (
    "grad_cam and saliency explain videos and volumes (B, C, D, H, W) as they are; for occlusion a network of these is "
    "wrapped in a module whose forward takes the frames as channels (B, C * D, H, W), as "
    "model(x.unflatten(1, (3, -1))) does"
)
SEVERAL_INPUTS = "the inputs of a model of several are given as a tuple, or as a dict of its keyword inputs"


def explain_arguments(error: TypeError, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise InputError where the model's forward takes other arguments than it was given."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as wrong:
        raise InputError(
            f"{type(model).__name__} does not run on what it is given: {wrong}; {SEVERAL_INPUTS}"
        ) from error


def rows_of(output: Any) -> int:
    """How many images an output is for; -1 where that is not known."""
    first = next(iter(tree_leaves(output)), None)
    return len(first) if isinstance(first, Tensor) and first.ndim else -1


def repeated(inputs: Inputs, count: int) -> Any:
    """A copy of the inputs of one image or, with a count above 1, for this many."""

    def repeat(part: Tensor) -> Tensor:
        alone = count == 1 or not part.ndim or len(part) != 1
        return part.clone() if alone else part.expand(count, *part.shape[1:]).clone()

    return tree_map_only(Tensor, repeat, inputs)


def eagerly(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Hooks need the modules to run one by one: hold off compiled code inside the model, where there is any."""
    compiled = any(is_compiled(m) or getattr(m, "_compiled_call_impl", None) for m in all_modules(model).values())
    if not compiled:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return, no-untyped-call]
