"""OpenCV, or what to do where it cannot be imported."""

from __future__ import annotations

import sys

import cv2
import pytest

from torchviz_cnn.core.errors import ImageError
from torchviz_cnn.core.opencv import opencv


def test_opencv_is_imported_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opencv() is cv2
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        ImageError, match=r"need OpenCV, which cannot be imported: .*; pip install opencv-python-headle"
    ):
        opencv()
