"""A model that a method works on, and that comes back exactly as it was."""

from __future__ import annotations

import itertools
import os
import random
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torchviz_cnn.core.errors import ModelError
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.hooks.interrupts import drop_frames, uninterrupted
from torchviz_cnn.hooks.network import Model, module_of


@contextmanager
def untouched(model: Model) -> Iterator[nn.Module]:
    """Give a model for the length of a block: in evaluation mode, parameters frozen, gradients on, wrappers taken off.

    However the block ends (an exception, Ctrl-C), every module's `training` flag, every parameter's identity, `.grad`
    and `requires_grad`, every buffer's identity and values, the global random states and the caller's grad and
    inference modes are what they were. Works inside `torch.no_grad()` and `torch.inference_mode()`. One thread has
    the model at a time: others wait. Blocks of one thread may overlap without nesting, as those of coroutines do: the
    model then stays frozen up to the end of the last.

    Args:
        model: a module or a Network.

    Raises:
        ModelError: for what is no model, runs outside Python (TorchScript), or has uninitialised lazy parameters.

    >>> model = nn.Linear(2, 1)
    >>> with untouched(model) as frozen:
    ...     frozen.training, frozen.weight.requires_grad
    (False, False)
    >>> model.training, model.weight.requires_grad
    (True, True)
    """
    module = unwrap(module_of(model))
    modules = list(module.modules())
    if any(isinstance(part, torch.jit.ScriptModule) for part in modules):
        raise ModelError(
            f"{type(module).__name__} runs as TorchScript, where hooks do not reach: pass the model it was made from"
        )
    _refuse_lazy(module, modules)
    with _lock_of(module):
        undo = _Undo(modules)
        try:
            with uninterrupted():
                _freeze(modules, undo.begin())
            yield module
        except KeyboardInterrupt as interrupt:
            drop_frames(interrupt)
            raise
        except RuntimeError as error:
            _explain_checkpointing(error, module)
            raise
        finally:
            undo.end()


def _explain_checkpointing(error: RuntimeError, model: nn.Module) -> None:
    """Raise ModelError where PyTorch refuses to differentiate through one kind of activation checkpointing."""
    if "use_reentrant=True" in str(error):
        raise ModelError(
            f"{type(model).__name__} uses activation checkpointing with use_reentrant=True, through which PyTorch "
            "gives no gradients but by backward(): have it use checkpoint(..., use_reentrant=False), or turn it off"
        ) from error


def _refuse_lazy(model: nn.Module, modules: list[nn.Module]) -> None:
    tensors = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()))
    if any(t is not None and is_lazy(t) for t in tensors):
        name = next(n for n, t in [*model.named_parameters(), *model.named_buffers()] if is_lazy(t))
        raise ModelError(f"parameter {name!r} is lazy and has no shape yet: run the model once first")


_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def _lock_of(model: nn.Module) -> Any:
    """What keeps other threads from a model: the state they saw and put back would be this one's changes."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def _forget_locks() -> None:
    """In a forked process: the threads that had a model are not there to give it back."""
    global _LOCKS_LOCK
    _LOCKS_LOCK = threading.Lock()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


class _Undo:
    """The steps that put everything back, the last one first, all of them even where one fails.

    A block that ends before one of the same thread that began after it, and shares modules with it, leaves its steps
    to that one, which saw the model as this one had changed it.
    """

    _open: ClassVar[weakref.WeakValueDictionary[int, _Undo]] = weakref.WeakValueDictionary()
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, modules: list[nn.Module]) -> None:
        self.steps = [ExitStack()]
        self.number, self.thread, self.modules = next(self._numbers), threading.get_ident(), set(modules)
        # A Ctrl-C in the instruction at which `all` begins prevents it; then this is done as the error is dropped. (Not
        # by `__del__`, which runs always, and in which Python loses a Ctrl-C.)
        self._once = weakref.finalize(self, _undo, self.steps)

    def begin(self) -> ExitStack:
        self._open[self.number] = self
        return self.steps[0]

    def end(self) -> None:
        with uninterrupted():
            if self._open.pop(self.number, None) is not None and (later := self._later()):
                min(later, key=lambda block: block.number).steps.extend(self.steps)
                self.steps.clear()
            self._once()

    def _later(self) -> list[_Undo]:
        """The open blocks that began after this one, in the same thread, and share modules with it."""
        blocks = [block for reference in self._open.valuerefs() if (block := reference()) is not None]
        later = [block for block in blocks if block.number > self.number and block.thread == self.thread]
        return [block for block in later if block.modules & self.modules]


def _undo(steps: list[ExitStack]) -> None:
    with uninterrupted(), ExitStack() as all_of_them:
        for one in reversed(steps):
            all_of_them.callback(one.close)


def _freeze(modules: list[nn.Module], undo: ExitStack) -> None:
    undo.enter_context(torch.inference_mode(False))
    undo.enter_context(torch.enable_grad())
    process = _Process(modules)
    states = [_Module(module) for module in modules]  # all before the first is changed: they may share tensors
    for state in states:
        undo.callback(state.restore)
        state.freeze()
    undo.callback(process.restore)  # the first to be done: a mode that was left on would meddle with the rest


@dataclass(slots=True)
class _Tensor:
    """A parameter, a buffer or another tensor of a module as it was."""

    tensor: Tensor
    grad: Tensor | None
    requires_grad: bool
    data: Tensor | None
    """Its memory, of what a forward pass may write into,"""
    values: Tensor | None
    """and a copy of it."""

    @classmethod
    def of(cls, tensor: Tensor, values: bool) -> _Tensor:
        inference = tensor.is_inference()
        grad = None if inference or not tensor.is_leaf else tensor.grad
        if not values or inference:
            return cls(tensor, grad, tensor.requires_grad, None, None)
        data = tensor.detach()
        return cls(tensor, grad, tensor.requires_grad, data, data.clone())

    def restore(self) -> None:
        tensor = self.tensor
        if tensor.is_inference():
            return
        if tensor.is_leaf:
            if tensor.requires_grad != self.requires_grad:
                tensor.requires_grad_(self.requires_grad)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad
        if self.data is not None and self.values is not None:
            _restore_values(tensor, self.data, self.values)


def _restore_values(tensor: Tensor, data: Tensor, values: Tensor) -> None:
    # Compared, as `.data` and numpy write unseen by the version counter; and through `.data`, so that a graph of the
    # caller that saved this buffer can still run backward.
    if tensor.is_meta:
        return
    if tensor.layout is not torch.strided:
        with torch.no_grad():
            tensor.copy_(values)
        return
    if tensor.data_ptr() != data.data_ptr():
        tensor.data = data
    if tensor.device.type != "cpu" or not torch.equal(tensor, values):  # comparing would wait for the device
        tensor.data.copy_(values)


class _Module:
    """One module as it was, not counting its children. Large models have thousands: what is not needed is left out."""

    __slots__ = ("attributes", "buffers", "module", "parameters", "training")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.parameters = {n: None if p is None else _Tensor.of(p, False) for n, p in module._parameters.items()}
        self.buffers = {n: None if b is None else _Tensor.of(b, True) for n, b in module._buffers.items()}
        # With tensors among them that a hook of `weight_norm`, `spectral_norm` or `prune`, or a forward, sets anew.
        self.attributes = dict(vars(module))

    def freeze(self) -> None:
        # The flag itself, not eval(): models override train() to keep parts of themselves frozen.
        if self.module.training:
            self.module.training = False
        for name, was in self.parameters.items():
            if was is None:
                continue
            if was.tensor.is_inference():  # cannot take part in a graph
                self.module._parameters[name] = nn.Parameter(was.tensor.clone(), requires_grad=False)
            elif was.requires_grad and was.tensor.is_leaf:
                was.tensor.requires_grad_(False)
        for name, was in self.buffers.items():
            if was is not None and was.tensor.is_inference():
                self.module._buffers[name] = was.tensor.clone()

    def restore(self) -> None:
        if self.module.training is not self.training:
            self.module.training = self.training
        _restore_tensors(self.module._parameters, self.parameters)
        _restore_tensors(self.module._buffers, self.buffers)
        _restore_attributes(vars(self.module), self.attributes)


def _restore_attributes(now: dict[str, Any], before: dict[str, Any]) -> None:
    changed = [name for name, value in now.items() if value is not before.get(name)]
    for name in [*changed, *(name for name in before if name not in now)]:
        if not isinstance(now.get(name), Tensor) and not isinstance(before.get(name), Tensor):
            continue
        if name in before:
            now[name] = before[name]
        else:
            del now[name]


def _restore_tensors(
    now: dict[str, Tensor | None] | dict[str, nn.Parameter | None], before: dict[str, _Tensor | None]
) -> None:
    if not before and not now:
        return
    tensors: dict[str, Tensor | None] = {name: None if was is None else was.tensor for name, was in before.items()}
    if list(now) != list(tensors) or any(now[name] is not tensor for name, tensor in tensors.items()):
        now.clear()
        now.update(tensors)  # type: ignore[arg-type]
    for was in before.values():
        if was is not None:
            was.restore()


class _Process:
    """What a forward pass, or a block of PyTorch's that an interrupt tears apart, may change outside the model."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state()
        tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        devices = {tensor.device for tensor in tensors}
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}
        self.mps = torch.mps.get_rng_state() if any(device.type == "mps" for device in devices) else None
        self.functions = _function_modes()
        self.dispatch = len(_get_current_dispatch_mode_stack())
        self.saving = saved_tensors_hooks()
        self.filters = list(warnings.filters)

    def restore(self) -> None:
        python, numpy, cpu = self.random
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)
        while len(modes := _get_current_dispatch_mode_stack()) > self.dispatch:
            modes[-1].__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if _function_modes() != self.functions:
            while torch._C._len_torch_function_stack():
                torch._C._pop_torch_function_stack()
            for mode in self.functions:
                torch._C._push_on_torch_function_stack(mode)
        while saved_tensors_hooks() not in (self.saving, None):
            torch._C._autograd._pop_saved_tensors_default_hooks()
        if warnings.filters != self.filters:
            warnings.filters[:] = self.filters  # type: ignore[index]


def _function_modes() -> list[Any]:
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def saved_tensors_hooks() -> Any:
    """The innermost hooks that pack what autograd saves, as activation checkpointing sets them; None where none are."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else top(True)
