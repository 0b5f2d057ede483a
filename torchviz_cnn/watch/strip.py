"""The strip: one picture of a training, a column for each step and a row for each photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchviz_cnn.watch.checkpoint import Checkpoint, peaks, shown_loss
from torchviz_cnn.watch.history import spread
from torchviz_cnn.watch.photos import mosaic
from torchviz_cnn.watch.subject import Subject

COLUMNS = 12
"""At most as many steps are drawn, spread evenly over those that are kept."""
CELL, GAP, HEAD, NAMES, LINE = 116, 10, 44, 168, 17
"""In pixels: the side of a cell, the space between two, the head, the names of the rows, a line of text."""
DEAD_ROWS = 8
"""At most as many layers have a line of their own: those with the most dead channels in the last column."""
INK, SOFT, LINES = "#1c1e21", "#575c63", "#e3dfd7"


def strip(subject: Subject, kept: Sequence[Checkpoint]) -> Image.Image:
    """Draw the steps that are kept, or as many of them as there is room for."""
    shown = [kept[place] for place in spread(len(kept), COLUMNS)]
    strongest = peaks(kept)
    rows = [_photo_row(subject, shown, place, strongest) for place in range(len(subject.photos))]
    rows += [_pictures_row(subject, shown, layer) for layer in _pictured(shown)]
    rows += _dead_rows(shown)
    notes = _notes(subject, bool(_pictured(shown)), bool(shown[-1].layers))
    width = NAMES + max(len(shown) * (CELL + GAP), 5 * CELL)
    height = HEAD + sum(row.height + GAP for row in rows) + LINE * len(notes) + GAP
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for place, one in enumerate(shown):
        left = NAMES + place * (CELL + GAP)
        _write(draw, (left, 8), f"step {one.step:,}", CELL, bold=True)
        _write(draw, (left, 8 + LINE), shown_loss(one.loss), CELL, SOFT)
    top = HEAD
    for row in rows:
        page.paste(row, (0, top))
        top += row.height + GAP
    for note in notes:
        _write(draw, (GAP, top), note, width - 2 * GAP, SOFT)
        top += LINE
    return page


def _photo_row(subject: Subject, shown: Sequence[Checkpoint], place: int, strongest: Tensor) -> Image.Image:
    photo = subject.photos[place]
    small = photo.picture.copy()
    small.thumbnail((CELL // 2, CELL // 2))
    cells = [photo.tinted(_scaled(one.heat[place], strongest[place]), CELL) for one in shown]
    height = cells[0].height
    row = Image.new(
        "RGB", (NAMES + len(shown) * (CELL + GAP), max(height, small.height + 2 * LINE) + LINE + 2), "white"
    )
    draw = ImageDraw.Draw(row)
    row.paste(small, (GAP, 0))
    _write(draw, (GAP, small.height + 2), photo.name, NAMES - 2 * GAP)
    _write(draw, (GAP, small.height + 2 + LINE), _explained(subject, shown, place), NAMES - 2 * GAP, SOFT)
    for column, (one, cell) in enumerate(zip(shown, cells, strict=True)):
        left = NAMES + column * (CELL + GAP)
        row.paste(cell, (left + (CELL - cell.width) // 2, 0))
        _write(draw, (left, height + 2), _probability(subject, one, place), CELL)
    return row


def _scaled(heat: Tensor, strongest: Tensor) -> Any:
    return (heat / strongest.clamp(min=1e-30)).numpy()


def _explained(subject: Subject, shown: Sequence[Checkpoint], place: int) -> str:
    classes = {int(one.target[place]) for one in shown}
    return subject.words(classes.pop()) if subject.target is not None else "likeliest class"


def _probability(subject: Subject, one: Checkpoint, place: int) -> str:
    if one.trouble is not None:
        return "not finite"
    own, target, predicted = float(one.probability[place]), int(one.target[place]), int(one.predicted[place])
    if subject.target is None:
        return f"{subject.words(target)} {own:.2f}"
    return f"{own:.2f}" if target == predicted else f"{own:.2f} ({subject.words(predicted)})"


def _pictured(shown: Sequence[Checkpoint]) -> list[str]:
    """The layers of which there are pictures, as all steps but those without numbers have them."""
    return list(dict.fromkeys(layer for one in shown for layer in one.pictures))


def _pictures_row(subject: Subject, shown: Sequence[Checkpoint], layer: str) -> Image.Image:
    row = Image.new("RGB", (NAMES + len(shown) * (CELL + GAP), CELL), "white")
    draw = ImageDraw.Draw(row)
    what = "first filters" if layer == subject.first else f"channels {', '.join(map(str, subject.channels[layer]))}"
    _write(draw, (GAP, 0), layer, NAMES - 2 * GAP)
    _write(draw, (GAP, LINE), what, NAMES - 2 * GAP, SOFT)
    for column, one in enumerate(shown):
        if layer in one.pictures:
            row.paste(mosaic(one.pictures[layer], CELL), (NAMES + column * (CELL + GAP), 0))
    return row


def _dead_rows(shown: Sequence[Checkpoint]) -> list[Image.Image]:
    """Lines of text: how many channels are dead in all layers, and in those where most are."""
    by_layer = {
        name: [_dead_of(one, name) for one in shown] for name in dict.fromkeys(n for o in shown for n in o.layers)
    }
    if not by_layer:
        return []
    ever = [name for name, counts in by_layer.items() if any(dead for dead, _ in filter(None, counts))]
    most = sorted(ever, key=lambda name: -(by_layer[name][-1] or (0, 0))[0])[:DEAD_ROWS]
    lines = [
        ("dead channels", [_text(sum(o.dead.tolist()), sum(o.channels.tolist())) if o.layers else "" for o in shown])
    ]
    lines += [(f"  {name}", [_text(*pair) if pair else "" for pair in by_layer[name]]) for name in ever if name in most]
    if len(ever) > len(most):
        lines.append((f"  and {len(ever) - len(most)} more layers", [""] * len(shown)))
    row = Image.new("RGB", (NAMES + len(shown) * (CELL + GAP), LINE * len(lines) + 4), "white")
    draw = ImageDraw.Draw(row)
    for number, (name, texts) in enumerate(lines):
        _write(draw, (GAP, number * LINE + 2), name, NAMES - 2 * GAP, INK if number == 0 else SOFT)
        for column, text in enumerate(texts):
            _write(draw, (NAMES + column * (CELL + GAP), number * LINE + 2), text, CELL, INK if number == 0 else SOFT)
    return [row]


def _dead_of(one: Checkpoint, layer: str) -> tuple[int, int] | None:
    if layer not in one.layers:
        return None
    place = one.layers.index(layer)
    return int(one.dead[place]), int(one.channels[place])


def _text(dead: int, channels: int) -> str:
    return f"{dead:,} of {channels:,}"


def _notes(subject: Subject, pictured: bool, counted: bool) -> list[str]:
    target = "its likeliest class" if subject.target is None else "the class"
    notes = [
        f"Red: evidence for {target}, of the network in evaluation mode. Each row has one scale: the densest red is "
        "the strongest evidence in that photo over all kept steps.",
        f"Below each picture: the probability of {target}"
        + ("." if subject.target is None else "; in brackets the predicted class where it is another one."),
    ]
    if pictured and subject.channels:
        notes.append("Filter patterns begin with the same noise at every step: what changes is the network.")
    if counted:
        notes.append("Dead channels are never above zero on any of these photos; others may be active on other photos.")
    return notes


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int, ink: str = INK, *, bold: bool = False
) -> None:
    """A line of text, cut short where there is no room for it."""
    font = _font(bold)
    while draw.textlength(text, font) > room and len(text) > 1:
        text = f"{text[:-2].rstrip()}\u2026"
    draw.text(place, text, ink, font)


def _font(bold: bool) -> Any:
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' * bold}.ttf", 12)
