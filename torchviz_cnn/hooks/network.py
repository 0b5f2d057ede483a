"""`Network`: a model, and what is known of how it is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from torchviz_cnn.core.errors import InputError, ModelError, TargetError, counted, did_you_mean, kind_of
from torchviz_cnn.media.datasets.photo_folder import preprocess_of_transform
from torchviz_cnn.media.images import Preprocess


@dataclass(frozen=True, eq=False)
class Network:
    """A model, and what is known of how it is used: how photos are prepared for it, and what its classes are called.

    Every function of this library takes one in place of a plain module. `load_model` gives one; your own is
    `Network(model, Preprocess(...), categories)`. `dataclasses.replace` gives one that differs in a field.
    """

    model: nn.Module
    preprocess: Preprocess
    """From a PIL photo to the model's input (C, H, W), and from the input back to the photo."""
    categories: tuple[str, ...] | None = None
    """Class names in the order of the outputs; None where they are not known."""
    name: str = "network"
    weights: str = "its own"
    """Where the weights come from."""
    guessed: bool = False
    """Whether nothing said how photos are prepared, so that the usual way is assumed."""

    predict: ClassVar[Callable[..., Any]]
    """`net.predict(photo)` is `predict(net, photo)`, which the package sets: it stands on a higher floor."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the input in pixels. Raises ModelError where what prepares photos does not say."""
        preprocess = preprocess_of_transform(self.preprocess)
        if preprocess is None:
            own = kind_of(self.preprocess)
            raise ModelError(f"the input size of {self.name} is not known: its preprocess is {own}, not a Preprocess")
        return preprocess.size

    def category(self, index: int) -> str:
        """Give the name of a class, or `class 7` where names are not known."""
        return category_name(self.categories, index)

    def class_index(self, target: str | int) -> int:
        """Give the index of a class by name or number. Raises TargetError with the nearest name."""
        return class_index(self.categories, target, self.name)

    def __repr__(self) -> str:
        height, width = self.input_size
        classes = counted(len(self.categories), "named class") if self.categories else "unnamed classes"
        return f"Network({self.name}, weights {self.weights}, input {height} x {width}, {classes})"


Model = nn.Module | Network
"""What every function takes as its model."""


def module_of(model: Model) -> nn.Module:
    """The module itself. Raises ModelError for what is neither a module nor a Network."""
    module = model.model if isinstance(model, Network) else model
    if isinstance(module, nn.Module):
        return module
    hint = "; pass its .model" if isinstance(getattr(module, "model", None), nn.Module) else ""
    raise ModelError(f"a model is a torch.nn.Module or a Network, not {kind_of(module)}{hint}")


def preprocess_of(model: Model) -> Preprocess | None:
    """How photos are prepared for a model; None for a plain module, of which that is not known."""
    return model.preprocess if isinstance(model, Network) and isinstance(model.preprocess, Preprocess) else None


def category_name(categories: tuple[str, ...] | None, index: int) -> str:
    """The name of a class, or `class 7` where names are not known."""
    return str(categories[index]) if categories is not None and 0 <= index < len(categories) else f"class {index}"


def listed_names(categories: Any) -> tuple[str, ...]:
    """Class names that were given as a list or another sequence. Raises InputError for what is none."""
    if isinstance(categories, (str, bytes, Mapping, Set)) or not isinstance(categories, Iterable):
        raise InputError(f"categories are a list of class names, in the order of the scores, not {kind_of(categories)}")
    return tuple(map(str, categories))


def class_index(categories: tuple[str, ...] | None, target: str | int, owner: str = "the model") -> int:
    """The index of a class given by name or number. Raises TargetError with the nearest name."""
    text, names = str(target).strip(), categories or ()
    folded = text.casefold().replace("_", " ")
    same = [i for i, name in enumerate(names) if name.casefold().replace("_", " ") == folded]
    if len(same) == 1:
        return same[0]
    if same:
        listed = ", ".join(map(str, same))
        raise TargetError(f"{len(same)} classes of {owner} are called {text!r}: {listed}; give the index")
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        return int(text)
    if not names:
        raise TargetError(
            f"the class names of {owner} are not known: give an index, or a Network that has them, as "
            "load_model(model, labels=...) makes it"
        )
    containing = [name for name in names if folded and folded in name.casefold().replace("_", " ")]
    offered = " or ".join(map(repr, containing[:24]))
    near = f"; did you mean {offered}?" if offered else did_you_mean(text, names)
    raise TargetError(f"{owner} has no class {text!r}{near or '; give a name or an index'}")
