"""A progress bar, where one is asked for."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class _NoBar:
    """Stands for a bar that is not shown. tqdm's own is dropped by Python code, in which Python loses a Ctrl-C."""

    n = 0

    def update(self, n: float = 1) -> None:
        """Do nothing."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


def progress_bar(shown: bool, **options: Any) -> Any:
    """A tqdm bar with these options, which is gone when it is done; one that does nothing where it is not shown."""
    return tqdm(leave=False, **options) if shown else _NoBar()
