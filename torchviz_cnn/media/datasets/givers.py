"""Which class gives the items of a dataset: what is known of a class is true of the items only where it gives them.

A class that is derived from a known one may change what its items are, as one that mirrors each photo does, and so may
one that has another dataset within it. The items themselves are read then, and nothing else is taken for them.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from torch.utils.data import Subset

from torchviz_cnn.media.datasets.photos import Photos

TORCHVISION = "torchvision.datasets.folder"
"""The module of `DatasetFolder` and `ImageFolder`, and of loaders that take photos as they lie in their files, never
turned upright."""
_ITEMS = ("__getitem__", "__getitems__")


def giver_of(dataset: Any, methods: tuple[str, ...] = _ITEMS) -> type:
    """The class that has the last word: of a dataset's and those it is derived from, the first with such a method."""
    return next((kind for kind in type(dataset).__mro__ if any(name in vars(kind) for name in methods)), object)


def is_subset(dataset: Any) -> TypeGuard[Subset[Any]]:
    """Whether the items are those of another dataset at certain places, as torch's own `Subset` gives them."""
    return giver_of(dataset) is Subset


def gives_stored(dataset: Any) -> TypeGuard[Photos]:
    """Whether the items are the photos that one of the library's own datasets stores."""
    return giver_of(dataset) is Photos and "stored" in vars(giver_of(dataset, ("photo", "stored")))


def gives_files(dataset: Any) -> bool:
    """Whether the items are the files of `samples`, by `loader` and `transform`, as torchvision's `ImageFolder` gives
    them."""
    return giver_of(dataset).__module__ == TORCHVISION


def gives_together(dataset: Any) -> bool:
    """Whether PyTorch's `__getitems__` is there, also behind a `Subset`, and gives what `dataset[i]` gives."""
    last = "__getitems__" in vars(giver_of(dataset))
    return last and (not is_subset(dataset) or gives_together(dataset.dataset))
