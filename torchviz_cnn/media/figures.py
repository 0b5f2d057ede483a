"""Figures with titles, captions and legends, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from torchviz_cnn.core.errors import InputError, kind_of
from torchviz_cnn.media import render
from torchviz_cnn.media.render import Array, Colour, Interpolation

_LABEL = 14
"""Height of the number of a tile, in pixels."""


@contextmanager
def usual_style() -> Iterator[None]:
    """Draw by matplotlib's own settings, not by the user's (`image.origin`, `text.usetex` and others)."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@usual_style()
def titled(picture: Array, title: str, scale: float, bar: tuple[str, Sequence[str]] | None = None) -> Image.Image:
    """A picture as a figure with a title and no axes, `scale` inches per pixel (at most 200 inches a side).

    `bar`: a colormap, and what its colours mean from the lowest to the highest: they are drawn below the picture.
    """
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    scale = min(scale, 200 / max(height, width))
    below = 0.0 if bar is None else 0.4
    size = (max(width * scale, 1), max(height * scale, 1) + 0.5 + below)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    # Made smaller, a pixel is the mean of those that it stands for: the nearest alone would draw patterns of its own.
    axes.imshow(picture, aspect="auto", interpolation="auto")
    axes.set_title(title, parse_math=False)
    _hide_axis(axes)
    if bar is not None:
        _colour_bar(figure, axes, *bar)
    return figure_image(figure)


def _colour_bar(figure: Any, axes: Any, colormap: str, texts: Sequence[str]) -> None:
    from matplotlib.cm import ScalarMappable

    share = min(1.0, 4.5 / figure.get_figwidth())
    bar = figure.colorbar(
        ScalarMappable(cmap=colormap), ax=axes, orientation="horizontal", shrink=share, aspect=40, pad=0.02
    )
    bar.set_ticks(list(np.linspace(0, 1, len(texts))), labels=list(texts), fontsize=8)
    bar.outline.set_visible(False)


@usual_style()
def bars(values: Array, title: str, meaning: str) -> Image.Image:
    """Numbers (n,) as a figure of bars, each above its place; `meaning` says what the numbers are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(max(4.0, 0.02 * len(values) + 3), 12), 2.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.bar(np.arange(len(values)), np.nan_to_num(values), width=0.8 if len(values) < 200 else 1.0)
    axes.set_title(title, parse_math=False, fontsize=11)
    axes.set_xlabel("channel", fontsize=9)
    axes.set_ylabel(meaning, fontsize=9)
    axes.margins(x=0.01)
    return figure_image(figure)


def numbered(tiles: Array, numbers: Sequence[int]) -> Array:
    """Tiles (n, h, w, 3) uint8, each above its number on black: (n, h + 14, w, 3)."""
    font, height = _font(11), tiles.shape[1]
    labelled = np.zeros((len(tiles), height + _LABEL, *tiles.shape[2:]), np.uint8)
    for tile, whole, number in zip(tiles, labelled, numbers, strict=True):
        label = Image.new("L", (tile.shape[1], _LABEL))
        ImageDraw.Draw(label).text((tile.shape[1] / 2, _LABEL / 2), str(number), 255, font, anchor="mm")
        whole[:height], whole[height:] = tile, np.asarray(label)[..., None]
    return labelled


def headed(picture: Image.Image, heading: str) -> Image.Image:
    """A picture, pixel by pixel, below a heading in as many lines as its width takes."""
    font = _font(13)
    room = picture.width - 8
    lines = [""]
    for word in heading.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if not lines[-1] or font.getlength(longer) <= room else [*lines, word]
    above = 18 * len(lines) + 8
    whole = Image.new("RGB", (picture.width, picture.height + above), "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(whole).text((4, 4 + 18 * row), line, "black", font)
    whole.paste(picture, (0, above))
    return whole


def _font(size: int) -> Any:
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


@usual_style()
def panel(
    pictures: Sequence[Image.Image | Array],
    titles: Sequence[str],
    headline: str = "",
    *,
    bars: Mapping[int, tuple[str, Sequence[float]]] | None = None,
) -> Image.Image:
    """Draw pictures side by side with a title each, as one figure.

    Args:
        pictures: PIL pictures, or arrays (h, w, 3); grey arrays (h, w) are drawn in viridis.
        titles: a title for each of them.
        headline: a line above all.
        bars: by place of a picture, a colormap and the values of its first and last colour, for a colour bar. An array
            (h, w) has one without.

    Raises:
        InputError: for no pictures, or another number of titles.

    >>> panel([Image.new("RGB", (80, 60)), np.eye(4)], ["a photo", "a map"]).mode
    'RGB'
    """
    from matplotlib.figure import Figure

    if not pictures or len(pictures) != len(titles):
        raise InputError(f"there are {len(pictures)} pictures and {len(titles)} titles: each picture takes one title")
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
        drawn = axes.imshow(np.asarray(picture), cmap="viridis", interpolation="auto")
        axes.set_title(title, fontsize=11, parse_math=False)
        _hide_axis(axes)
        bar = (bars or {}).get(place)
        if bar is not None or (not isinstance(picture, Image.Image) and picture.ndim == 2):
            scale = drawn if bar is None else _scale(*bar)
            figure.colorbar(scale, ax=axes, shrink=0.8, aspect=30).ax.tick_params(labelsize=8)
    if headline:
        figure.suptitle(headline, fontsize=13, parse_math=False)
    return figure_image(figure)


def _scale(colormap: str, ends: Sequence[float]) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = ends
    return ScalarMappable(Normalize(low, max(high, low + 1e-12)), colormap)


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
            _hide_axis(axes)
            if row < len(column):
                caption, picture = column[row]
                axes.imshow(np.asarray(picture))
                axes.set_title(f"{title}\n{caption}" if row == 0 else caption, fontsize=8, parse_math=False)
    if headline:
        figure.suptitle(headline, fontsize=11, parse_math=False)
    return figure_image(figure)


def with_legend(picture: Image.Image, names: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """A picture with a line of text below it for each name, beside a square in its colour."""
    side = min(max(picture.width // 28, 11), 40)
    font = _font(round(0.8 * side))
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


def map_figure(
    values: Array,
    size: Sequence[int],
    given: Any = None,
    *,
    colormap: str | None = None,
    alpha: float = 0.4,
    interpolation: Interpolation = "bilinear",
    headline: str = "",
) -> Image.Image:
    """A map of a signal (l,) or of a volume or video (d, h, w), in 0..1, as a figure at the size of the input.

    A map (h, w) of these, as of a spectrogram that a network makes itself, is drawn alone.

    Args:
        values: the map.
        size: the sides of the input; the map's own where these are of another number of dimensions.
        given: the signal (L,) or (C, L), drawn as curves over the map's colours, or the volume (D, H, W), (1, D, H, W)
            or (3, D, H, W), drawn under them; without it the map alone.
        colormap: a name that matplotlib knows; by default `Reds` for signals and `jet` for volumes.
        alpha: strength of the colours over a volume.
        interpolation: how the map is enlarged.
        headline: a line above.

    Raises InputError for a signal or volume that does not fit.
    """
    size = tuple(size) if len(size) == values.ndim else values.shape
    if values.ndim == 2:
        if given is not None:
            raise InputError("the input is no picture, and the map (h, w) is: it is drawn alone")
        return panel([render.colormap(np.clip(values, 0, 1), colormap or "jet")], ["map"], headline)
    below = None if given is None else _below(given, size)
    values = render.enlarged(values, size, interpolation)
    if values.ndim == 1:
        return _curve_figure(values, below, colormap or "Reds", headline)
    return _slices_figure(values, below, colormap or "jet", alpha, headline)


def _below(given: Any, size: tuple[int, ...]) -> Array:
    """A signal or volume as numbers (C, *size)."""
    kind, sides = {1: ("signal", "(L,) or (C, L)"), 3: ("volume", "(D, H, W) or (C, D, H, W)")}[len(size)]
    if hasattr(given, "detach"):
        given = given.detach().cpu().float().numpy()
    if not isinstance(given, np.ndarray):
        raise InputError(f"a {kind} is a tensor or an array {sides}, not {kind_of(given)}")
    if given.shape[-len(size) :] != size or given.ndim not in (len(size), len(size) + 1):
        expected = " x ".join(map(str, size))
        raise InputError(f"the {kind} {given.shape} does not fit an input of {expected}: give {sides}, as x[index] is")
    return np.nan_to_num(given.astype(np.float64).reshape(-1, *size))


@usual_style()
def _curve_figure(values: Array, signal: Array | None, colormap: str, headline: str) -> Image.Image:
    """The channels of a signal (C, L) as curves, or the map itself, on the colours of a map (L,)."""
    from matplotlib.figure import Figure

    curves = values[None] if signal is None else signal
    low, high = float(curves.min()), float(curves.max())
    margin = 0.05 * (high - low) or 1.0
    figure = Figure(figsize=(9, 2.6 + 0.3 * bool(headline)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    extent = (-0.5, len(values) - 0.5, low - margin, high + margin)
    colours = render.colormap(np.clip(values, 0, 1), colormap)[None]
    axes.imshow(colours, aspect="auto", extent=extent, interpolation="nearest")
    for place, curve in enumerate(curves):
        axes.plot(curve, color="black" if len(curves) == 1 else f"C{place % 10}", linewidth=1.2)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_xlabel("place in the signal")
    axes.set_ylabel("map" if signal is None else "signal")
    if headline:
        figure.suptitle(headline, fontsize=13, parse_math=False)
    return figure_image(figure)


_SLICES = 11
"""At most as many slices of a volume are drawn, and their maximum: three rows of four."""


@usual_style()
def _slices_figure(values: Array, volume: Array | None, colormap: str, alpha: float, headline: str) -> Image.Image:
    """Slices of a map (D, H, W) in colour, over those of a volume (C, D, H, W) where one is given, and the maximum."""
    from matplotlib.figure import Figure

    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), _SLICES)).round().astype(int))
    maps = {f"slice {place}": values[place] for place in places}
    below = [None if volume is None else volume[:, place] for place in places]
    if len(places) > 1:
        maps["maximum of all slices"] = values.max(0)
        below.append(None if volume is None else volume.mean(1))
    low, high = (0.0, 1.0) if volume is None else (float(volume.min()), float(volume.max()))
    height, width = values.shape[1:]
    columns = min(len(maps), 4)
    rows, ratio = -(-len(maps) // columns), min(max(height / width, 0.25), 4)
    figsize = (2.4 * columns, (2.4 * ratio + 0.35) * rows + 0.35 * bool(headline))
    figure = Figure(figsize=figsize, dpi=100, layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for place, ((title, part), under) in enumerate(zip(maps.items(), below, strict=True)):
        picture = render.colormap(np.clip(part, 0, 1), colormap)
        if under is not None:
            colour = under if len(under) == 3 else under.mean(0, keepdims=True).repeat(3, 0)
            grey = (colour.transpose(1, 2, 0) - low) / ((high - low) or 1) * 255
            picture = ((1 - alpha) * grey + alpha * picture).round().astype(np.uint8)
        axes = figure.add_subplot(grid[divmod(place, columns)])
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=9, parse_math=False)
        _hide_axis(axes)
    if headline:
        figure.suptitle(headline, fontsize=12, parse_math=False)
    return figure_image(figure)


def _size(picture: Image.Image | Array) -> tuple[int, int]:
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def _hide_axis(axes: Any) -> None:
    """Draw no frame and no ticks; what is only not drawn would be measured for the layout all the same."""
    axes.set_axis_off()
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)


def figure_image(figure: Any) -> Image.Image:
    """A matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: Any = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(pixels)[..., :3].copy())
