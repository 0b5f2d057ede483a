"""What the tensor of a layer is like: maps with their channels first or last, or tokens, and the maps in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import InputError, LayerError, counted, kind_of
from torchviz_cnn.core.names import named_layers, resolve
from torchviz_cnn.hooks.inputs import LayoutName
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.recorder import only_tensor

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd,)
_CHANNELS_FIRST = (
    *CONVOLUTIONS,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.GroupNorm,
)
_LEADING = (0, 1, 2, 5, 3, 4, 6, 7, 8)
"""How many tokens may come before the places: none, class, class and distillation, class and four registers, others."""
_REDUCED = (1, 2, 4, 8, 16)
"""How many times smaller the grid of tokens may be than a map that a convolution gave."""


@dataclass(frozen=True)
class Layout:
    """How maps (B, C, *S) lie in the tensor of a layer; read from the end, so that more dimensions may come after B."""

    dims: int
    """How many spatial dimensions there are: 1, 2 or 3."""
    last: bool = False
    """Whether the channels are in the last dimension."""
    grid: tuple[int, ...] = ()
    """Of tokens (B, N, C): the places that they make; empty for maps."""
    leading: int = 0
    """How many tokens before these are no places, as class and register tokens."""

    @property
    def channel_dim(self) -> int:
        """The dimension of the layer's own tensor that holds the channels, from the end: -1 or -1 - dims."""
        return -1 if self.last else -1 - self.dims

    def maps(self, tensor: Tensor) -> Tensor:
        """The maps in a layer's tensor, or in one of gradients: (B, C, *S), or (B, K, C, *S). A view."""
        if not self.last:
            return tensor
        if self.grid:
            places = tensor[..., self.leading :, :]
            tensor = places.view(*places.shape[:-2], *self.grid, places.shape[-1])
        return tensor.movedim(-1, -1 - self.dims)

    def own(self, maps: Tensor, like: Tensor) -> Tensor:
        """Maps (n, C, *S) as a tensor of the layer. Tokens that are no places are those of `like`, the layer's own.

        Maps of one place are taken for the same everywhere where places are tokens.
        """
        if not self.last:
            return maps
        places = maps.movedim(-1 - self.dims, -1)
        if not self.grid:
            return places
        tokens = places.expand(len(maps), *self.grid, -1).flatten(1, -2)
        return torch.cat([like[:, : self.leading].expand(len(maps), -1, -1), tokens], 1)

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.grid))} tokens" if self.grid else "maps"


def check_layout(layout: LayoutName) -> None:
    """Raise InputError for what is no layout."""
    if layout is None or layout in ("channels_first", "channels_last"):
        return
    sides = layout if isinstance(layout, (tuple, list)) else ()
    if 0 < len(sides) < 4 and all(type(side) is int and side > 0 for side in sides):
        return
    raise InputError(
        "layout is 'channels_first', 'channels_last' or the grid of tokens, as (14, 14), of 1 to 3 sides of at least "
        f"1; not {layout!r}"
    )


class Layouts:
    """Tells the layouts of what the layers of a model give in one forward pass on a batch.

    What convolutions give on the way says which grid tokens may make: `watch` has it noted, of those few that change
    the size.
    """

    def __init__(self, model: nn.Module, x: Tensor, asked: LayoutName = None) -> None:
        check_layout(asked)
        self._model, self._layers = model, named_layers(model)
        self._batch, self._image = len(x), tuple(x.shape[2:])
        self._asked = tuple(asked) if isinstance(asked, (tuple, list)) else asked
        self._sizes: list[tuple[int, ...]] = []

    def watch(self, hooks: HookManager) -> None:
        """Note what every convolution that changes the size of its map gives in passes of this manager."""
        names = [name for name, layer in self._layers.items() if changes_size(layer)]
        hooks.on_forward([f"{name}#*" for name in names], self.note)

    def note(self, name: str, output: Any) -> None:
        """Note the size of a convolution's map."""
        if isinstance(output, Tensor) and output.ndim == len(self._image) + 2 and math.prod(output.shape[2:]) > 1:
            size = tuple(output.shape[2:])
            self._sizes = [size, *(other for other in self._sizes if other != size)]  # the latest first

    def tensor(self, name: str, output: Any) -> Tensor:
        """The tensor that a layer gives, alone or as the only one in a tuple or dict.

        Raises LayerError where there is none or several, and where there are not as many maps as images.
        """
        tensor = only_tensor(output)
        if tensor is None:
            raise LayerError(f"layer {name!r} of {type(self._model).__name__} gives {_parts(output)}")
        if tensor.ndim and tensor.ndim > 2 and len(tensor) != self._batch:
            raise LayerError(
                f"layer {name!r} gives {counted(len(tensor), 'map')} for {counted(self._batch, 'image')}: "
                "they cannot be told apart"
            )
        return tensor

    def of(self, name: str, tensor: Tensor) -> Layout:
        """The layout of what a layer gave. Raises LayerError where there are no maps in it, or they are not known."""
        layer = self._layers[resolve(self._model, self._layers, name).name]
        shape, dims = tuple(tensor.shape), len(self._image)
        who = f"layer {name!r} of {type(self._model).__name__} gives"
        if isinstance(self._asked, tuple):
            return _grid_asked(who, shape, self._asked)
        if not 3 <= len(shape) <= 5:
            raise LayerError(f"{who} {shape}, not maps (B, C, {_SIDES[dims]}) or tokens (B, N, C)")
        if self._asked is not None:
            return Layout(len(shape) - 2, self._asked == "channels_last")
        if len(shape) == 3 and not _flattens(layer):
            signals = dims == 1 and not _has_features_last(layer, shape)
            return Layout(1) if signals else self._tokens(who, shape)
        if len(shape) > dims + 2 and not isinstance(layer, CONVOLUTIONS) and dims > 1:
            raise LayerError(
                f"{who} {shape}, not maps (B, C, {_SIDES[dims]}); if it is, "
                "layout='channels_first', as grad_cam has it, says so"
            )
        like = self._image if dims > 1 else None
        return Layout(len(shape) - 2, channels_last(layer, tensor, like))

    def _tokens(self, who: str, shape: tuple[int, ...]) -> Layout:
        count, dims = shape[1], len(self._image)
        if dims == 1 and not any(count - size[0] in _LEADING for size in self._sizes):
            return Layout(1, True)
        for grids in _reduced(self._sizes) if self._sizes else [_of_patches(self._image)]:
            for leading, grid in itertools.product(_LEADING, grids):
                if 1 < math.prod(grid) == count - leading:
                    return Layout(dims, True, grid, leading)
        size = " x ".join(map(str, self._image))
        known = ", ".join(" x ".join(map(str, size)) for size in self._sizes[:3])
        why = f"its convolutions gave maps of {known}" if known else "no square patches cover it so"
        raise LayerError(
            f"{who} {count} tokens {shape} for an input of {size}, which make no grid: {why}, with 0 to "
            f"{max(_LEADING)} class or register tokens before them; layout=(14, 14), as grad_cam has it, says the grid"
        )


_SIDES = {1: "l", 2: "h, w", 3: "d, h, w"}


def _parts(output: Any) -> str:
    """What a layer gives that is no tensor, in words, and what to do."""
    entries = list(output.items() if isinstance(output, dict) else enumerate(output)) if _holds_several(output) else []
    shapes = [f"{key!r}: {tuple(part.shape)}" for key, part in entries if isinstance(part, Tensor)]
    if not shapes:
        return f"{kind_of(output)}, not maps; name a layer inside it, or before it, that gives a tensor"
    return (
        f"{kind_of(output)} of several tensors ({', '.join(shapes)}), not maps; name the layer inside it that gives "
        "the one that is meant, or pass that one through an nn.Identity() and name this"
    )


def _holds_several(output: Any) -> bool:
    return isinstance(output, (tuple, list, dict))


def _grid_asked(who: str, shape: tuple[int, ...], grid: tuple[int, ...]) -> Layout:
    leading = shape[1] - math.prod(grid) if len(shape) == 3 else -1
    if leading < 0:
        words = " x ".join(map(str, grid))
        raise LayerError(f"{who} {shape}, not tokens (B, N, C) of which the last {math.prod(grid)} make {words}")
    return Layout(len(grid), True, grid, leading)


def _reduced(sizes: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Maps of these sizes made smaller, 1, 2, 4, 8 and 16 times, rounded up or down: all of them, one after the other.

    Of videos and volumes first with their first side kept, as most networks of videos do.
    """
    for kept in (1, 0) if len(sizes[0]) == 3 else (0,):
        for times in _REDUCED:
            yield [
                (*size[:kept], *(rounded(side / times) for side in size[kept:]))
                for size in sizes
                for rounded in (math.ceil, math.floor)
            ]


def _of_patches(image: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The grids that square patches, which cover an image without a rest, make."""
    sides = [side for side in range(1, min(image) + 1) if all(full % side == 0 for full in image)]
    return [tuple(full // side for full in image) for side in sides]


def _flattens(layer: nn.Module) -> bool:
    """Whether a layer's output of three dimensions is (B, C, L)."""
    return isinstance(layer, _CHANNELS_FIRST) or (isinstance(layer, nn.Flatten) and layer.start_dim == 2)


def _features(layer: nn.Module) -> tuple[int, ...]:
    """The size of the last dimension of what a layer gives, where its kind says so."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features,)
    if type(layer) is nn.LayerNorm:  # another kind may turn its input around
        return tuple(layer.normalized_shape[-1:])
    if isinstance(layer, nn.MultiheadAttention):
        return (layer.embed_dim,)
    if isinstance(layer, nn.RNNBase):
        return (layer.hidden_size * (1 + layer.bidirectional),)
    return ()


def changes_size(layer: nn.Module) -> bool:
    """Whether a layer is a convolution with a stride or without padding: its map is of another size than its input."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return False
    padded = any(layer.padding) and layer.padding != "valid"
    return max(layer.stride) > 1 or (max(layer.kernel_size) > 1 and not padded)


def _has_features_last(layer: nn.Module, shape: Sequence[int]) -> bool:
    """Whether linear layers, normalisations, attention or recurrent layers in a layer say that its last dimension holds
    the channels. Nothing is said where there is one in it that has its channels first."""
    inside = list(layer.modules())
    features = {value for module in inside for value in _features(module)}
    if shape[-1] not in features or any(isinstance(module, _CHANNELS_FIRST) for module in inside):
        return False
    return len(inside) == 1 or shape[1] not in features


def channels_last(layer: nn.Module, output: Any, image: tuple[int, ...] | None = None) -> bool:
    """Whether a layer's output of four or five dimensions is (B, *S, C).

    The kind of layer says so, or else the shape: its last two sides are in proportion to those of the `image`, where
    that is known, and the last two dimensions are not; or else the layers inside it.
    """
    if not isinstance(output, Tensor) or output.ndim not in (4, 5) or isinstance(layer, _CHANNELS_FIRST):
        return False
    first, second, third = output.shape[-3:]
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        plain = type(layer) is nn.LayerNorm  # another kind may turn its input around
        return bool(third == layer.normalized_shape[0] and (plain or output.shape[1] != third))
    if is_permutation(layer):
        return list(layer.dims) == [0, *range(2, output.ndim), 1]  # type: ignore[arg-type]
    if image is not None:
        last, before = _like(first, second, image[-2:]), _like(second, third, image[-2:])
        if last != before:
            return last
    return _has_features_last(layer, output.shape)


def is_permutation(layer: nn.Module) -> bool:
    """Whether a layer is torchvision's `Permute`, which is not imported for that: it takes a second."""
    return type(layer).__name__ == "Permute" and hasattr(layer, "dims")


def require_channels_first(model: nn.Module, layer: str, output: Any, image: tuple[int, ...] | None = None) -> None:
    """Raise LayerError for a layer that gives (B, h, w, C)."""
    layers = named_layers(model)
    if channels_last(layers[resolve(model, layers, layer).name], output, image):
        raise LayerError(
            f"layer {layer!r} of {type(model).__name__} gives {tuple(output.shape)} with its channels last, "
            "(B, h, w, C), not maps (B, C, h, w): name a layer before or behind it, or make it end in a module that "
            "permutes to (B, C, h, w), as torchvision.ops.Permute([0, 3, 1, 2])"
        )


def _like(height: int, width: int, image: tuple[int, ...]) -> bool:
    """Whether a map is in proportion to the image, but for rounding by one place."""
    return abs(height * image[1] - width * image[0]) < max(image) and max(height, width) > 1
