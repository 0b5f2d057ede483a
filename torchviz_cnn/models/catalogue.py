"""The library's own networks by name, and how photos are prepared for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from torchviz_cnn.media.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from torchviz_cnn.models.bundled import BUNDLED, Bundled
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


FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def _square(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocess:
    """As the textbook does: the whole photo, stretched to a square."""
    return Preprocess((side, side), "stretch", side, mean, std)


def _bundled(entry: Bundled) -> Entry:
    preprocess = Preprocess(entry.input_size, "crop", entry.resize, entry.mean, entry.std)
    return Entry(entry.factory, preprocess, entry.categories)


CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        "convnet_2017": Entry(convnet_2017, _square(150, (0.0,) * 3, (1.0,) * 3)),
        "convnet_2025": Entry(convnet_2025, _square(180, (0.0,) * 3, (1.0,) * 3)),
        "mini_xception": Entry(mini_xception, _square(180, (0.0,) * 3, (1.0,) * 3)),
        "mini_xception_fer2013": Entry(mini_xception_fer2013, _square(64, (0.5,), (0.5,)), EMOTIONS),
        "fashion_mnist_convnet": Entry(fashion_mnist_convnet, _square(28, (0.0,), (1.0,)), FASHION),
        "xception": Entry(xception, _square(299, (0.5,) * 3, (0.5,) * 3), imagenet=True),
        "zfnet": Entry(zfnet, Preprocess((224, 224), "crop", 256, IMAGENET_MEAN, IMAGENET_STD), imagenet=True),
        **{name: _bundled(entry) for name, entry in BUNDLED.items()},
    }
)
