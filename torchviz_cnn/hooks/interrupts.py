"""Ctrl-C at a bad moment: it waits while something is set up or cleared away, and is delivered right after."""

from __future__ import annotations

import signal
import threading
import traceback
from types import FrameType
from typing import Any

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack


class uninterrupted:
    """A block that a Ctrl-C does not end in the middle: one that arrives is delivered at the end of the block.

    Only SIGINT waits, only in the main thread, and only where its handler is written in Python (the default
    one raises KeyboardInterrupt). The handler is put back at once, unless the block itself has set another.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._waiting = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals are handled in the main thread alone
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._wait)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        self._waiting = True

    def __exit__(self, *error: object) -> None:
        if self._handler is None:
            return
        if signal.getsignal(signal.SIGINT) == self._wait:
            signal.signal(signal.SIGINT, self._handler)
        if self._waiting:
            self._handler(signal.SIGINT, None)


def drop_frames(interrupt: BaseException) -> None:
    """Clear the frames of an interrupted call, so that its open context managers are closed now."""
    error: BaseException | None = interrupt
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


class FunctionMode(TorchFunctionMode):
    """A torch function mode that a Ctrl-C does not leave on: PyTorch takes it off and on again at every function."""

    def __enter__(self) -> Any:
        try:
            return super().__enter__()  # type: ignore[no-untyped-call]
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with uninterrupted():
            if isinstance(error, KeyboardInterrupt):
                drop_frames(error)
            if self in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
                super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
