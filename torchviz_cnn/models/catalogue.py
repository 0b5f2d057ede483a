"""The library's own networks by name, and how photos are prepared for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.models.convnets import convnet_2017, convnet_2025, fashion_mnist_convnet
from torchviz_cnn.models.xception import mini_xception, mini_xception_fer2013, xception
from torchviz_cnn.models.zfnet import zfnet


@dataclass(frozen=True)
class Entry:
    """A network that can be asked for by name."""

    factory: Callable[..., nn.Module]
    preprocess: Preprocess
    categories: tuple[str, ...] | None = None
    imagenet: bool = False
    """Whether its classes are ImageNet's, where it has a thousand of them."""


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_PETS = ("cat", "dog")


def _stretched(side: int, mean: tuple[float, ...] = (0.0,) * 3, std: tuple[float, ...] = (1.0,) * 3) -> Preprocess:
    """As the textbook does: the whole photo, stretched to a square; by default values stay between 0 and 1."""
    return Preprocess((side, side), "stretch", side, mean, std)


CATALOGUE: Mapping[str, Entry] = {
    "convnet_2017": Entry(convnet_2017, _stretched(150)),
    "convnet_2025": Entry(convnet_2025, _stretched(180)),
    "mini_xception": Entry(mini_xception, _stretched(180)),
    "mini_xception_fer2013": Entry(mini_xception_fer2013, _stretched(64, (0.5,), (0.5,)), _EMOTIONS),
    "fashion_mnist_convnet": Entry(fashion_mnist_convnet, _stretched(28, (0.0,), (1.0,)), _FASHION),
    "xception": Entry(xception, _stretched(299, (0.5,) * 3, (0.5,) * 3), imagenet=True),
    "zfnet": Entry(zfnet, Preprocess((224, 224), resize=256), imagenet=True),
    "cats_and_dogs": Entry(
        partial(convnet_2025, num_classes=2, batch_norm=True), Preprocess((160, 160), resize=160), _PETS
    ),
    "cats_and_dogs_mini_xception": Entry(
        partial(mini_xception, num_classes=2), Preprocess((128, 128), resize=128), _PETS
    ),
}
