"""OpenCV, where it is needed: `opencv-python-headless` and `opencv-python` give the same module."""

from __future__ import annotations

from typing import Any

from torchviz_cnn.core.errors import ImageError


def opencv() -> Any:
    """The module `cv2`. Raises ImageError, with what to install, where it cannot be imported."""
    try:
        import cv2
    except (
        ImportError
    ) as error:  # also where a library of the system is missing, as opencv-python needs one for windows
        raise ImageError(
            f"drawing, boxes and video need OpenCV, which cannot be imported: {error}; "
            "pip install opencv-python-headless"
        ) from error
    return cv2
