"""Figures with titles, captions and legends, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from torchviz_cnn.media.render import Array, Colour


@contextmanager
def usual_style() -> Iterator[None]:
    """Draw by matplotlib's own settings, not by the user's (`image.origin`, `text.usetex` and others)."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@usual_style()
def titled(picture: Array, title: str, scale: float) -> Image.Image:
    """A picture as a figure with a title and no axes, `scale` inches per pixel (at most 200 inches a side)."""
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    scale = min(scale, 200 / max(height, width))
    figure = Figure(figsize=(max(width * scale, 1), max(height * scale, 1) + 0.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(picture, aspect="auto", interpolation="nearest")
    axes.set_title(title, parse_math=False)
    axes.set_axis_off()
    return figure_image(figure)


@usual_style()
def panel(pictures: Sequence[Image.Image | Array], titles: Sequence[str], headline: str = "") -> Image.Image:
    """Pictures side by side with a title each and a headline, as one figure.

    Grey arrays (h, w) are drawn in viridis.
    """
    from matplotlib.figure import Figure

    ratios = [_size(picture)[0] / _size(picture)[1] for picture in pictures]
    ratios = [min(max(ratio, 0.25), 4) for ratio in ratios]
    # As wide as the pictures are when 4 inches high, with the gaps that the layout puts between them.
    width = 4 * sum(ratios) + 0.15 * len(ratios)
    figure = Figure(figsize=(width, 4.45 + 0.3 * bool(headline)), dpi=100, layout="constrained")
    grid = figure.add_gridspec(1, len(pictures), width_ratios=ratios)
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(grid[0, place])
        if isinstance(picture, Image.Image) and max(picture.size) > 1600:
            picture = picture.copy()
            picture.thumbnail((1600, 1600))
        axes.imshow(np.asarray(picture), cmap="viridis")
        axes.set_title(title, fontsize=11, parse_math=False)
        axes.set_axis_off()
    if headline:
        figure.suptitle(headline, fontsize=13, parse_math=False)
    return figure_image(figure)


@usual_style()
def column_figure(columns: Mapping[str, Sequence[tuple[str, Image.Image]]], headline: str = "") -> Image.Image:
    """A figure with a titled column for each name: pictures below each other, each with a caption."""
    from matplotlib.figure import Figure

    rows = max(len(column) for column in columns.values())
    wide = [max(picture.width / picture.height for _, picture in column) for column in columns.values()]
    size = (1.3 * sum(wide) + 0.2, 1.55 * rows + 0.5 + 0.3 * bool(headline))
    figure = Figure(figsize=(max(size[0], 2.8), size[1]), dpi=100, layout="constrained")
    grid = figure.add_gridspec(rows, len(columns), width_ratios=wide)
    for place, (title, column) in enumerate(columns.items()):
        for row in range(rows):
            axes = figure.add_subplot(grid[row, place])
            axes.set_axis_off()
            if row < len(column):
                caption, picture = column[row]
                axes.imshow(np.asarray(picture))
                axes.set_title(f"{title}\n{caption}" if row == 0 else caption, fontsize=8, parse_math=False)
    if headline:
        figure.suptitle(headline, fontsize=11, parse_math=False)
    return figure_image(figure)


def with_legend(picture: Image.Image, names: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """A picture with a line of text below it for each name, beside a square in its colour."""
    from matplotlib import get_data_path

    side = min(max(picture.width // 28, 11), 40)
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", round(0.8 * side))
    line = round(1.5 * side)
    whole = Image.new("RGB", (picture.width, picture.height + line * len(names) + side // 2), "white")
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
        top = picture.height + row * line + side // 2
        draw.rectangle((side // 2, top, side // 2 + side, top + side), fill=colour)
        room = picture.width - 2.5 * side
        while draw.textlength(name, font) > room and len(name) > 1:
            name = f"{name[:-2].rstrip()}\u2026"
        draw.text((2 * side, top + side / 2), name, "black", font, anchor="lm")
    return whole


def _size(picture: Image.Image | Array) -> tuple[int, int]:
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def figure_image(figure: Any) -> Image.Image:
    """A matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: Any = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(pixels)[..., :3].copy())
