"""`HookManager`: the one place where hooks are put on modules, and taken off again."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from torchviz_cnn.core.errors import HookError, LayerError, counted, kind_of
from torchviz_cnn.core.names import (
    Call,
    LayerName,
    call_name,
    named_layers,
    one_or_several,
    resolve,
    unwrap,
)
from torchviz_cnn.hooks.calls import (
    Inputs,
    OptionalGradients,
    asks_for_gradients,
    eagerly,
    explain_arguments,
    explain_shape,
    repeated,
    rows_of,
    running_calls,
)
from torchviz_cnn.hooks.interrupts import uninterrupted
from torchviz_cnn.hooks.network import Model, module_of
from torchviz_cnn.hooks.recorder import Check, Recorder, in_backward, with_tensor

ForwardHook = Callable[[str, Any], Any]
BackwardHook = Callable[[str, Tensor], Any]

_WHOLE_RUNS = 16
"""How many images run at a time where `run_from` must run all of a model for each of the maps."""
_log = logging.getLogger("torchviz_cnn")


class _StopForward(BaseException):
    """Ends a forward pass early. Not an Exception, so that no `except Exception` in a model swallows it."""

    def __init__(self, manager: HookManager) -> None:
        super().__init__()
        self.manager = manager


@dataclass
class _Tap:
    """All that is asked of one module: its hooks, each with the call it is for (None: every call)."""

    name: str
    forward: list[tuple[int | None, ForwardHook]] = field(default_factory=list)
    backward: list[tuple[int | None, BackwardHook]] = field(default_factory=list)


class HookManager:
    """Forward and backward hooks on named modules, all removed on exit.

    A layer is a dotted name from `model.named_modules()`. Where a module runs several times in one forward pass,
    `"relu"` is its first call, `"relu#1"` its second and `"relu#*"` every one. Hooks get the name of the call
    they are called for. Calls are numbered over the outermost call of the model, where its forward calls the model
    itself; a run that a hook of the user's starts in the middle is not counted, and runs without these hooks. Wrappers
    (`DataParallel`, `DistributedDataParallel`, `torch.compile`) are looked through.

    Args:
        model: a module or a Network.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True))
    >>> shapes = {}
    >>> with HookManager(model) as hooks:
    ...     hooks.on_forward("0", lambda name, output: shapes.update({name: tuple(output.shape)}))
    ...     hooks.run(torch.zeros(1, 3, 8, 8))
    >>> shapes
    {'0': (1, 4, 6, 6)}
    """

    def __init__(self, model: Model) -> None:
        self.model = unwrap(module_of(model))
        self._taps: dict[nn.Module, _Tap] = {}
        self._optional = OptionalGradients()
        self._handles: list[Any] = [self._optional]
        # For one that is dropped without being closed, or interrupted by a Ctrl-C as it was about to be. Not `__del__`,
        # which runs for every manager, and in which Python loses a Ctrl-C.
        self._dropped = weakref.finalize(self, _remove, self._handles)
        self._dropped.atexit = False
        self._closed = False
        self._awaited: set[Call] = set()
        self._stopping = False
        self._calls: Counter[nn.Module] = Counter()
        self._replayed: Counter[nn.Module] = Counter()
        self._replay = -1
        # How many calls of the model were running already, as where a hook of the user's asks for something.
        self._around = len(running_calls(self.model))
        self._may_run_apart = False

    @cached_property
    def _layers(self) -> dict[str, nn.Module]:
        return named_layers(self.model)

    @cached_property
    def asks_for_gradients(self) -> bool:
        """Whether the model's own code hooks gradients, for which a mode is on as it runs."""
        return asks_for_gradients(self.model)

    def on_forward(self, layers: LayerName | Iterable[LayerName], hook: ForwardHook) -> None:
        """Call `hook(name, output)` after each of these layers; what it returns, unless None, replaces the output.

        Several hooks on one layer run in the order they were added, each on what the one before it left.

        Raises:
            LayerError: for a name that does not exist; nothing is added then.
        """
        for tap, index in self._tapped(layers):
            tap.forward.append((index, hook))

    def on_backward(self, layers: LayerName | Iterable[LayerName], hook: BackwardHook) -> None:
        """Call `hook(name, gradient)` with the gradient of each layer's output, of the output's shape.

        What it returns, unless None, replaces the gradient. It is the gradient of what the layer itself gave, also
        where the next module overwrites that in place.

        Raises:
            LayerError: for a name that does not exist (nothing is added then), and during the forward pass for a
                layer that gives no tensor.
        """
        for tap, index in self._tapped(layers):
            tap.backward.append((index, hook))

    def record(self, layers: LayerName | Iterable[LayerName], check: Check | None = None) -> Recorder:
        """Keep what layers give in a block, by name, safe from later modules that write in place: see `Recorder`.

        Args:
            layers: names of calls, as for `on_forward`.
            check: called with the name and the output of each call; gives the tensor to keep, or None to keep nothing.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True))
        >>> with torch.no_grad(), HookManager(model) as hooks, hooks.record("0") as acts:
        ...     hooks.run(torch.zeros(1, 3, 8, 8))
        >>> acts["0"].shape
        torch.Size([1, 4, 6, 6])
        """
        return Recorder(self, layers, check)

    def run(self, *args: Any, stop_early: bool = True, **kwargs: Any) -> Any:
        """Run the model; once every layer asked for has fired, stop and give None.

        With `stop_early=False`, or where some layer is never reached, the pass runs to the end and its output
        is returned. Layers asked for as `"name#*"` are not waited for.
        """
        self._stopping = stop_early
        try:
            with eagerly(self.model), self._asking(), _own_hooks_taken_off(self.model):
                return self.model(*args, **kwargs)
        except _StopForward as stop:
            if stop.manager is not self:
                raise
            return None
        except (RuntimeError, ValueError) as error:
            explain_shape(error, self.model, args)
            raise
        except TypeError as error:
            explain_arguments(error, self.model, args, kwargs)
            raise
        finally:
            self._stopping = False

    def _asking(self) -> contextlib.AbstractContextManager[Any]:
        """Let a model that does so ask for gradients that are not there, unless a mode that is on does.

        A mode sees every function that runs, which costs a GPU as much time as a network of many small layers.
        """
        modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        is_on = any(isinstance(mode, OptionalGradients) for mode in modes)
        return contextlib.nullcontext() if is_on or not self.asks_for_gradients else self._optional

    def run_on(self, inputs: Inputs, *, stop_early: bool = True) -> Any:
        """Run the model on one input, on a tuple of inputs, or on a dict of keyword inputs: see `run`."""
        if isinstance(inputs, tuple):
            return self.run(*inputs, stop_early=stop_early)
        if isinstance(inputs, dict):
            return self.run(stop_early=stop_early, **inputs)
        return self.run(inputs, stop_early=stop_early)

    def run_from(self, layer: str, maps: Tensor, x: Inputs) -> Any:
        """Run what follows a layer on other maps (n, C, ...) than its own; what comes before runs for one image alone.

        A network in which a shortcut leads around the layer may not take n maps for one image: then its whole runs
        n times, a few at a time, which is logged.

        Args:
            layer: the name of the call whose output is replaced.
            maps: what it is replaced by.
            x: the input (1, C, H, W) that belongs to the maps, or the inputs of a model of several.

        Returns:
            The model's output for the n maps.
        """
        part = maps
        with HookManager(self.model) as hooks:
            hooks.on_forward(layer, lambda name, output: with_tensor(output, part.clone()))
            try:
                output = hooks.run_on(repeated(x, 1), stop_early=False)
                hooks.require_reached()
                if rows_of(output) == len(maps):
                    return output
                reason = f"its output is for {counted(rows_of(output), 'image')}"
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
            _log.info("%s does not take %d maps for one image (%s): all of it runs for each", layer, len(maps), reason)
            outputs, alone = [], rows_of(x) == 1
            for part in maps.split(_WHOLE_RUNS if alone else len(maps)):  # type: ignore[no-untyped-call]
                outputs.append(hooks.run_on(repeated(x, len(part)), stop_early=False))
            return tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *outputs)

    def remove_on_close(self, handle: Any) -> None:
        """Have `handle.remove()` called when this manager is closed."""
        self._handles.append(handle)

    @property
    def ends_here(self) -> bool:
        """Whether the forward pass stops at the call whose hooks are running."""
        return self._stopping and not in_backward() and bool(self._awaited) and all(map(self._fired, self._awaited))

    def unreached(self) -> list[str]:
        """List the calls asked for by name that did not happen in the last forward pass."""
        place = {name: place for place, name in enumerate(self._layers)}
        awaited = sorted(self._awaited, key=lambda call: (place[call.name], call.index))
        return [str(call) for call in awaited if not self._fired(call)]

    def require_reached(self, layers: Iterable[str] | None = None) -> None:
        """Raise LayerError where one of these layers (all asked for by name) did not run in the last forward pass."""
        missing = [name for name in self.unreached() if layers is None or name in set(layers)]
        if missing:
            calls = self._calls[self._layers[resolve(self.model, self._layers, missing[0]).name]]
            ran = f"it ran {counted(calls, 'time')} on this input" if calls else _NOT_RUN
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise LayerError(
                f"layer {missing[0]!r}{others} of {type(self.model).__name__} was never reached by the "
                f"forward pass: {ran}"
            )

    def close(self) -> None:
        """Remove every hook of this manager and no other. Calling it again does nothing."""
        with uninterrupted():
            self._closed = True
            self._dropped.detach()
            _remove(self._handles)
            self._taps.clear()
            self._awaited.clear()

    def __enter__(self) -> HookManager:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else counted(len(self._taps), "hooked layer")
        return f"HookManager({type(self.model).__name__}, {state})"

    def _tapped(self, layers: LayerName | Iterable[LayerName]) -> list[tuple[_Tap, int | None]]:
        """The taps of these layers, each with the index of the call that was asked for."""
        if self._closed:
            raise HookError("this HookManager is closed; make a new one")
        calls = [resolve(self.model, self._layers, name) for name in one_or_several(layers)]
        with uninterrupted():
            if calls and not self._taps:
                self._handles.append(self.model.register_forward_pre_hook(_weakly(self._begin)))
            self._awaited.update(call for call in calls if call.index is not None)
            return [(self._tap(call.name), call.index) for call in calls]

    def _tap(self, name: str) -> _Tap:
        module = self._layers[name]
        if module not in self._taps:
            self._taps[module] = _Tap(name)
            self._handles.append(module.register_forward_hook(_weakly(self._fire)))
        return self._taps[module]

    def _begin(self, model: nn.Module, args: Any) -> None:
        if model is not self.model:
            return  # a deep copy, which has the hooks of what it was copied from
        if not in_backward() and len(running_calls(model)) == self._around + 1:
            self._calls.clear()
            self._may_run_apart = False
        elif self._runs_apart():
            self._may_run_apart = True

    def _runs_apart(self) -> bool:
        """Whether it is a hook that runs the model here, and not the model's own forward."""
        calls = running_calls(self.model)
        if in_backward():
            return bool(calls)
        calls = calls[: len(calls) - self._around]
        return bool(calls) and calls[-1] > 1  # one is the manager's own

    def _fire(self, module: nn.Module, args: Any, output: Any) -> Any:
        tap = self._taps.get(module)
        if tap is None or (self._may_run_apart and self._runs_apart()):
            return None
        index = self._count(module)
        name = call_name(tap.name, index)
        for wanted, hook in tap.forward:
            if wanted in (None, index):
                replacement = hook(name, output)
                output = output if replacement is None else replacement
        for wanted, backward in tap.backward:
            if wanted in (None, index):
                output = self._hook_gradient(name, output, backward)
        if self.ends_here:
            raise _StopForward(self)
        return output

    def _hook_gradient(self, name: str, output: Any, hook: BackwardHook) -> Any:
        if not isinstance(output, Tensor):
            raise LayerError(f"layer {name!r} gives {kind_of(output)}, not a tensor: it has no gradient")
        if output.requires_grad:
            if output._is_view():
                # Writing into a view in place rewires the graph around the hook, which would then not run.
                output = output.clone()
            self._handles.append(output.register_hook(partial(hook, name)))  # type: ignore[no-untyped-call]
        return output

    def _count(self, module: nn.Module) -> int:
        """The index of this call of a module. Activation checkpointing runs a part of the model once more during
        the backward pass: those calls are numbered anew, so that each hook meets the call it met before."""
        counter = self._calls
        if in_backward():
            counter = self._replayed
            if self._replay != torch._C._current_graph_task_id():
                self._replay = torch._C._current_graph_task_id()
                counter.clear()
        counter[module] += 1
        return counter[module] - 1

    def _fired(self, call: Call) -> bool:
        return call.index is not None and self._calls[self._layers[call.name]] > call.index


_NOT_RUN = "it did not run on this input, its forward is called directly, or its weights are used elsewhere"


def _remove(handles: list[Any]) -> None:
    with uninterrupted():
        while handles:
            handles.pop().remove()


@contextlib.contextmanager
def _own_hooks_taken_off(model: nn.Module) -> Iterator[None]:
    """Take off the hooks that a forward pass has put on itself and, ended in its middle, could not take off."""
    first = RemovableHandle.next_id  # grows with every hook
    try:
        yield
    except BaseException:
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks):
                own = [key for key, hook in hooks.items() if key >= first and hook.__module__ != __name__]
                for key in own:
                    del hooks[key]
        raise


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method as a hook that does not keep its manager alive: one that is dropped takes its hooks along."""
    reference = weakref.WeakMethod(method)

    def hook(*args: Any) -> Any:
        alive = reference()
        return None if alive is None else alive(*args)

    return hook
