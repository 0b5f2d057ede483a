"""Activations as a notebook shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from torchviz_cnn.media.notebook import pictures

if TYPE_CHECKING:
    from torchviz_cnn.layers.capture import Activations

_CHANNELS, _OF_SEVERAL = 64, 16
"""How many channels are shown of one layer, and of each of several."""
_SIDE = 400


def picture_of_activations(acts: Activations) -> Image.Image | None:
    """The channels of the first image that are strongest, of one layer or of several; None where none has maps."""
    layers = [name for name, tensor in acts.items() if tensor.ndim == 4 and tensor.shape[2] * tensor.shape[3] > 1]
    if not layers:
        return None
    tiles = [] if acts.origin.photos is None else [("photo", pictures.smaller(acts.origin.photo(0)))]
    room = pictures.AT_MOST - len(tiles)
    step = max(len(layers) - 1, 1) / max(min(room, len(layers)) - 1, 1)
    shown = [layers[round(step * place)] for place in range(min(room, len(layers)))]
    channels = _CHANNELS if len(layers) == 1 else _OF_SEVERAL
    tiles += [_tile(acts, name, channels) for name in shown]
    images = len(acts[layers[0]])
    words = [f"image 1 of {images}" * (images > 1), pictures.left_out(len(shown), len(layers), "layers")]
    columns = 2 if len(layers) == 1 else 4
    return pictures.titled_grid(tiles, "; ".join(filter(None, words)), columns)


def _tile(acts: Activations, name: str, k: int) -> tuple[str, Image.Image]:
    maps = acts[name][0]
    strongest = torch.nan_to_num(maps.detach().float()).amax((1, 2)).topk(min(k, len(maps))).indices
    channels = sorted(strongest.tolist())
    columns = 1 << max(len(channels) - 1, 0).bit_length() // 2
    picture = acts.grid(name, 0, channels, columns=columns)
    factor = max(_SIDE // max(picture.size), 1)
    large = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    count = (
        f"the strongest {len(channels)} of {len(maps)} channels"
        if len(channels) < len(maps)
        else f"{len(maps)} channels"
    )
    return f"{name}: {count}, {' x '.join(map(str, maps.shape[1:]))}", large
