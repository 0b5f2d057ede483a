"""Which call of a network is running: the outermost, one that its forward makes of itself, or one that a hook makes."""

from __future__ import annotations

import functools
import sys
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

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
