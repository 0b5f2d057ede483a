"""Figures are in proportion to what they show, and never too large to draw."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.media.test_render import photo
from torchviz_cnn.media import figures
from torchviz_cnn.topk.statistics import ChannelStatistics, depth_plot


def test_figures_are_in_proportion_and_bounded() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    small, large = figures.titled(picture, "a", 0.05), figures.titled(picture, "a", 0.1)
    assert small.size == (300, 150)
    assert large.size == (600, 250)
    assert figures.titled(np.zeros((2, 400, 3), np.uint8), "a", 1e9).size == (20_000, 150)
    row = figures.panel([photo(), np.zeros((30, 40))], ["photo", "map"], "what it saw")
    single = figures.panel([photo()], ["photo"])
    assert row.width > 1.7 * single.width
    assert row.height > single.height
    with pytest.raises(ValueError, match="2 titles"):
        figures.panel([photo()], ["one", "two"])


def test_large_grids_are_made_smaller_without_patterns_of_their_own() -> None:
    """Of lines one pixel apart, drawn at a little more than half their size, a grey is left."""
    lines = np.zeros((400, 400, 3), np.uint8)
    lines[:, ::2] = 255
    drawn = np.asarray(figures.titled(lines, "", 0.0055).convert("L"), float)
    inside = drawn[120:240, 40:180]
    assert 60 < inside.min() <= inside.max() < 200  # the nearest pixels alone would be black and white


def test_tiles_stand_above_their_numbers_and_a_picture_below_its_heading() -> None:
    tiles = np.full((2, 30, 40, 3), 90, np.uint8)
    one, two = figures.numbered(tiles, [3, 12])
    assert one.shape == (44, 40, 3)
    assert np.array_equal(one[:30], tiles[0])
    assert not np.array_equal(one[30:], two[30:])
    assert one[30:].max() > 200
    below = figures.headed(Image.fromarray(one), "a heading that takes several lines")
    assert below.width == 40
    assert np.array_equal(np.asarray(below)[-44:], one)
    assert np.asarray(below)[:-44].min() < 100


def test_a_map_in_a_panel_has_a_colour_bar_with_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    made: list[tuple[float, float, str]] = []
    usual = Figure.colorbar

    def colorbar(self: Figure, scale: Any, **options: Any) -> Any:
        made.append((scale.norm.vmin, scale.norm.vmax, scale.cmap.name))
        return usual(self, scale, **options)

    monkeypatch.setattr(Figure, "colorbar", colorbar)
    figures.panel([photo(), photo(), np.array([[2.0, 5.0]])], ["photo", "heat", "map"], bars={1: ("jet", (0, 0.25))})
    assert made == [(0, 0.25, "jet"), (2, 5, "viridis")]


def test_a_panel_of_extreme_shapes_stays_drawable() -> None:
    assert max(figures.panel([Image.new("RGB", (1, 4000)), Image.new("RGB", (4000, 1))], ["a", "b"]).size) < 4000


def test_the_users_settings_of_matplotlib_change_nothing() -> None:
    picture = np.vstack([np.full((10, 20, 3), 255, np.uint8), np.zeros((10, 20, 3), np.uint8)])
    numbers = ChannelStatistics(torch.rand(4), torch.rand(4), torch.rand(4), torch.zeros(4, dtype=torch.bool))

    def drawn() -> list[Image.Image]:
        rows = figures.column_figure({"a": [("b", Image.fromarray(picture))]}, "c")
        return [
            figures.titled(picture, "a", 0.1),
            figures.panel([picture, picture[..., 0]], ["a", "b"]),
            rows,
            depth_plot({"a": numbers}),
        ]

    usual = drawn()
    theirs: Any = {
        "image.origin": "lower",
        "image.cmap": "jet",
        "image.interpolation": "bicubic",
        "text.usetex": True,
        "figure.autolayout": True,
        "figure.facecolor": "red",
        "savefig.dpi": 30,
        "font.size": 30,
        "lines.linewidth": 9,
    }
    with matplotlib.rc_context(theirs):
        assert [picture.tobytes() for picture in drawn()] == [picture.tobytes() for picture in usual]
        assert matplotlib.rcParams["image.origin"] == "lower"
