"""Pages of patches: what excites a channel, what in it drove the units, and what the channel is used for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.scores.projection import Projection
from torchviz_cnn.topk.patches import arranged, field_on_input, on_photo, projection_image, square, tile

if TYPE_CHECKING:
    from torchviz_cnn.topk.result import TopActivations


def blocks(
    top: TopActivations,
    layer: str,
    channels: Sequence[int],
    projection: Projection | None,
    context: float,
    side: int,
    model: Model | None,
    other_activations: OtherActivations,
) -> list[Image.Image]:
    """A picture of each channel: its patches in a square and, with a projection and a model, their projections.

    By relevance, what excites the channel is drawn so, and the patches that it is used for stand behind it.
    """
    side, context = checks.whole_number("side", side), checks.number("context", context, 1)
    first, values = top.activation or top, dict[int, list[Tensor]]()
    if projection is not None and model is not None:
        options: Any = {"projection": projection, "model": model, "other_activations": other_activations}
        values = first.project(layer, channels, **options)
    drawn = []
    for channel in channels:
        squares, texts = _squares(first, layer, channel, values.get(channel), context, side), list[str]()
        if first is not top:
            texts = [_strength(first, layer, channel), *[""] * (len(squares) - 1), _strength(top, layer, channel)]
            squares += _squares(top, layer, channel, None, context, side)
        drawn.append(arranged(squares, len(squares), 6, texts))
    return drawn


def title(top: TopActivations, layer: str, channel: int) -> str:
    """What stands above a channel."""
    return f"channel {channel}" + (f": {_strength(top, layer, channel)}" if top.activation is None else "")


def legend(top: TopActivations, layer: str) -> str:
    """What a page of a layer shows, in words."""
    if top.activation is None:
        return f"{layer}: the patches that excite each channel most, and its strongest activation"
    return (
        f"{layer}, left: the patches that excite each channel most. Right: what it is used for, the patches where it "
        f"adds most to the score of {top.target} (relevance: activation x gradient, summed over the image)"
    )


def _strength(top: TopActivations, layer: str, channel: int) -> str:
    """What the number of a channel is, and the number."""
    return f"{top.by} {float(top.values[layer][channel, 0]):.4g}"


def _squares(
    top: TopActivations, layer: str, channel: int, values: list[Tensor] | None, context: float, side: int
) -> list[Image.Image]:
    """The patches of a channel in a square and, where there are some, their projections in another."""
    patches, projected = [], []
    for i, (view, position) in enumerate(top.views(layer, channel)):
        crop = field_on_input(top.fields.get(layer), position, view.input_size, context)
        patches.append(tile(view.photo, on_photo(crop, view, context), side))
        if values is not None:
            projected.append(tile(projection_image(values[i]), crop, side))
    return [square(tiles, top.k, side) for tiles in ([patches] if values is None else [patches, projected])]
