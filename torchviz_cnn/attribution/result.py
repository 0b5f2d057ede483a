"""What maps of the input share: one picked out of a batch, laid on the photo that it belongs to, and put in words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.core.errors import EmptyMapWarning, InputError, LayerError
from torchviz_cnn.hooks.manager import ForwardHook
from torchviz_cnn.media import render
from torchviz_cnn.media.images import Geometry, Preprocess, seen_box, to_rgb
from torchviz_cnn.runs import files
from torchviz_cnn.scores.targets import probabilities


def require_images(x: Tensor) -> Tensor:
    """The input, if it is a batch of images (B, C, H, W) of finite numbers; raises InputError otherwise."""
    if isinstance(x, Tensor) and x.ndim != 4:
        hint = "; x[None] makes one image a batch" if x.ndim == 3 else ""
        raise InputError(f"the input is a batch (B, C, H, W), not {tuple(x.shape)}{hint}")
    if isinstance(x, Tensor) and x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise InputError(f"the input is {str(x.dtype).removeprefix('torch.')}; networks take floating point")
        # The sum first: it takes a fraction of the time, and no number that is not finite leaves it so.
        wrong = (~x.isfinite()).flatten(1).sum(1) if not bool(x.sum().isfinite()) else x.new_zeros(0)
        if bool(wrong.any()):
            image = int(wrong.nonzero()[0, 0])
            raise InputError(f"image {image} of the input has {int(wrong[image])} values that are NaN or infinite")
    return x


def require_maps(model: nn.Module, layer: str, output: Any, batch: int) -> Tensor:
    """What a layer gives, if it is maps (B, C, h, w), as many as there are images; raises LayerError otherwise."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(f"layer {layer!r} of {type(model).__name__} gives {shape}, not maps (B, C, h, w)")
    if len(output) != batch:
        raise LayerError(f"layer {layer!r} gives {len(output)} maps for {batch} images: they cannot be told apart")
    return output


def keep_maps(model: nn.Module, batch: int, kept: dict[str, Tensor]) -> ForwardHook:
    """A hook that keeps the maps of each layer it is put on, by name, as part of the graph, for it to be differentiated."""

    def keep(name: str, output: Any) -> Tensor:
        kept.setdefault(name, require_maps(model, name, output, batch))
        return output.clone()  # type: ignore[no-any-return]  # what follows may overwrite it in place

    return keep


def warn_of_empty(empty: Tensor, classes: Tensor, why: str, kind: str = "", stacklevel: int = 4) -> None:
    """Warn (EmptyMapWarning), in one line for all, of maps that are all zeros: (B, K), with their classes. `why` has places
    for `{label}` and `{image}`. The warning is the line's that called what called the caller."""
    if bool(empty.any()):
        image, k = (int(i) for i in empty.nonzero()[0])
        others = f" (and {int(empty.sum()) - 1} more)" if int(empty.sum()) > 1 else ""
        message = why.format(label=int(classes[image, k]), image=image)
        warnings.warn(f"{message}{others}: the {kind}map is all zeros", EmptyMapWarning, stacklevel=stacklevel)


def seen_picture(
    photo: Image.Image, input_size: tuple[int, int], geometry: Geometry | Preprocess | None, known: Preprocess | None
) -> Image.Image:
    """The part of a photo that the network saw, at the size of its input."""
    left, top, right, bottom = (round(side) for side in seen_box(photo, input_size, geometry, known))
    part = to_rgb(photo).crop((left, top, right, bottom))
    return part.resize(input_size[::-1], Image.Resampling.BICUBIC)


class OnPhoto:
    """The drawing that results with one map per image and class have in common.

    `index` chooses an image of the batch and `k` one of its classes wherever one picture is drawn. A photo is the
    PIL image that the input was made from; the map is laid on the part of it that the network saw, as the model's own
    preprocessing says, or as `geometry` does (`crop`, `stretch`, `pad` or a Preprocess).
    """

    palette: ClassVar[str] = "jet"
    """The colormap of a map alone where none is named."""
    photo_palette: ClassVar[str] = "jet"
    """And over the photo."""
    values: Tensor
    target: Tensor
    logits: Tensor
    input_size: tuple[int, int]
    preprocess: Preprocess | None

    def map(self, index: int = 0, k: int = 0) -> np.ndarray[Any, Any]:
        """One map (h, w) divided by its maximum, negative values as 0: 0..1. Without positive values: zeros."""
        return render.unit_range(self._of(self.values, index, k).detach().float().cpu().numpy())

    def overlay(
        self, photo: Image.Image, alpha: float = 0.4, *, index: int = 0, k: int = 0, blend: render.Blend = "add",
        colormap: str | None = None, interpolation: render.Interpolation = "bilinear",
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:  # fmt: skip
        """The map in colour over the photo, at the photo's own size.

        `blend="add"` is the textbook's photo + alpha x colour, clipped; `"mix"` is (1 - alpha) x photo + alpha x
        colour. Raises InputError for an alpha outside 0..1 or an unknown option.
        """
        return render.overlay(
            to_rgb(photo), self.map(index, k), self._box(photo, geometry), alpha=alpha, blend=blend,
            colormap_name=colormap or self.photo_palette, interpolation=interpolation,
        )  # fmt: skip

    def image(
        self, photo: Image.Image | None = None, *, index: int = 0, k: int = 0, colormap: str | None = None,
        interpolation: render.Interpolation = "bilinear", geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:  # fmt: skip
        """The map alone in colour: at the photo's size and place, or at the size of the network's input."""
        return self._drawn(self.map(index, k), photo, colormap or self.palette, interpolation, geometry)

    def headline(
        self, index: int = 0, k: int = 0, truth: str | None = None, categories: Sequence[str] | None = None
    ) -> str:
        """True, predicted and explained class of one map in words."""
        chances = probabilities(self._of(self.logits, index)[None])[0]
        top, asked = int(chances.argmax()), int(self._of(self.target, index, k))

        def name(i: int) -> str:
            return str(categories[i]) if categories is not None and i < len(categories) else f"class {i}"

        words = [f"true: {truth}"] if truth is not None else []
        words.append(f"predicted: {name(top)} ({float(chances[top]):.3f})")
        if asked != top:
            words.append(f"explained: {name(asked)} ({float(chances[asked]):.3f})")
        return ", ".join(words)

    def peak(
        self, photo: Image.Image, *, index: int = 0, k: int = 0, geometry: Geometry | Preprocess | None = None
    ) -> tuple[int, int]:
        """The pixel (x, y) of the photo where the map is strongest."""
        return render.strongest(self.map(index, k), self._box(photo, geometry), photo.width, photo.height)

    def _of(self, batch: Tensor, index: int, k: int | None = None) -> Tensor:
        if not -len(batch) <= index < len(batch):
            raise InputError(f"image {index} is out of range: there are {len(batch)}")
        one = batch[index]
        if k is None or self.target.ndim == 1:
            if k:
                raise InputError(f"class {k} is out of range: one class per image was asked for")
            return one
        if not -len(one) <= k < len(one):
            raise InputError(f"class {k} is out of range: {len(one)} classes per image were asked for")
        return one[k]

    def _drawn(
        self, values: render.Array, photo: Image.Image | None, colormap: str, interpolation: render.Interpolation,
        geometry: Geometry | Preprocess | None,
    ) -> Image.Image:  # fmt: skip
        height, width = self.input_size if photo is None else (photo.height, photo.width)
        box = (0.0, 0.0, float(width), float(height)) if photo is None else self._box(photo, geometry)
        return render.heat_image(values, box, width, height, colormap_name=colormap, interpolation=interpolation)

    def _box(self, photo: Image.Image, geometry: Geometry | Preprocess | None) -> render.Box:
        return seen_box(photo, self.input_size, geometry, self.preprocess)

    def _repr_png_(self) -> bytes:
        shown = [(i, k) for i in range(len(self.values)) for k in range(self.target[0].numel())][:16]
        tiles = np.stack([np.asarray(self.image(index=i, k=k)) for i, k in shown])
        return files.png(Image.fromarray(render.tile_grid(tiles, columns=min(4, len(tiles)), margin=4)))
