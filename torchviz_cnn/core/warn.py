"""Warnings that point at the line of the user's that led to them."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path

_OWN = (str(Path(__file__).resolve().parents[1]) + os.sep, contextlib.__file__)
"""Files whose lines are not the user's: this package, and what runs its context managers."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the nearest caller outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@lru_cache(maxsize=64)
def say_once(message: str, category: type[Warning]) -> None:
    """Warn of what is the same for many pictures once, and not for every one."""
    warn(message, category)
