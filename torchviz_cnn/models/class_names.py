"""The names of a network's classes: ImageNet's, or those of a list, a dict or a file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from torchviz_cnn.core.errors import InputError, counted


def imagenet_categories() -> tuple[str, ...]:
    """The thousand class names of ImageNet, in the order of the outputs."""
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


def matching(categories: tuple[str, ...] | None, model: nn.Module) -> tuple[str, ...] | None:
    """Class names, where the network has as many outputs."""
    outputs = {p.shape[0] for name, p in model.named_parameters() if name.endswith("bias") and p.ndim == 1}
    return categories if categories and len(categories) in outputs else None


def require_outputs(model: nn.Module, name: str, labels: int) -> None:
    """Raise InputError where no layer has as many outputs as there are labels; two may name a single output."""
    counts = {p.shape[0] for p in model.parameters() if p.ndim}
    if counts and labels not in counts and not (labels == 2 and 1 in counts):
        raise InputError(f"labels has {counted(labels, 'class name')}, and no layer of {name} has that many outputs")


def read_labels(labels: str | Path | Iterable[str] | Mapping[str, int]) -> tuple[str, ...]:
    """Class names from a list or dict, a file with a name per line (or each with its number before it), or JSON."""
    if not isinstance(labels, (str, os.PathLike)):
        ordered = isinstance(labels, Iterable) and not isinstance(labels, (Mapping, Set))
        return class_names(list(labels) if ordered else labels)
    try:
        text = Path(labels).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"the labels file {labels} cannot be read: {error}") from error
    if Path(labels).suffix.lower() != ".json":
        return _in_order([line.strip() for line in text.split("\n") if line.strip()])
    try:
        return class_names(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the labels file {labels} is not read: {error}") from error


def _in_order(lines: Sequence[str]) -> tuple[str, ...]:
    """The names of lines; where each, but for a heading, has the number of its class before it, in the order of these.

    >>> _in_order(["1: dog", "0: cat"]), _in_order(["cat", "2 dogs"])
    (('cat', 'dog'), ('cat', '2 dogs'))
    """
    numbered = [re.fullmatch(r"(\d+)[\s,:;]+(\w.*)", line) for line in lines]
    heading = len(lines) > 2 and numbered[0] is None
    by_number = {int(line[1]): line[2] for line in numbered if line is not None}
    names = [by_number[number] for number in range(len(lines) - heading) if number in by_number]
    return tuple(names if len(names) == len(lines) - heading else lines)


def class_names(names: Any) -> tuple[str, ...]:
    """The names in a list, in a dict from index to name, or, as torchvision's `class_to_idx`, from name to index."""
    wrong = ""
    if isinstance(names, Mapping):
        numbers = range(len(names))
        if all(isinstance(v, (int, np.integer)) for v in names.values()) and sorted(names.values()) == list(numbers):
            names = sorted(names, key=names.__getitem__)
        else:
            by_text = {str(key): name for key, name in names.items()}
            names = [by_text.get(str(number)) for number in numbers]
            if None in names:
                wrong = (
                    f"; of {counted(len(names), 'class')} the indices are 0 to {len(names) - 1}, and these are others"
                )
    if isinstance(names, list):
        # ImageNet's well-known file has [wordnet id, name] for each class.
        names = [name[-1] if isinstance(name, (list, tuple)) and name else name for name in names]
        if all(isinstance(name, (str, int, float, np.generic)) for name in names):
            return tuple(str(name) for name in names)
    raise InputError(f"class names are a list of names, a dict from index to name, or one from name to index{wrong}")
