"""`Predictions`: class probabilities that show themselves as a table of the likeliest classes."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from torchviz_cnn.hooks.network import category_name
from torchviz_cnn.media.notebook import pictures, tables
from torchviz_cnn.media.origin import Origin

_CLASSES = 5
_IMAGES = 16
"""How many classes of how many images are shown."""


class Predictions(Tensor):
    """Class probabilities (B, n), float32: a tensor, which is shown as a table of each image's five likeliest classes.

    What is computed of it, as `predictions[0]` or `predictions.argmax(1)`, is a plain tensor. `table` has the classes.
    """

    origin: Origin
    """The photos and the names of the classes, as far as they are known."""
    image_names: tuple[str, ...]
    """What each image is called; `names` is an attribute of all tensors in some versions of PyTorch."""

    @staticmethod
    def of(probabilities: Tensor, origin: Origin, names: tuple[str, ...]) -> Predictions:
        """Probabilities (B, n) that know their photos, and the names of these and of the classes."""
        made = probabilities.as_subclass(Predictions)
        made.origin, made.image_names = origin, names
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return tree_map_only(Predictions, lambda one: one.as_subclass(Tensor), result)

    def table(self, k: int = _CLASSES, image: int = 0) -> list[tuple[str, int, float]]:
        """List the k likeliest classes of one image: name, index and probability, likeliest first."""
        values, classes = self[image].topk(min(k, self.shape[1]))
        return [
            (category_name(self.origin.categories, index), index, value)
            for index, value in zip(classes.tolist(), values.tolist(), strict=True)
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> Predictions:
        return Predictions.of(self.as_subclass(Tensor).clone(), self.origin, self.image_names)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        lines = []
        for image, name in enumerate(self.image_names[:_IMAGES]):
            lines += [name, *(f"  {value:.3f}  {words} ({index})" for words, index, value in self.table(image=image))]
        return "\n".join([*lines, *filter(None, [self._left_out()])])

    def _repr_html_(self) -> str:
        parts = []
        for image, name in enumerate(self.image_names[:_IMAGES]):
            of_image = self.table(image=image)
            rows = [[words, str(index), f"{value:.3f}"] for words, index, value in of_image]
            shares = [value for *_, value in of_image]
            text = tables.table(name, ["class", "index", "probability"], rows, shares=shares)
            photo = None if self.origin.photos is None else self.origin.photos[image]
            parts.append(tables.beside(photo, text))
        return "".join(parts) + f"<p>{html.escape(self._left_out())}</p>"

    def _left_out(self) -> str:
        return pictures.left_out(min(len(self.image_names), _IMAGES), len(self.image_names), "images")
