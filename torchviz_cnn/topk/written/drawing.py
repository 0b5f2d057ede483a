"""Pages of patches: what excites a channel, what in it drove the units, and what the channel is used for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from torchviz_cnn.core import checks
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.media.datasets.kept import kept
from torchviz_cnn.scores.projection import Projection
from torchviz_cnn.topk.patches import Crop, arranged, field_on_input, on_photo, projection_image, square, tile

if TYPE_CHECKING:
    from torchviz_cnn.topk.result import TopActivations


def keeping(top: TopActivations) -> TopActivations:
    """The same, for many pictures: photos that are read are kept, as far as `kept` says, and not read again."""
    return top.attached(kept(top.source), top.model)


def units_by_image(
    top: TopActivations, wanted: Mapping[str, Sequence[int]], k: int | None = None
) -> dict[int, list[tuple[str, int, int]]]:
    """The k strongest units of channels by the image that they are in, in rising order: layer, channel, and rank."""
    units: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for layer, channels in wanted.items():
        for channel in dict.fromkeys(channels):
            for rank, (image, _) in enumerate(top.units(layer, channel)[:k]):
                units[image].append((layer, channel, rank))
    return dict(sorted(units.items()))


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
    top = keeping(top)
    first, values = top.activation or top, dict[int, list[Tensor]]()
    projected = projection is not None and model is not None
    patches = _patches(first, layer, channels, context, side, with_inputs=projected)
    used = _patches(top, layer, channels, context, side) if first is not top else {}
    if projected:
        options: Any = {"projection": projection, "model": model, "other_activations": other_activations}
        values = first.project(layer, channels, **options)
    drawn = []
    for channel in channels:
        tiles, texts = [[patch for patch, _ in patches[channel]]], list[str]()
        if channel in values:
            pairs = zip(values[channel], patches[channel], strict=True)
            tiles.append([tile(projection_image(unit), crop, side) for unit, (_, crop) in pairs])
        if first is not top:
            texts = [_strength(first, layer, channel), *[""] * (len(tiles) - 1), _strength(top, layer, channel)]
            tiles.append([patch for patch, _ in used[channel]])
        drawn.append(arranged([square(several, top.k, side) for several in tiles], len(tiles), 6, texts))
    return drawn


def _patches(
    top: TopActivations, layer: str, channels: Sequence[int], context: float, side: int, with_inputs: bool = False
) -> dict[int, list[tuple[Image.Image, Crop]]]:
    """The patches of channels, strongest first, and where each is on the input; each photo is read once for all.

    `with_inputs`: inputs are kept too, as projections ask for them next.
    """
    source, units = kept(top._source()), units_by_image(top, {layer: channels})
    drawn: dict[int, dict[int, tuple[Image.Image, Crop]]] = {channel: {} for channel in channels}
    for image in source.fetched(list(units), inputs=with_inputs, views=True):
        if with_inputs:
            source.item(image)
        view = source.view(image)
        for _, channel, rank in units[image]:
            position = top.positions[layer][channel][rank].tolist()
            crop = field_on_input(top.fields.get(layer), position, view.input_size, context)
            drawn[channel][rank] = tile(view.photo, on_photo(crop, view, context), side), crop
    return {channel: [patches[rank] for rank in sorted(patches)] for channel, patches in drawn.items()}


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
