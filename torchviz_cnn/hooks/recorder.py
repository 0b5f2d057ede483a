"""`Recorder`: what layers give in a forward pass, each as it was before any later module wrote over it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from torchviz_cnn.core.errors import LayerError, ModelError, kind_of
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.hooks.interrupts import uninterrupted

if TYPE_CHECKING:
    from torchviz_cnn.hooks.manager import HookManager

Check = Callable[[str, Any], Tensor | None]
"""What tests a layer's output: gives the tensor to keep, or None to keep nothing; raises LayerError for a wrong one."""


class Recorder(Mapping[str, Tensor]):
    """The tensors that calls of layers gave, by name, in execution order; made by `HookManager.record`.

    Without gradients, a tensor is copied only at the moment something is about to be written into it. With gradients,
    what is kept is part of the graph (a leaf, where nothing before it needs a gradient), and what follows gets a copy;
    differentiate inside the block then, as activation checkpointing runs the layers again for the backward pass.
    """

    def __init__(self, hooks: HookManager, layers: LayerName | Iterable[LayerName], check: Check | None = None) -> None:
        self._hooks, self._check = weakref.proxy(hooks), check or _tensor
        self._kept = _KeptValues()
        hooks.on_forward(layers, self._take)

    def __enter__(self) -> Recorder:
        if not torch.is_grad_enabled():
            model = self._hooks.model
            self._kept.own([*model.parameters(), *model.buffers()])
            with uninterrupted():
                self._hooks.remove_on_close(self)
                self._kept.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Keep nothing more. Calling it again does nothing."""
        with uninterrupted():
            if self._kept in _get_current_dispatch_mode_stack():
                self._kept.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        return self._kept.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept.values)

    def __len__(self) -> int:
        return len(self._kept.values)

    def _take(self, name: str, output: Any) -> Any:
        tensor = self._check(name, output)
        replacement = None if tensor is None else self._keep(name, tensor)
        return None if replacement is None else with_tensor(output, replacement)

    def _keep(self, name: str, tensor: Tensor) -> Tensor | None:
        """Keep a tensor, and give the copy with which the forward pass goes on, where it needs one."""
        if not torch.is_grad_enabled():
            self._kept.take(name, tensor)
            return None
        if not tensor.is_floating_point():
            raise ModelError(
                f"layer {name!r} gives {str(tensor.dtype).removeprefix('torch.')}, to which no gradient comes back"
                + "; explain the network from before it was quantised" * tensor.is_quantized
            )
        values = self._kept.values
        if in_backward():  # activation checkpointing runs the layer again
            return tensor.clone() if tensor.requires_grad else values[name].clone()
        values[name] = tensor if tensor.requires_grad else tensor.detach().clone().requires_grad_()
        return None if self._hooks.ends_here else values[name].clone()


class _KeptValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps tensors as they are when taken: one is copied at the moment something is about to be written into it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: dict[str, Tensor] = {}
        self._names: dict[int, list[str]] = {}
        self._owned: set[int] = set()

    def own(self, tensors: Iterable[Tensor]) -> None:
        """Copy what shares memory with these, the model's own tensors, at once: it is not the caller's to write."""
        self._owned = {_storage(tensor) for tensor in tensors if tensor.layout is torch.strided}

    def take(self, name: str, tensor: Tensor) -> None:
        self.values[name] = tensor.detach()
        if tensor.layout is not torch.strided:
            return
        try:
            storage = _storage(tensor)
        except NotImplementedError as error:
            raise LayerError(f"layer {name!r} runs inside torch.vmap, which what it gives cannot leave") from error
        if storage in self._owned:
            self.values[name] = tensor.detach().clone()
        else:
            self._names.setdefault(storage, []).append(name)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema = getattr(func, "_schema", None)
        if self._names and schema is not None and schema.is_mutable:
            given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **(kwargs or {})}
            for argument in schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(given.get(argument.name))
        return func(*args, **(kwargs or {}))

    def _save(self, written: Any) -> None:
        for tensor in written if isinstance(written, (tuple, list)) else [written]:
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                for name in self._names.pop(_storage(tensor), []):
                    self.values[name] = self.values[name].clone()


def only_tensor(output: Any) -> Tensor | None:
    """What a layer gives if it is a tensor, or the only one among the entries of a tuple, list or dict; else None."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def with_tensor(output: Any, tensor: Tensor) -> Any:
    """What a layer gives, with another tensor in the place of its only one (see `only_tensor`)."""
    if isinstance(output, dict):
        changed = copy.copy(output)
        for key, part in output.items():
            if isinstance(part, Tensor):
                changed[key] = tensor
        return changed
    if isinstance(output, (tuple, list)):
        parts = [tensor if isinstance(part, Tensor) else part for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return tensor


def _tensor(name: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise LayerError(f"layer {name!r} gives {kind_of(output)}, not a tensor")
    return output


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def in_backward() -> bool:
    """Whether a backward pass is running, in which activation checkpointing runs parts of the model again."""
    return bool(torch._C._current_graph_task_id() != -1)
