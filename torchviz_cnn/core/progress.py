"""Progress, where one asks for it: a bar on a terminal, elsewhere a line about every minute."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

from tqdm import tqdm

_MINUTE = 60.0


class _NoBar:
    """Stands for a bar that is not shown: tqdm's own starts a thread, and its `__del__` can lose a Ctrl-C."""

    n: float = 0

    def update(self, n: float = 1) -> None:
        """Do nothing."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


class _Lines(_NoBar):
    """Writes a line about every minute, which a log can keep."""

    def __init__(
        self, *, total: float | None, initial: float = 0, desc: str = "", unit: str = "", **options: Any
    ) -> None:
        self.n, self._last, self._scale = initial, time.monotonic(), float(options.get("unit_scale", 1))
        of = "" if total is None else f" of {total * self._scale:.0f}"
        self._form = f"{desc or 'done'}: {{:.0f}}{of} {unit.strip()}"

    def update(self, n: float = 1) -> None:
        """Count, and say how far it is if that was said a minute ago."""
        self.n += n
        if time.monotonic() - self._last >= _MINUTE:
            self._last = time.monotonic()
            print(self._form.format(self.n * self._scale), file=sys.stderr, flush=True)


def progress_bar(shown: bool, **options: Any) -> Any:
    """What shows progress, with tqdm's options: a bar that is gone when it is done, or lines where stderr is a file."""
    if not shown:
        return _NoBar()
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    if not notebook and not sys.stderr.isatty():
        return _Lines(**options)
    return (_notebook_bar() if notebook else tqdm)(leave=False, **options)


def _notebook_bar() -> Any:
    """A bar of a notebook's own; of text without ipywidgets, whose absence `tqdm.auto` would warn of."""
    if importlib.util.find_spec("ipywidgets") is None:
        return tqdm
    from tqdm.auto import tqdm as bar

    return bar
