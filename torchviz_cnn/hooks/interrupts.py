"""Ctrl-C at a bad moment: held back while a model is being lent, hooked or given back, and let through elsewhere."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, ParamSpec, TypeVar

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

P = ParamSpec("P")
R = TypeVar("R")

_HELD: set[CodeType] = set()
_LET_THROUGH: set[CodeType] = set()


def held(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that a signal's handler must not interrupt: it sets up or clears away."""
    _HELD.add(getattr(function, "__func__", function).__code__)
    return function


def let_through(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that a signal's handler may interrupt, though one that is `held` may have called it."""
    _LET_THROUGH.add(getattr(function, "__func__", function).__code__)
    return function


for _manager in (contextlib._GeneratorContextManager, TorchDispatchMode, TorchFunctionMode):
    for _step in ("__enter__", "__exit__"):
        held(getattr(_manager, _step))


class _Guard:
    """Stands in for the handlers of the program's signals, in the main thread, while anything is guarded."""

    def __init__(self) -> None:
        self.depth = 0
        self.handlers: dict[int, Any] = {}
        self.waiting: list[int] = []

    def enter(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals are handled in the main thread alone
        if self.depth == 0:
            try:
                for number in signal.valid_signals():
                    handler = signal.getsignal(number)
                    if callable(handler):  # one in Python: Ctrl-C's raises KeyboardInterrupt
                        self.handlers[number] = handler
                        signal.signal(number, self.handle)
            except BaseException:
                self.restore()
                raise
        self.depth += 1

    def leave(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.depth -= 1
        if self.depth == 0:
            self.restore()

    def restore(self) -> None:
        handlers, waiting = self.handlers, self.waiting
        self.handlers, self.waiting = {}, []
        for number, handler in handlers.items():
            if signal.getsignal(number) == self.handle:  # unless the guarded block set one of its own
                signal.signal(number, handler)
        for number in waiting:
            handlers[number](number, None)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if _is_held(frame):
            self.waiting.append(number)
        else:
            self.handlers[number](number, frame)

    def deliver(self) -> None:
        """Let through what had to wait, now that it can do no harm."""
        while self.waiting and threading.current_thread() is threading.main_thread():
            number = self.waiting.pop(0)
            self.handlers[number](number, None)


_guard = _Guard()
deliver = _guard.deliver
begin = held(_guard.enter)
end = held(_guard.leave)


@contextmanager
def guarded() -> Iterator[None]:
    """While this lasts, handlers of signals do not run inside functions that are `held`, but after them."""
    begin()
    try:
        yield
    finally:
        end()


def _is_held(frame: FrameType | None) -> bool:
    """Whether the innermost function that is marked at all is one that is held."""
    while frame is not None:
        if frame.f_code in _LET_THROUGH:
            return False
        if frame.f_code in _HELD:
            return True
        frame = frame.f_back
    return False
