"""Where a layer's channels are: in the second dimension, as everywhere in this library, or in the last."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.core.names import named_layers, resolve

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.GroupNorm,
)


def channels_last(layer: nn.Module, output: Any, image: tuple[int, ...] | None = None) -> bool:
    """Whether a layer's output of four dimensions is (B, h, w, C).

    The kind of layer says so, or else the shape: (h, w) is in proportion to the (H, W) of the `image`, where that is
    known, and the last two dimensions are not.
    """
    if not isinstance(output, Tensor) or output.ndim != 4 or isinstance(layer, _CHANNELS_FIRST):
        return False
    _, first, second, third = output.shape
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        plain = type(layer) is nn.LayerNorm  # another kind may turn its input around
        return bool(third == layer.normalized_shape[0] and (plain or first != third))
    if is_permutation(layer):
        return list(layer.dims) == [0, 2, 3, 1]  # type: ignore[arg-type]
    return image is not None and _like(first, second, image) and not _like(second, third, image)


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
