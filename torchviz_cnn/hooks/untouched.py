"""Lend a model to a method, and give it back exactly as it was."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchviz_cnn.core.errors import InputError, ModelError
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.hooks.interrupts import guarded, held, let_through


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Lend a model: in evaluation mode, parameters frozen, gradients enabled, wrappers taken off.

    However the block ends (an exception, Ctrl-C at any moment), every module's `training` flag, every parameter's identity,
    `.grad` and `requires_grad`, every buffer's identity and values, the global random states and the caller's
    grad and inference modes are what they were. Works inside `torch.no_grad()` and `torch.inference_mode()`. A model is
    lent to one thread at a time: others wait for it. Raises ModelError for a model that is no module, runs outside
    Python (TorchScript), or has uninitialised lazy parameters.

    >>> model = nn.Linear(2, 1)
    >>> with untouched(model) as lent:
    ...     lent.training, lent.weight.requires_grad
    (False, False)
    >>> model.training, model.weight.requires_grad
    (True, True)
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module, not a {type(model).__name__}{_hint(model)}")
    model = unwrap(model)
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise ModelError(
            f"{type(model).__name__} runs as TorchScript, where hooks do not reach: pass the model it was made from"
        )
    with guarded(), _alone(model), torch.inference_mode(False), torch.enable_grad():
        _refuse_lazy(model, modules)
        loans = [_Loan(module) for module in modules]
        with contextlib.ExitStack() as returns:
            returns.callback(_random_states(modules))
            returns.callback(_give_back, loans)
            _lend(loans)
            yield model


def _refuse_lazy(model: nn.Module, modules: list[nn.Module]) -> None:
    tensors = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()))
    if any(t is not None and is_lazy(t) for t in tensors):
        name = next(n for n, t in [*model.named_parameters(), *model.named_buffers()] if is_lazy(t))
        raise ModelError(f"parameter {name!r} is lazy and has no shape yet: run the model once first")


_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Keep other threads from the model: what they found and put back would be this one's changes."""
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(model, threading.RLock())
    if not lock.acquire(blocking=False):
        _wait_for(lock)
    try:
        yield
    finally:
        lock.release()


@let_through
def _wait_for(lock: Any) -> None:
    lock.acquire()


def lend_input(model: nn.Module, x: Tensor) -> Tensor:
    """A copy of the input on the model's device and in its dtype, so that nothing can write into the caller's.

    Shape in, shape out. Raises InputError for what is no tensor, or has no images in it.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"the input is a tensor of shape (B, C, H, W), not a {type(x).__name__}")
    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"the input of shape {tuple(x.shape)} has nothing in it")
    if x.dtype == torch.uint8 and not any(isinstance(module, nn.Embedding) for module in model.modules()):
        raise InputError(
            "the input is uint8; networks take floating point: preprocess(photo) gives it, or x.float() / 255"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return x.detach().clone()
    return x.detach().to(like.device, like.dtype if x.is_floating_point() else x.dtype, copy=True)


@dataclass(slots=True)
class _Lent:
    """A parameter or buffer as it was found."""

    tensor: Tensor
    grad: Tensor | None
    requires_grad: bool
    data: Tensor | None
    """Its memory, of what a forward pass may write into,"""
    values: Tensor | None
    """and a copy of it."""


class _Loan:
    """What one module looked like, not counting its children. Large models have thousands: what is not needed is left."""

    __slots__ = ("buffers", "module", "parameters", "training")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.parameters = {n: None if p is None else _remember(p, values=False) for n, p in module._parameters.items()}
        self.buffers = {n: None if b is None else _remember(b, values=True) for n, b in module._buffers.items()}

    def lend(self) -> None:
        # The flag itself, not eval(): models override train() to keep parts of themselves frozen.
        if self.module.training:
            self.module.training = False
        for name, lent in self.parameters.items():
            if lent is None:
                continue
            if lent.tensor.is_inference():  # cannot take part in a graph
                self.module._parameters[name] = nn.Parameter(lent.tensor.clone(), requires_grad=False)
            elif lent.requires_grad and lent.tensor.is_leaf:
                lent.tensor.requires_grad_(False)
        for name, lent in self.buffers.items():
            if lent is not None and lent.tensor.is_inference():
                self.module._buffers[name] = lent.tensor.clone()

    def give_back(self) -> None:
        if self.module.training is not self.training:
            self.module.training = self.training
        _put_back(self.module._parameters, self.parameters)
        _put_back(self.module._buffers, self.buffers)


@held
def _lend(loans: list[_Loan]) -> None:
    for loan in loans:
        loan.lend()


@held
def _give_back(loans: list[_Loan]) -> None:
    """Give all of them back, even if one fails."""
    failed: BaseException | None = None
    for loan in reversed(loans):
        try:
            loan.give_back()
        except BaseException as error:
            failed = error
    if failed is not None:
        raise failed


def _remember(tensor: Tensor, values: bool) -> _Lent:
    inference = tensor.is_inference()
    grad = None if inference or not tensor.is_leaf else tensor.grad
    if not values or inference:
        return _Lent(tensor, grad, tensor.requires_grad, None, None)
    data = tensor.detach()
    return _Lent(tensor, grad, tensor.requires_grad, data, data.clone())


def _put_back(
    tensors: dict[str, Tensor | None] | dict[str, nn.Parameter | None], lent: dict[str, _Lent | None]
) -> None:
    if not lent and not tensors:
        return
    found: dict[str, Tensor | None] = {name: None if was is None else was.tensor for name, was in lent.items()}
    if list(tensors) != list(found) or any(tensors[name] is not tensor for name, tensor in found.items()):
        tensors.clear()
        tensors.update(found)  # type: ignore[arg-type]
    for was in lent.values():
        if was is None or was.tensor.is_inference():
            continue
        if was.tensor.is_leaf:
            if was.tensor.requires_grad != was.requires_grad:
                was.tensor.requires_grad_(was.requires_grad)
            if was.tensor.grad is not was.grad:
                was.tensor.grad = was.grad
        if was.data is not None and was.values is not None:
            _put_values_back(was.tensor, was.data, was.values)


def _put_values_back(tensor: Tensor, data: Tensor, values: Tensor) -> None:
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
    if not torch.equal(tensor, values):
        tensor.data.copy_(values)


def _random_states(modules: list[nn.Module]) -> Callable[[], None]:
    """Remember the global random states that a forward pass may draw from; calling the result restores them."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = {t.device for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}
    mps = torch.mps.get_rng_state() if any(device.type == "mps" for device in devices) else None

    @held
    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


def _hint(model: object) -> str:
    return "; pass its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
