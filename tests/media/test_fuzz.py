"""Whatever bytes, numbers and labels are given: an answer within its limits, or one of the library's own errors.

100 examples of each kind, or 2,000 with `--hypothesis-profile=endurance`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tests.conftest import within_limits
from torchviz_cnn.core.errors import TorchvizError
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.images import Preprocess, read_image, to_rgb
from torchviz_cnn.media.origin import as_photo

pytestmark = pytest.mark.slow
EVERY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
MODES = {
    "PNG": ("L", "RGB", "RGBA", "P", "I;16", "1"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("RGB", "F", "I;16", "LA"),
}
DTYPES = st.one_of(
    arrays.integer_dtypes(),
    arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(),
    arrays.boolean_dtypes(),
    arrays.complex_number_dtypes(),
    arrays.unicode_string_dtypes(),
    arrays.datetime64_dtypes(),
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9)
NUMBERS = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES))
HOW = [Preprocess((6, 8), "crop", 7, (0.5,) * n, (0.5,) * n) for n in (1, 2, 3, 4)]
LABELS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3) | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def answered(call: Callable[[], object]) -> None:
    """Assert that a call ends within its limits, in an answer or an error of the library's own."""
    with within_limits(), warnings.catch_warnings(), contextlib.suppress(TorchvizError):
        warnings.simplefilter("ignore")
        call()


@cache
def valid(kind: str, mode: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 4)).astype(np.uint8)
    deep = {"F": np.float32, "I;16": np.uint16}
    image = (
        Image.fromarray(values[..., 0].astype(deep[mode])) if mode in deep else Image.fromarray(values).convert(mode)
    )
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of a picture in which some bytes are others, cut off somewhere or longer than it was."""
    kind = draw(st.sampled_from(sorted(MODES)))
    data = bytearray(valid(kind, draw(st.sampled_from(MODES[kind]))))
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)):
        data[place] = value
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data) + draw(st.binary(max_size=9))


@EVERY
@given(data=st.binary(max_size=200) | damaged(), suffix=st.sampled_from([".png", ".jpg", ".tif", ""]))
def test_files(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    answered(lambda: read_image(path))
    answered(lambda: ImageSource([str(path)], HOW[2]).item(0))


@EVERY
@given(values=NUMBERS, tensor=st.booleans())
def test_numbers(values: Any, tensor: bool) -> None:
    try:
        photo = torch.from_numpy(values.copy()) if tensor else values
    except (TypeError, ValueError):  # of text, dates and other byte orders there are no tensors
        photo = values
    answered(lambda: to_rgb(photo))
    answered(lambda: as_photo(photo))
    for preprocess in HOW:
        answered(lambda preprocess=preprocess: preprocess(photo))  # type: ignore[misc]
        answered(lambda preprocess=preprocess: ImageSource([photo], preprocess).item(0))  # type: ignore[misc]
        answered(lambda preprocess=preprocess: ImageSource([photo], preprocess).view(0))  # type: ignore[misc]


@EVERY
@given(label=LABELS)
def test_labels(label: Any) -> None:
    source = ImageSource([(torch.zeros(3, 6, 8), label), (torch.zeros(3, 6, 8), torch.tensor([1]))])
    answered(lambda: source.item(0))
    answered(lambda: source.label(0))
    assert source.item(1)[1] == 1


@EVERY
@given(values=st.one_of(st.none(), st.text(max_size=5), st.lists(st.integers(), max_size=4), st.binary(max_size=5)))
def test_other_things(values: Any) -> None:
    for call in (to_rgb, as_photo, HOW[2], HOW[3]):
        answered(lambda call=call: call(values))  # type: ignore[misc]
    answered(lambda: ImageSource([values], HOW[2]).item(0))


@pytest.mark.parametrize("mode", [mode for mode in Image.MODES if mode not in ("BGR;15", "BGR;16", "BGR;24")])
def test_every_mode_of_pillow(mode: str) -> None:
    image = Image.new(mode, (7, 9))
    answered(lambda: to_rgb(image))
    for preprocess in HOW:
        answered(lambda preprocess=preprocess: preprocess(image))  # type: ignore[misc]
