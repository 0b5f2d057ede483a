"""Pictures as notebooks show them: a PNG of limited size, never matplotlib's current figure."""

from __future__ import annotations

import io
import logging
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from torchviz_cnn.core.errors import TorchvizError
from torchviz_cnn.media import figures

WIDTH, HEIGHT = 1600, 2400
"""A notebook's picture has at most as many pixels."""
AT_MOST = 12
"""How many pictures are shown of a result that has more."""
_COLUMNS, _GAP = 4, 0.08
"""Pictures in a row, and the gap between them in inches."""
_SIDE = 480
"""The longer side of a photo that a picture is drawn on, in pixels."""
_log = logging.getLogger("torchviz_cnn")


def png(draw: Callable[[], Image.Image | None]) -> bytes | None:
    """What a function draws as the bytes of a PNG file, in the size of a notebook; None where it cannot be drawn.

    The notebook then shows the result as text. The reason, as photos that are no longer there, is logged.
    """
    try:
        picture = draw()
    except TorchvizError as error:
        _log.info("a result is shown as text, as it cannot be drawn: %s", error)
        return None
    if picture is None:
        return None
    picture = smaller(picture, WIDTH, HEIGHT)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def smaller(picture: Image.Image, width: int = _SIDE, height: int = _SIDE) -> Image.Image:
    """A picture at most this large, its sides in proportion."""
    if picture.width <= width and picture.height <= height:
        return picture
    picture = picture.copy()
    picture.thumbnail((width, height), Image.Resampling.LANCZOS)
    return picture


def left_out(shown: int, count: int, what: str) -> str:
    """How many are shown, in words, where there are more.

    >>> left_out(12, 40, "maps"), left_out(3, 3, "maps")
    ('12 of 40 maps', '')
    """
    return f"{shown} of {count} {what}" if shown < count else ""


@figures.usual_style()
def titled_grid(tiles: Sequence[tuple[str, Image.Image]], headline: str = "", columns: int = _COLUMNS) -> Image.Image:
    """Pictures in rows, each with its title, as one figure with a headline."""
    from matplotlib.figure import Figure

    columns = min(columns, len(tiles))
    wide = max(min(max(picture.width / picture.height, 0.4), 2.5) for _, picture in tiles)
    inches, letters = (2.6, 40) if columns > 2 else (3.6, 52)
    across = inches * max(wide, 1)
    titles = [textwrap.fill(title, int(letters * max(wide, 1)), max_lines=3) for title, _ in tiles]
    above = 0.17 * max(title.count("\n") + 1 for title in titles) + 0.07
    headline = textwrap.fill(headline, int(11 * across * columns), max_lines=2)
    head = 0.22 * (headline.count("\n") + 1) + 0.06 if headline else 0
    down, rows = across / wide, -(-len(tiles) // columns)
    width, height = (across + _GAP) * columns, (down + above) * rows + head + _GAP
    figure = Figure(figsize=(width, height), dpi=100)
    for place, (title, (_, picture)) in enumerate(zip(titles, tiles, strict=True)):
        row, column = divmod(place, columns)
        left, top = column * (across + _GAP) + _GAP / 2, head + row * (down + above) + above
        axes = figure.add_axes((left / width, 1 - (top + down) / height, across / width, down / height))
        axes.imshow(np.asarray(smaller(picture)))
        axes.set_title(title, fontsize=9, pad=3, parse_math=False)
        axes.set_axis_off()
    if headline:
        figure.suptitle(headline, fontsize=11, y=1 - 0.06 / height, va="top", parse_math=False)
    return figures.figure_image(figure)


def below_each_other(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on white."""
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole
