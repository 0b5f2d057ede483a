"""Parts of a dataset, as `torch.utils.data.Subset` makes them: their places, and what these are places of."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from torchviz_cnn.core.errors import InputError, counted, kind_of
from torchviz_cnn.media.datasets.givers import is_subset
from torchviz_cnn.media.datasets.photos import Photos


def whole_of(dataset: Any) -> Any:
    """The dataset behind `Subset`s; itself where it is none."""
    while is_subset(dataset):
        dataset = dataset.dataset
    return dataset


def photos_within(dataset: Any) -> Photos | None:
    """The library's own dataset that a `Subset` has within it, also one of a class derived from `Subset`."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, Photos) else None


def require_places(dataset: Any) -> None:
    """Raise InputError for a `Subset` of places that its dataset does not have; those below 0 count from the end.

    Of a `Subset` within it only those places are asked for that it uses itself.
    """
    used: np.ndarray[Any, Any] | None = None
    while is_subset(dataset):
        whole = dataset.dataset
        of, count = type(whole).__name__, len(dataset)
        places = _places(dataset, used)
        if hasattr(whole, "__len__"):
            outside = places[(places < -len(whole)) | (places >= len(whole))]
            if len(outside):
                raise InputError(
                    f"the {type(dataset).__name__} of {counted(count, 'place')} has the place {outside[0]}, and its "
                    f"{of} has {counted(len(whole), 'image')}, 0 to {len(whole) - 1}"
                )
        dataset, used = whole, places


def _places(subset: Any, used: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """The places of a `Subset`, as whole numbers, or those of them that are used."""
    indices = subset.indices
    as_numbers = isinstance(indices, (range, np.ndarray, Tensor))
    if as_numbers or (
        isinstance(indices, (list, tuple))
        and all(type(place) is int or isinstance(place, np.integer) for place in indices)
    ):
        known = np.asarray(indices)
        if known.ndim == 1 and known.dtype.kind in "iu":
            return known if used is None else known[np.asarray(used, np.int64)]
    asked = range(len(subset)) if used is None else used.tolist()
    return np.array([_place(subset, number) for number in asked], object)


def _place(subset: Any, number: int) -> int:
    """One place of a `Subset`. Raises InputError where that is no whole number, or there is none."""
    kind, of = type(subset).__name__, type(subset.dataset).__name__
    try:
        place = subset.indices[number]
    except (KeyError, IndexError, TypeError) as error:
        what = kind_of(subset.indices)
        raise InputError(
            f"a {kind} of a {of} is given by its places in order, and {what} has none at {number}"
        ) from error
    is_mask = isinstance(place, bool) or str(getattr(place, "dtype", "")).endswith("bool")
    try:
        whole = None if is_mask else operator.index(place)
    except TypeError:
        whole = None
    if whole is None:
        what = "bool" if is_mask else kind_of(place)
        raise InputError(f"a {kind} of a {of} is given by places, which are whole numbers, not {what}")
    return whole


def owner_of(dataset: Any, index: int) -> tuple[Any, int]:
    """The dataset that an item really comes from: behind `torch.utils.data.Subset`s."""
    while is_subset(dataset):
        index = int(dataset.indices[index])
        dataset = dataset.dataset
    return dataset, index
