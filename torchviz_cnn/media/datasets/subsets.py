"""Parts of a dataset, as `torch.utils.data.Subset` makes them: their places, and what these are places of."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchviz_cnn.core.errors import InputError, counted


def is_subset(dataset: Any) -> bool:
    """Whether a dataset is a `torch.utils.data.Subset`, or one like it."""
    return hasattr(dataset, "dataset") and hasattr(dataset, "indices")


def whole_of(dataset: Any) -> Any:
    """The dataset behind `Subset`s; itself where it is none."""
    while is_subset(dataset):
        dataset = dataset.dataset
    return dataset


def require_places(dataset: Any) -> None:
    """Raise InputError for a `Subset` of places that its dataset does not have; those below 0 count from the end."""
    while is_subset(dataset):
        whole = dataset.dataset
        kind, of = type(dataset).__name__, type(whole).__name__
        places = np.asarray(dataset.indices)
        if places.dtype.kind not in "iu":
            raise InputError(f"a {kind} of a {of} is given by places, which are whole numbers, not {places.dtype}")
        outside = places[(places < -len(whole)) | (places >= len(whole))]
        if len(outside):
            raise InputError(
                f"the {kind} of {counted(len(places), 'place')} has the place {outside[0]}, and its {of} has "
                f"{counted(len(whole), 'image')}, 0 to {len(whole) - 1}"
            )
        dataset = whole


def owner_of(dataset: Any, index: int) -> tuple[Any, int]:
    """The dataset that an item really comes from: behind `torch.utils.data.Subset`s."""
    while is_subset(dataset):
        index = int(dataset.indices[index])
        dataset = dataset.dataset
    return dataset, index
