"""Pictures and maps as text inside a page: compact, and decoded only when they are looked at."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Array = NDArray[Any]


class Blocks:
    """Texts that stand in the page apart from its data, each under a number, for the browser to decode one by one."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def maps(self, levels: Array) -> int:
        """Grey maps (n, h, w) uint8: the differences along each row, deflated."""
        levels = np.ascontiguousarray(levels, dtype=np.uint8)
        steps = levels.copy()
        steps[:, :, 1:] -= levels[:, :, :-1]
        return self._add(zlib.compress(steps.tobytes(), 9))

    def picture(self, image: Image.Image, quality: int = 82, *, lossless: bool = False) -> int:
        """A picture as WebP; `lossless` keeps every pixel as it is."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=50 if lossless else quality, method=4, lossless=lossless)
        return self._add(buffer.getvalue())

    def _add(self, data: bytes) -> int:
        self.texts.append(base64.b64encode(data).decode())
        return len(self.texts) - 1


def levels(maps: Tensor, low: Tensor, high: Tensor) -> Array:
    """Maps (..., h, w) as 0..255 between a lowest and a highest value of each (...): uint8. Of a constant map: 0."""
    span = (high - low)[..., None, None]
    scaled = (maps - low[..., None, None]) / span.where(span > 0, 1.0)
    return np.asarray((scaled.nan_to_num(0, 0, 0).clamp(0, 1) * 255).round().byte().numpy())


def figure(value: Any) -> float | None:
    """A number with 4 digits, as a page shows it; None for what is not finite, which JSON does not know."""
    value = float(value)
    return float(f"{value:.4g}") if math.isfinite(value) else None


def figures(values: Tensor) -> Any:
    """A tensor as nested lists of such numbers."""
    return figure(values) if values.ndim == 0 else [figures(one) for one in values]


def within(image: Image.Image, side: int) -> Image.Image:
    """A picture of at most `side` pixels a side."""
    size = fitted(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def fitted(size: Sequence[int], side: int) -> tuple[int, int]:
    """A size made smaller in proportion, where it is larger than `side`.

    >>> fitted((100, 30), 50)
    (50, 15)
    """
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
