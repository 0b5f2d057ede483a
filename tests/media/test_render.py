"""From numbers to pictures: tiles, colours, splines, and maps laid where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from scipy import ndimage

from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media import render
from torchviz_cnn.media.render import Array


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_standardised_tiles(scale: float, shift: float) -> None:
    maps = ((noise(5, 9, 8) + shift) * scale).astype(np.float32)
    tiles = render.standardised_tiles(maps)
    for tile, channel in zip(tiles, maps.astype(np.float64), strict=True):
        expected = np.clip((channel - channel.mean()) / channel.std() * 64 + 128, 0, 255)
        assert np.abs(tile - expected).max() < 1.01
    assert tiles.dtype == np.uint8


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e8, 1e-30])
def test_a_constant_tile_is_zero(value: float) -> None:
    assert not render.standardised_tiles(np.full((1, 37, 41), value, np.float32)).any()


def test_tiles_of_infinite_and_undefined_values_are_drawn() -> None:
    maps = noise(3, 4, 4).astype(np.float32)
    maps[0, 0, 0], maps[1, 1, 1], maps[2] = np.nan, np.inf, np.nan
    with np.errstate(all="raise", under="ignore"):
        tiles = render.standardised_tiles(maps)
    assert tiles[0].any()
    assert tiles[1].any()
    assert not tiles[2].any()
    large = np.where(np.arange(16).reshape(1, 4, 4) % 2, 1e30, -1e30).astype(np.float32)
    with np.errstate(over="raise", invalid="raise"):
        assert set(np.unique(render.standardised_tiles(large))) == {64, 192}


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("columns", [1, 3, 6])
@pytest.mark.parametrize("margin", [0, 1, 5])
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("colour", [False, True])
def test_every_tile_is_where_it_belongs(count: int, columns: int, margin: int, order: Any, colour: bool) -> None:
    tiles = np.arange(1, count + 1, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), np.uint8)
    tiles = tiles[..., None].repeat(3, -1) if colour else tiles
    grid = render.tile_grid(tiles, columns, margin, order, fill=99)
    rows = -(-count // columns)
    assert grid.shape[:2] == (rows * (4 + margin) - margin, columns * (3 + margin) - margin)
    expected = np.full(grid.shape, 99, np.uint8)
    for i in range(count):
        row, column = (i // columns, i % columns) if order == "rows" else (i % rows, i // rows)
        for y in range(4):
            for x in range(3):
                expected[row * (4 + margin) + y, column * (3 + margin) + x] = i + 1
    assert np.array_equal(grid, expected)


@pytest.mark.parametrize(("count", "columns", "margin"), [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_no_grid_of_nothing(count: int, columns: int, margin: int) -> None:
    with pytest.raises(InputError, match="a grid has"):
        render.tile_grid(np.zeros((count, 2, 2)), columns, margin)


def test_unit_range_keeps_proportions_of_what_is_positive() -> None:
    values = np.array([[-3.0, 0.0, 1.0], [2.0, 4.0, np.nan]], np.float32)
    assert np.array_equal(render.unit_range(values), [[0, 0, 0.25], [0.5, 1, 0]])
    for empty in (-(noise(3, 3) ** 2), np.zeros((3, 3)), np.full((3, 3), np.nan)):
        assert not render.unit_range(empty).any()
    assert render.unit_range(np.array([[1e-30, 2e-30]], np.float32)).max() == 1


@pytest.mark.parametrize("name", ["jet", "viridis", "gray"])
def test_colours_are_matplotlibs(name: str) -> None:
    values = np.linspace(-0.2, 1.2, 57)
    expected = colormaps[name]((np.clip(values, 0, 1) * 255 + 1e-6).astype(int), bytes=True)[:, :3]
    assert np.array_equal(render.colormap(values, name), expected)
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(render.colormap(levels, name), render.colormap(levels / 255, name))
    assert render.colormap(noise(3, 4, 5), name).shape == (3, 4, 5, 3)


def test_an_unknown_colormap_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no colormap 'virdis'; did you mean 'viridis'\?"):
        render.colormap(noise(2, 2), "virdis")


SHAPES = [
    ((7, 7), (224, 224)),
    ((5, 8), (33, 61)),
    ((1, 1), (6, 4)),
    ((1, 9), (5, 40)),
    ((6, 6), (4, 4)),
    ((2, 3), (2, 3)),
]


@pytest.mark.parametrize(("small", "large"), SHAPES)
def test_bilinear_is_torchs(small: tuple[int, int], large: tuple[int, int]) -> None:
    values = noise(*small)
    ours = render.resample(values, (0, 0, large[1], large[0]), large[1], large[0])
    theirs = F.interpolate(torch.from_numpy(values)[None, None], size=large, mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(("small", "large"), [*SHAPES, ((4, 4), (6, 6)), ((6, 3), (4, 9)), ((10, 10), (12, 45))])
def test_nearest_is_the_cell_that_a_pixels_middle_lies_in(small: tuple[int, int], large: tuple[int, int]) -> None:
    values = noise(*small)
    ours = render.resample(values, (0, 0, large[1], large[0]), large[1], large[0], "nearest")
    cells = [(2 * np.arange(n) + 1) * s // (2 * n) for n, s in zip(large, small, strict=True)]
    assert np.array_equal(ours, values[np.ix_(*cells)])


@pytest.mark.parametrize(("small", "large"), SHAPES)
def test_quadratic_is_scipys_spline(small: tuple[int, int], large: tuple[int, int]) -> None:
    values = noise(*small)
    ours = render.resample(values, (0, 0, large[1], large[0]), large[1], large[0], "quadratic")
    places = [np.clip((np.arange(n) + 0.5) * s / n - 0.5, 0, s - 1) for n, s in zip(large, small, strict=True)]
    theirs = ndimage.map_coordinates(values, np.meshgrid(*places, indexing="ij"), order=2, mode="mirror")
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "quadratic"])
def test_resampling_at_its_own_size_is_the_identity_and_constants_stay(interpolation: Any) -> None:
    values = noise(6, 9)
    np.testing.assert_allclose(render.resample(values, (0, 0, 9, 6), 9, 6, interpolation), values, atol=1e-12)
    flat = render.resample(np.full((3, 4), 2.5), (-3, 2, 40, 17), 30, 25, interpolation)
    np.testing.assert_allclose(flat, 2.5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "quadratic"])
def test_a_box_is_a_window_of_the_map_drawn_in_full(interpolation: Any) -> None:
    values = noise(5, 6)
    whole = render.resample(values, (0, 0, 60, 50), 60, 50, interpolation)
    inside = render.resample(values, (-10, -5, 50, 45), 30, 20, interpolation)
    np.testing.assert_allclose(inside, whole[5:25, 10:40], atol=1e-12)
    outside = render.resample(values, (20, 10, 80, 60), 90, 80, interpolation)
    np.testing.assert_allclose(outside[10:60, 20:80], whole, atol=1e-12)
    np.testing.assert_allclose(outside[:10, 20:80], np.broadcast_to(whole[:1], (10, 60)), atol=1e-12)


def test_an_unknown_interpolation() -> None:
    with pytest.raises(InputError, match="'cubic'"):
        render.resample(noise(2, 2), (0, 0, 4, 4), 4, 4, "cubic")  # type: ignore[arg-type]


def photo(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_adding_is_the_textbooks_listing() -> None:
    picture, values = photo(), np.clip(noise(30, 40), 0, 1)
    jet = colormaps["jet"]((255 * values).astype(int), bytes=True)[..., :3].astype(float)
    expected = np.clip(jet * 0.4 + np.asarray(picture), 0, 255).astype(np.uint8)
    assert np.array_equal(np.asarray(render.overlay(picture, values, (0, 0, 40, 30))), expected)


def test_mixing_is_a_weighted_mean() -> None:
    picture, values = photo(), np.clip(noise(30, 40), 0, 1)
    colour = render.colormap(values, "viridis").astype(float)
    drawn = render.overlay(picture, values, (0, 0, 40, 30), alpha=0.25, blend="mix", colormap_name="viridis")
    expected = 0.75 * np.asarray(picture, float) + 0.25 * colour
    assert np.abs(np.asarray(drawn) - expected).max() <= 1
    assert np.array_equal(np.asarray(render.overlay(picture, values, (0, 0, 40, 30), alpha=0)), np.asarray(picture))
    full = render.overlay(picture, values, (0, 0, 40, 30), alpha=1, blend="mix")
    assert np.array_equal(np.asarray(full), render.colormap(values, "jet"))


@pytest.mark.parametrize(
    "box", [(5.0, 0.0, 35.0, 30.0), (7.3, 4.6, 21.4, 18.7), (-6.0, -6.0, 46.0, 36.0), (0, 10, 40, 20)]
)
def test_the_photo_outside_of_the_box_stays_as_it_is(box: tuple[float, float, float, float]) -> None:
    picture = Image.new("RGB", (40, 30), (10, 20, 30))
    drawn = np.asarray(render.overlay(picture, np.ones((7, 7)), box, alpha=1))
    heat = np.asarray(render.heat_image(np.ones((7, 7)), box, 40, 30, photo=picture))
    veil, jet = (13, 21, 28), (127, 0, 0)  # 0.58 of the photo and 0.42 of (20, 22, 26); jet's last colour
    changed = (drawn != np.asarray(picture)).any(-1)
    rows, columns = np.arange(30) + 0.5, np.arange(40) + 0.5
    inside = ((rows > box[1]) & (rows < box[3]))[:, None] & ((columns > box[0]) & (columns < box[2]))[None]
    assert np.array_equal(changed, inside)
    assert np.abs(heat - np.where(inside[..., None], jet, veil)).max() <= 1
    assert drawn.shape == (30, 40, 3)


def test_the_strongest_place_is_drawn_in_the_middle_of_its_cell() -> None:
    values = np.zeros((7, 7))
    values[2, 5] = 1
    drawn = np.asarray(render.heat_image(values, (10, 20, 80, 90), 100, 120, colormap_name="gray"))[..., 0].astype(
        float
    )
    y, x = np.unravel_index(drawn.argmax(), drawn.shape)
    assert abs(y + 0.5 - (20 + 25)) <= 1
    assert abs(x + 0.5 - (10 + 55)) <= 1
    rows, columns = np.indices(drawn.shape) + 0.5
    assert (drawn * rows).sum() / drawn.sum() == pytest.approx(45, abs=0.2)
    assert (drawn * columns).sum() / drawn.sum() == pytest.approx(65, abs=0.2)


def test_overlays_refuse_what_they_do_not_know() -> None:
    for options in ({"alpha": 1.5}, {"alpha": -0.1}, {"blend": "multiply"}, {"alpha": float("nan")}):
        with pytest.raises(InputError, match=next(iter(options))):
            render.overlay(photo(), np.ones((2, 2)), (0, 0, 40, 30), **options)  # type: ignore[arg-type]


def test_a_grey_photo_gets_coloured_too() -> None:
    drawn = render.overlay(photo().convert("L"), np.ones((2, 2)), (0, 0, 40, 30))
    assert drawn.mode == "RGB"
