"""Warnings that point at the line of the user's that led to them."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

_INSIDE = (str(Path(__file__).resolve().parents[1]), contextlib.__file__)
"""Whose frames are not the user's: this package's, and those of the context managers that it enters."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the nearest caller outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
