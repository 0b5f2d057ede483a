"""What a unit sees: its receptive field on the photo, and what in it drives the unit, projected down to pixels."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from torchviz_cnn.hooks.inputs import prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.layers.receptive_field import ReceptiveField
from torchviz_cnn.media import render
from torchviz_cnn.media.datasets.source import ImageSource, View
from torchviz_cnn.scores.projection import Projection, projected_units

_ROWS = 16
"""How many units are projected at once."""
_NOTHING = 128
"""The grey of what is not there, as of a projection's zero."""
_LETTER, _LINE = 6, 14
"""Width and height of a letter of a title, in pixels."""


@dataclass(frozen=True)
class Crop:
    """A box (left, top, right, bottom) in pixels of a picture, and the part of it that lies inside the picture."""

    box: render.Box
    shown: render.Box


def field_on_input(
    field: ReceptiveField | None, position: Sequence[int], input_size: tuple[int, int], context: float = 1.0
) -> Crop:
    """The receptive field of the unit at (row, column) of a layer's map, `context` times as large, on an input (H, W).

    A side of it that is as long as the input's, is the input's; None is a unit that sees everything. Of what lies
    beyond the input, the unit sees padding only: that is not shown.

    >>> field = ReceptiveField((7, 7), (2, 2), (-3, -3), whole=False)
    >>> field_on_input(field, (0, 5), (32, 32)).box, field_on_input(field, (0, 5), (32, 32)).shown
    ((7.0, -3.0, 14.0, 4.0), (7.0, 0.0, 14.0, 4.0))
    """
    edges = []
    for d in (0, 1):
        start, size = 0.0, float(input_size[d])
        if field is not None and field.size[d] < input_size[d]:
            start, size = float(field.start[d] + position[d] * field.stride[d]), float(field.size[d])
        middle, half = start + size / 2, size * context / 2
        edges.append((middle - half, middle + half))
    (top, bottom), (left, right) = edges
    box = (left, top, right, bottom)
    return Crop(box, _inside(box, input_size[1], input_size[0]))


def on_photo(crop: Crop, view: View, context: float = 1.0) -> Crop:
    """The same on the photo that the input was made from: mapped back through its crop and resize.

    With more than the field itself (`context` above 1), what the photo shows beyond the network's crop is shown too.
    """
    left, top, right, bottom = view.box
    x, y = (right - left) / view.input_size[1], (bottom - top) / view.input_size[0]

    def back(box: render.Box) -> render.Box:
        return (left + box[0] * x, top + box[1] * y, left + box[2] * x, top + box[3] * y)

    box = back(crop.box)
    return Crop(box, _inside(box if context > 1 else back(crop.shown), view.photo.width, view.photo.height))


def cut(picture: Image.Image, crop: Crop) -> Image.Image:
    """What a window shows of a picture, at the picture's own pixels: rounded to whole ones, at least one."""
    left, top, right, bottom = crop.shown
    x, y = min(round(left), picture.width - 1), min(round(top), picture.height - 1)
    return picture.crop((x, y, max(round(right), x + 1), max(round(bottom), y + 1)))


def tile(picture: Image.Image, crop: Crop, side: int) -> Image.Image:
    """A window of a picture, its longer side `side` pixels; grey where it shows nothing."""
    left, top, right, bottom = crop.box
    scale = side / max(right - left, bottom - top)
    size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
    canvas = Image.new("RGB", size, (_NOTHING, _NOTHING, _NOTHING))
    x0, x1 = (min(max(round((edge - left) * scale), 0), size[0]) for edge in crop.shown[::2])
    y0, y1 = (min(max(round((edge - top) * scale), 0), size[1]) for edge in crop.shown[1::2])
    if x1 > x0 and y1 > y0:
        canvas.paste(picture.convert("RGB").resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, crop.shown), (x0, y0))
    return canvas


def _inside(box: render.Box, width: float, height: float) -> render.Box:
    left, top = min(max(box[0], 0.0), width), min(max(box[1], 0.0), height)
    return (left, top, max(min(box[2], float(width)), left), max(min(box[3], float(height)), top))


def project_units(
    model: Model,
    source: ImageSource,
    layer: str,
    images: Sequence[int],
    channels: Sequence[int],
    positions: Sequence[Sequence[int]],
    projection: Projection = "deconvnet",
    other_activations: OtherActivations = "error",
) -> list[Tensor]:
    """Project one unit of a layer for each image of a dataset down to its pixels, (C, H, W) each, a batch at a time.

    A unit is a channel and a position (row, column), (0, 0) for features (B, C). Raises LayerError for activations that
    are not ReLUs.
    """
    projections: list[Tensor] = []
    read = {image: source.item(image)[0] for image in source.fetched(sorted(set(images)))}
    inputs = [read[image] for image in images]
    for _, same in groupby(range(len(inputs)), key=lambda i: (inputs[i].shape, i // _ROWS)):
        part = list(same)
        with (
            prepared(model, torch.stack([inputs[i] for i in part]), dims=(2,)) as given,
            projected_units(given, [layer], projection, other_activations) as units,
        ):
            maps = units.maps[layer]
            row, column = torch.tensor([positions[i] for i in part]).T
            unit_masks = torch.zeros(len(part), 1, *maps.shape[2:])
            unit_masks[torch.arange(len(part)), 0, row, column] = 1
            channel = torch.tensor([channels[i] for i in part], device=maps.device)[:, None]
            projections += list(units.project(layer, channel, unit_masks.to(maps.device))[:, 0])
    return projections


def projection_image(values: Tensor) -> Image.Image:
    """A projection (C, H, W) as a picture of its size: 0 is mid-grey, the strongest values black or white."""
    return Image.fromarray(render.signed_colours(values.detach().cpu().numpy()))


def square(tiles: Sequence[Image.Image], count: int, side: int) -> Image.Image:
    """Tiles in as many columns as rows, row by row; grey where there are fewer than `count`."""
    size = max((t.width for t in tiles), default=side), max((t.height for t in tiles), default=side)
    empty = [Image.new("RGB", size, (235, 235, 235))] * (count - len(tiles))
    return arranged([*tiles, *empty], math.ceil(math.sqrt(count)), 2)


def arranged(pictures: Sequence[Image.Image], columns: int, gap: int, texts: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows of `columns`, `gap` pixels apart, each below its text where there are texts."""
    above = 15 if texts else 0
    width = max(picture.width for picture in pictures) + gap
    height = max(picture.height for picture in pictures) + above + gap
    canvas = Image.new("RGB", (columns * width - gap, math.ceil(len(pictures) / columns) * height - gap), "white")
    for i, picture in enumerate(pictures):
        left, top = i % columns * width, i // columns * height
        canvas.paste(picture, (left, top + above))
        if texts:
            ImageDraw.Draw(canvas).text((left, top + 1), texts[i], fill="black")
    return canvas


def titled(picture: Image.Image, text: str) -> Image.Image:
    """A picture below a text, which is broken into lines of its width."""
    lines = textwrap.wrap(text, max(picture.width // _LETTER, 12))
    canvas = Image.new("RGB", (picture.width, picture.height + _LINE * len(lines) + 6), "white")
    canvas.paste(picture, (0, canvas.height - picture.height))
    for i, line in enumerate(lines):
        ImageDraw.Draw(canvas).text((0, _LINE * i), line, fill="black")
    return canvas
