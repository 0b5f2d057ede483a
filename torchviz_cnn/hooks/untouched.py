"""A model that a method works on, and that comes back exactly as it was."""

from __future__ import annotations

import itertools
import operator
import os
import random
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torchviz_cnn.core.errors import ModelError
from torchviz_cnn.core.names import all_modules, unwrap
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

    Returns:
        A context manager, which gives the module inside all wrappers.

    Raises:
        ModelError: for what is not a model, runs outside Python (TorchScript), or has uninitialised lazy parameters.

    >>> model = nn.Linear(2, 1)
    >>> with untouched(model) as frozen:
    ...     frozen.training, frozen.weight.requires_grad
    (False, False)
    >>> model.training, model.weight.requires_grad
    (True, True)
    """
    module = unwrap(module_of(model))
    modules = list(all_modules(module).values())
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

    If blocks of one thread that share modules overlap, the earlier one hands its restore steps to the later one, whose
    snapshot already contains its changes.
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
        for step in reversed(steps):
            all_of_them.callback(step.close)


def _freeze(modules: list[nn.Module], undo: ExitStack) -> None:
    undo.enter_context(torch.inference_mode(False))
    undo.enter_context(torch.enable_grad())
    process = _Process(modules)
    states = [_Module(module) for module in modules]  # all before the first is changed: they may share tensors
    undo.callback(_Values([buffer for state in states for buffer in state.buffers]).restore)
    for state in states:
        undo.callback(state.restore)
        state.freeze()
    undo.callback(process.restore)  # runs first: an active mode would change how the other steps behave


class _Tensor:
    """A parameter or buffer as it was: its gradient, and whether it takes one."""

    __slots__ = ("grad", "requires_grad", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.requires_grad = tensor, tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None

    def restore(self) -> None:
        tensor = self.tensor
        if tensor.is_leaf:
            if tensor.requires_grad != self.requires_grad:
                tensor.requires_grad_(self.requires_grad)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad


class _Values:
    """The values of buffers, which a forward pass may write to.

    Small ones of a kind are copied and compared all together: a network has hundreds, and each costs a GPU as much time
    as a small convolution. They are compared, as `.data` and numpy write unseen by the version counter.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        self.together: dict[tuple[torch.device, torch.dtype], list[_Memory]] = {}
        self.alone: list[tuple[_Memory, Tensor]] = []
        for buffer in buffers:
            if buffer.is_meta:
                continue
            plain = type(buffer) in (Tensor, nn.Parameter) and buffer.layout is torch.strided
            memory = _Memory(buffer)
            if plain and not buffer.is_quantized and buffer.numel() <= _SMALL:
                self.together.setdefault((buffer.device, buffer.dtype), []).append(memory)
            else:
                self.alone.append((memory, memory.data.clone()))
        self.copies = {kind: _flat(several) for kind, several in self.together.items()}

    def restore(self) -> None:
        for kind, several in self.together.items():
            copy = self.copies[kind]
            for memory in several:
                memory.take_back()
            if torch.equal(_flat(several).view(torch.uint8), copy.view(torch.uint8)):
                continue
            for memory, values in zip(several, copy.split([m.data.numel() for m in several]), strict=True):  # type: ignore[no-untyped-call]
                memory.write(values.view(memory.data.shape))
        for memory, values in self.alone:
            memory.take_back()
            memory.write(values)


_SMALL = 1 << 18
"""Of at most how many values a buffer is copied with others: all copies are made once more when they are compared."""


class _Memory:
    """A buffer, and the memory that it had."""

    __slots__ = ("buffer", "data")

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.data = buffer, buffer.detach()

    def take_back(self) -> None:
        if self.buffer.layout is torch.strided and self.buffer.data_ptr() != self.data.data_ptr():
            self.buffer.data = self.data

    def write(self, values: Tensor) -> None:
        """Write values where they differ; through `.data`, so that a graph of the caller that saved this buffer can
        still run backward."""
        if self.buffer.layout is not torch.strided:
            with torch.no_grad():
                self.buffer.copy_(values)
        elif self.buffer.device.type != "cpu" or not torch.equal(self.buffer, values):  # comparing waits for the device
            self.buffer.data.copy_(values)


def _flat(several: list[_Memory]) -> Tensor:
    """All values one after the other, as a copy."""
    return torch.cat([memory.data.reshape(-1) for memory in several])


class _Module:
    """One module as it was, not counting its children. Large models have thousands: what is not needed is left out."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        # With tensors among them that a hook of `weight_norm`, `spectral_norm` or `prune`, or a forward, sets anew.
        self.attributes = dict(vars(module))
        contents: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
        self.contents = [(now, dict(now)) for now in contents]
        # What was made in inference mode cannot take part in a graph: a copy of it does, in its place.
        parameters, self.buffers = (
            [t for t in now.values() if t is not None if not t.is_inference()]
            for now in (module._parameters, module._buffers)
        )
        self.tensors = [_Tensor(tensor) for tensor in (*parameters, *self.buffers)]

    def freeze(self) -> None:
        # The flag itself, not eval(): models override train() to keep parts of themselves frozen.
        if self.module.training:
            self.module.training = False
        for name, parameter in self.module._parameters.items():
            if parameter is None:
                continue
            if parameter.is_inference():
                self.module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
            elif parameter.requires_grad and parameter.is_leaf:
                parameter.requires_grad_(False)
        for name, buffer in self.module._buffers.items():
            if buffer is not None and buffer.is_inference():
                self.module._buffers[name] = buffer.clone()

    def restore(self) -> None:
        if self.module.training is not self.training:
            self.module.training = self.training
        for now, before in self.contents:
            if (now or before) and not _same(now, before):
                now.clear()
                now.update(before)
        for tensor in self.tensors:
            tensor.restore()
        attributes = vars(self.module)
        if not _same(attributes, self.attributes):
            _restore_attributes(attributes, self.attributes)


def _same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether these are the same objects under the same names, in the same order."""
    return (
        len(now) == len(before) and list(now) == list(before) and all(map(operator.is_, now.values(), before.values()))
    )


def _restore_attributes(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Put tensors back; other attributes are the user's, as counters and caches are."""
    for name in dict.fromkeys([*now, *before]):
        was = before.get(name)
        if now.get(name) is was or not (isinstance(now.get(name), Tensor) or isinstance(was, Tensor)):
            continue
        if name in before:
            now[name] = was
        else:
            del now[name]


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
