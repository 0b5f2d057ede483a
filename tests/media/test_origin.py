"""Where a batch comes from: what is given by hand wins, then what is known, then the whole photo with a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchviz_cnn.core.errors import GeometryWarning, ImageError, InputError
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.media.origin import Origin, as_photo
from torchviz_cnn.media.render import Box

SIZE = (224, 224)


def test_the_box_follows_what_is_given_then_what_is_known() -> None:
    picture, known = Image.new("RGB", (512, 256)), Preprocess(resize=232)
    given = Preprocess(SIZE, resize=256)
    whole: Box = (0.0, 0.0, 512.0, 256.0)
    origin = Origin(preprocess=known)
    assert origin.box(picture, SIZE) == known.seen_box(512, 256)
    assert origin.box(picture, SIZE, given) == given.seen_box(512, 256)
    assert origin.box(picture, SIZE, "stretch") == whole
    assert origin.box(picture, SIZE, "crop") == known.seen_box(512, 256)
    assert Origin().box(picture, SIZE, "crop") == given.seen_box(512, 256)
    with pytest.raises(InputError):
        Origin().box(picture, SIZE, "zoom")  # type: ignore[arg-type]


def test_where_nothing_is_known_it_warns_unless_the_shapes_agree() -> None:
    with pytest.warns(GeometryWarning, match="512 x 256 photo became an input of 224 x 224 is not known") as caught:
        assert Origin().box(Image.new("RGB", (512, 256)), SIZE) == (0, 0, 512, 256)
    assert caught[0].filename == __file__
    assert Origin().box(Image.new("RGB", (448, 448)), SIZE) == (0, 0, 448, 448)
    assert Origin().box(Image.new("RGB", (640, 480)), (240, 320)) == (0, 0, 640, 480)


def test_the_part_that_was_seen_has_the_size_of_the_input() -> None:
    photo = Image.new("RGB", (100, 50))
    photo.paste("white", (25, 0, 75, 50))
    seen = Origin(preprocess=Preprocess((20, 20), "crop", 20)).seen(photo, (20, 20))
    assert seen.size == (20, 20)
    assert np.asarray(seen).min() == 255


def test_photos_of_every_kind(tmp_path: Path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    for photo in (tmp_path / "a.png", str(tmp_path / "a.png"), picture, pixels):
        assert np.array_equal(np.asarray(as_photo(photo)), pixels)
    assert as_photo(pixels[..., 0]).mode == as_photo(pixels[..., :1]).mode == "RGB"


@pytest.mark.parametrize(
    "wrong", [np.zeros((40, 60, 70)), np.zeros((2, 2, 6, 7), np.uint8), np.zeros((0, 6), np.uint8), 3]
)
def test_what_is_no_photo_is_named(wrong: Any) -> None:
    with pytest.raises(ImageError, match=r"a photo is a path, a PIL image or an array|a picture of"):
        as_photo(wrong)


def test_a_photo_that_is_not_known_is_asked_for() -> None:
    with pytest.raises(InputError, match="pass the photo here"):
        Origin().photo(0)
    with pytest.raises(InputError, match="image 1 is out of range: there is 1"):
        Origin((Image.new("RGB", (1, 1)),)).photo(1)
