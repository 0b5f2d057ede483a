"""Boxes and masks of maps that are known, and pictures drawn as the textbook's listings draw them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import torchviz_cnn as tvc
from tests import networks

Array = np.ndarray[Any, Any]


def heat_of(values: Array, input_size: tuple[int, int] | None = None) -> tvc.Heatmap:
    """A heatmap of these values for an input of this size, by default one pixel for each value."""
    maps = torch.as_tensor(values, dtype=torch.float32)[None]
    return tvc.Heatmap(
        values=maps,
        target=torch.tensor([0]),
        method="none",
        logits=torch.zeros(1, 2),
        input_size=input_size or values.shape,  # type: ignore[arg-type]
        layer="none",
        activations=maps[None],
    )


def squares(height: int, width: int, *parts: tuple[int, int, int, int, float]) -> Array:
    """Zeros with a rectangle (left, top, right, bottom) of one value for each part."""
    values = np.zeros((height, width))
    for left, top, right, bottom, value in parts:
        values[top:bottom, left:right] = value
    return values


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


WHOLE: dict[str, Any] = {"geometry": "stretch"}


def test_boxes_are_those_of_the_squares_the_strongest_first() -> None:
    parts = [(0, 0, 3, 2, 4.0), (35, 20, 40, 30, 10.0), (10, 5, 12, 25, 7.0), (20, 0, 21, 1, 4.0)]
    heat = heat_of(squares(30, 40, *parts))
    expected = [(35, 20, 40, 30, 1.0), (10, 5, 12, 25, 0.7), (0, 0, 3, 2, 0.4), (20, 0, 21, 1, 0.4)]
    boxes = heat.box(photo=photo(40, 30), **WHOLE)
    assert boxes == expected
    assert all(type(number) is int for box in boxes for number in box[:4])
    assert boxes[1].left == 10
    assert boxes[1].bottom == 25
    assert heat.box(0.7, photo=photo(40, 30), **WHOLE) == expected[:2]
    assert heat.box(1, photo=photo(40, 30), **WHOLE) == expected[:1]
    mask = heat.mask(0.5, photo=photo(40, 30), **WHOLE)
    assert mask.dtype == bool
    assert np.array_equal(mask, squares(30, 40, *parts) >= 5)


def test_a_map_is_enlarged_to_the_photo() -> None:
    """A square of 2 x 2 of 8 x 8 values on a photo ten times as large: half its height lies midway between values."""
    heat = heat_of(squares(8, 8, (2, 4, 4, 6, 3.0)), (80, 80))
    assert heat.box(0.5, photo=photo(80, 80)) == [(20, 40, 40, 60, 1.0)]
    x, y = heat.peak(photo(80, 80))
    assert heat.mask(photo=photo(80, 80))[y, x]


@pytest.mark.parametrize("size", [(50, 40), (331, 260), (1, 1), (1, 9)])
@pytest.mark.parametrize("threshold", [0.15, 0.5, 0.9, 1.0])
def test_boxes_are_scipys_components_of_the_mask(size: tuple[int, int], threshold: float) -> None:
    values = np.random.default_rng(1).normal(size=(9, 7))
    values[4, 3] = 1  # in the middle, which is all that a photo of one pixel shows
    heat, picture = heat_of(values, (90, 70)), photo(*size)
    mask, boxes = heat.mask(threshold, photo=picture, **WHOLE), heat.box(threshold, photo=picture, **WHOLE)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    places = {(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(labels)}
    assert mask.shape == size[::-1]
    assert len(boxes) == count >= 1
    assert {box[:4] for box in boxes} == places
    assert boxes[0].strength == 1
    assert [box.strength for box in boxes] == sorted((box.strength for box in boxes), reverse=True)
    assert min(box.strength for box in boxes) >= threshold - 1e-6
    x, y = heat.peak(picture, **WHOLE)
    assert boxes[0].left <= x < boxes[0].right
    assert boxes[0].top <= y < boxes[0].bottom


def test_a_cropped_photo_is_marked_where_the_network_saw_it_alone() -> None:
    crop = tvc.Preprocess((20, 20), "crop", 20)
    heat = heat_of(np.ones((5, 5)), (20, 20))
    assert heat.box(photo=photo(60, 20), geometry=crop) == [(20, 0, 40, 20, 1.0)]
    mask = heat.mask(photo=photo(60, 20), geometry=crop)
    assert mask[:, 20:40].all()
    assert mask.sum() == 400
    corner = heat_of(squares(20, 20, (18, 0, 20, 3, 1.0)))
    assert corner.box(photo=photo(60, 20), geometry=crop) == [(38, 0, 40, 3, 1.0)]


def test_of_a_padded_photo_what_lies_on_the_padding_does_not_count() -> None:
    """A photo of 20 x 10 in the middle of 20 x 20: rows 5 to 15 of the map are the photo's."""
    pad = tvc.Preprocess((20, 20), "pad")
    heat = heat_of(squares(20, 20, (0, 0, 20, 4, 9.0), (3, 7, 6, 15, 2.0)))
    assert heat.box(photo=photo(20, 10), geometry=pad) == [(3, 2, 6, 10, 1.0)]
    assert not heat_of(squares(20, 20, (0, 0, 20, 4, 9.0))).mask(photo=photo(20, 10), geometry=pad).any()


@pytest.mark.parametrize("values", [np.zeros((4, 4)), -np.ones((4, 4))])
def test_a_map_without_evidence_has_no_box(values: Array) -> None:
    heat = heat_of(values, (40, 40))
    assert heat.box(photo=photo(40, 40)) == []
    assert not heat.mask(photo=photo(40, 40)).any()


def test_every_image_and_class_has_its_own() -> None:
    net = tvc.Network(networks.gap_linear(), tvc.Preprocess((32, 32), "crop", 32), tuple("abcde"))
    results: list[Any] = [tvc.grad_cam, tvc.saliency, tvc.occlusion]
    for method in results:
        heat = method(net, [photo(96, 64), photo(40, 50, 1)], target=[[0, 1], [2, 3]])
        mask = heat.mask(index=1, nth=1)
        assert mask.shape == (50, 40)
        boxes = heat.box(index=1, nth=1)
        assert bool(boxes) == bool(mask.any())
        inside = np.zeros_like(mask)
        for left, top, right, bottom, _ in boxes:
            inside[top:bottom, left:right] = True
        assert not (mask & ~inside).any()


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan"), None, "half"])
def test_a_threshold_is_a_share(threshold: Any) -> None:
    for draw in (heat_of(np.ones((2, 2))).box, heat_of(np.ones((2, 2))).mask):
        with pytest.raises(tvc.InputError, match="threshold is a"):
            draw(threshold, photo=photo(2, 2))


# --- the textbook's listings ----------------------------------------------------------------------------------


def listing_of_2017(values: Array, pixels: Array, path: Path) -> Array:
    """The listing, from the map divided by its maximum on; gives what is read back of the file that it writes."""
    img = pixels[..., ::-1]
    heatmap: Any = values.astype(np.float32)
    heatmap = cv2.resize(heatmap, (img.shape[1], img.shape[0]))
    heatmap = np.uint8(255 * heatmap)
    heatmap = cv2.applyColorMap(heatmap, cv2.COLORMAP_JET)
    superimposed_img = heatmap * 0.4 + img
    assert cv2.imwrite(str(path), superimposed_img)
    written = cv2.imread(str(path))
    assert written is not None
    return written[..., ::-1]


@pytest.mark.parametrize("size", [(64, 64), (61, 37), (5, 3), (1, 1), (333, 250)])
@pytest.mark.parametrize("shape", [(14, 14), (7, 5), (1, 1)])
def test_the_overlay_of_2017_is_the_listings_to_the_byte(
    size: tuple[int, int], shape: tuple[int, int], tmp_path: Path
) -> None:
    values = np.random.default_rng(sum(size)).normal(size=shape) + 0.5
    heat, picture = heat_of(values, (64, 64)), photo(*size)
    drawn = np.asarray(heat.overlay(picture, preset="dlwp-2017", **WHOLE))
    assert np.array_equal(drawn, listing_of_2017(heat.map(), np.asarray(picture), tmp_path / "cam.png"))


def listing_of_2025(values: Array, photo: Image.Image) -> Image.Image:
    """The listing, in Keras' own functions."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    import matplotlib as mpl

    img = keras.utils.img_to_array(photo)
    heatmap = np.uint8(255 * values.astype(np.float32))
    jet = mpl.colormaps["jet"]
    jet_colors = jet(np.arange(256))[:, :3]
    jet_heatmap = jet_colors[heatmap]
    jet_heatmap = keras.utils.array_to_img(jet_heatmap)
    jet_heatmap = jet_heatmap.resize((img.shape[1], img.shape[0]))
    jet_heatmap = keras.utils.img_to_array(jet_heatmap)
    superimposed_img = jet_heatmap * 0.4 + img
    superimposed_img = keras.utils.array_to_img(superimposed_img)
    assert isinstance(superimposed_img, Image.Image)
    return superimposed_img


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (61, 37), (5, 3), (1, 1), (333, 250)])
@pytest.mark.parametrize("shape", [(10, 10), (7, 5), (1, 1)])
def test_the_overlay_of_2025_is_the_listings_to_the_byte(size: tuple[int, int], shape: tuple[int, int]) -> None:
    values = np.random.default_rng(sum(size)).normal(size=shape) + 0.5
    heat, picture = heat_of(values, (64, 64)), photo(*size)
    drawn = heat.overlay(picture, preset="dlwp-2025", **WHOLE)
    assert np.array_equal(np.asarray(drawn), np.asarray(listing_of_2025(heat.map(), picture)))


def test_a_listing_of_an_empty_map_is_drawn_too() -> None:
    heat, picture = heat_of(np.zeros((3, 3)), (30, 30)), photo(30, 30)
    for preset in ("dlwp-2017", "dlwp-2025"):
        assert heat.overlay(picture, preset=preset).size == (30, 30)  # type: ignore[arg-type]


def test_a_listing_stretches_the_map_and_says_where_that_is_wrong() -> None:
    net = tvc.Network(networks.gap_linear(), tvc.Preprocess((32, 32), "crop", 32), tuple("abcde"))
    heat = tvc.grad_cam(net, photo(96, 64), relu=False)
    with pytest.warns(tvc.GeometryWarning, match="the network saw 16, 0 to 80, 64 of 96 x 64: the heat is not in its"):
        drawn = heat.overlay(preset="dlwp-2017")
    assert np.array_equal(np.asarray(drawn), np.asarray(heat.overlay(preset="dlwp-2017", **WHOLE)))


def test_a_preset_stands_alone() -> None:
    heat, picture = heat_of(np.ones((2, 2))), photo(2, 2)
    options: list[dict[str, Any]] = [{"blend": "mix"}, {"colormap": "jet"}, {"interpolation": "nearest"}]
    for other in options:
        with pytest.raises(tvc.InputError, match="preset says how to blend, colour and interpolate"):
            heat.overlay(picture, preset="dlwp-2017", **other)
    with pytest.raises(tvc.InputError, match="no preset '2017'"):
        heat.overlay(picture, preset="2017")  # type: ignore[arg-type]
    with pytest.raises(tvc.InputError, match="alpha is a share"):
        heat.overlay(picture, 2, preset="dlwp-2017")
