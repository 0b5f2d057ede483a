"""Which call of a network is running: the outermost, one that its forward makes of itself, or one that a hook makes."""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from torchviz_cnn.hooks.interrupts import FunctionMode

_CALL = nn.Module._call_impl.__code__
_CALLS = {_CALL, *(part for part in _CALL.co_consts if isinstance(part, CodeType))}
"""What runs a module's hooks and its forward."""


def running_calls(model: nn.Module) -> list[int]:
    """The calls of a model that are running in this thread, the innermost first: by how many hooks each led here."""
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
        if func in _ASKS and not args[0].requires_grad:
            return None if func is Tensor.retain_grad else RemovableHandle(OrderedDict())
        return func(*args, **(kwargs or {}))


_ASKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook, Tensor.retain_grad}
