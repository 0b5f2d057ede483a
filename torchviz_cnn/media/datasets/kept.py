"""A dataset whose images are kept for a while, for pictures that show the same photos again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from torch import Tensor

from torchviz_cnn.media.datasets.source import ImageSource, View, parts

LIMIT = 1 << 27
"""How many bytes of inputs are kept, and of photos."""
_PIXEL = 4
"""Bytes of a pixel of an RGB picture in Pillow's memory."""

T = TypeVar("T")


@overload
def kept(source: ImageSource) -> KeptImages: ...


@overload
def kept(source: ImageSource | None) -> KeptImages | None: ...


def kept(source: ImageSource | None) -> KeptImages | None:
    """The same dataset with what is read of it kept; None for none."""
    return source if source is None or isinstance(source, KeptImages) else KeptImages(source)


class KeptImages(ImageSource):
    """A dataset of which the inputs and the photos that were asked for last are kept, `limit` bytes of each.

    An image that is asked for again while it is kept is not read again, and one whose input and photo are asked for one
    after the other is read once. Nobody may change what it gives.
    """

    def __init__(self, source: ImageSource, limit: int = LIMIT) -> None:
        vars(self).update(vars(source))
        self._inputs = _Recent[tuple[Tensor, int | None]](limit)
        self._views = _Recent[View](limit)
        self._last: tuple[int, Any] | None = None

    def item(self, index: int) -> tuple[Tensor, int | None]:
        """The input and its label, as the dataset itself gives them."""
        item = self._inputs.get(index)
        if item is None:
            item = super().item(index)
            self._inputs.add(index, item, item[0].nbytes)
        return item

    def view(self, index: int) -> View:
        """The photo, and what part of it the network sees, as the dataset itself gives them."""
        view = self._views.get(index)
        if view is None:
            view = super().view(index)
            self._views.add(index, view, view.photo.width * view.photo.height * _PIXEL)
        return view

    def fetch(
        self, places: Sequence[int], ahead: Sequence[int] = (), *, inputs: bool = True, views: bool = False
    ) -> None:
        """Get what several images are read from, but for those of which all that is asked for next is kept: their
        inputs, their photos, or both."""
        missing = [
            place for place in places if (inputs and place not in self._inputs) or (views and place not in self._views)
        ]
        if missing:
            super().fetch(missing, ahead)

    def fetched(self, places: Sequence[int], *, inputs: bool = True, views: bool = False) -> Iterator[int]:
        """These places one by one, with what is asked for next fetched for some of them together, as `fetch` does."""
        for part in parts(places):
            self.fetch(part, inputs=inputs, views=views)
            yield from part

    def _read(self, index: int) -> Any:
        if self._last is None or self._last[0] != index:
            self._last = index, super()._read(index)
        return self._last[1]


class _Recent(Generic[T]):
    """Values by number: those that were asked for last, of at most `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._values = OrderedDict[int, tuple[T, int]]()

    def __contains__(self, number: int) -> bool:
        return number in self._values

    def get(self, number: int) -> T | None:
        if number not in self._values:
            return None
        self._values.move_to_end(number)
        return self._values[number][0]

    def add(self, number: int, value: T, size: int) -> None:
        """Keep a value of so many bytes that is not there yet; what was not asked for longest makes room for it."""
        self._values[number] = value, size
        self._left -= size
        while self._left < 0:
            _, (_, freed) = self._values.popitem(last=False)
            self._left += freed
