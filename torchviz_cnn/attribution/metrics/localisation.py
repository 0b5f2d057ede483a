"""Localisation: whether a map's peak, and its positive values, lie on the object that the class names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import AllImages, Images
from torchviz_cnn.attribution.metrics.parts import Maps, Part, Rows, measure
from torchviz_cnn.attribution.metrics.perturbation import EMPTY
from torchviz_cnn.attribution.metrics.result import Measurement
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import ImageError, InputError, are, counted, kind_of
from torchviz_cnn.core.opencv import opencv
from torchviz_cnn.hooks.inputs import Given, Output
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.media.bands import values_of_mask
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder, by_name, without_suffix
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.images import read_stored
from torchviz_cnn.media.render import Array, Box, resample
from torchviz_cnn.scores.targets import Target

MaskSource = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | Tensor | Array
"""A folder of masks, which are called as their photos; masks by the photo's name; or one for each image, in their order
(a path, a PIL image, an array, a tensor, or None): also a tensor (N, H, W)."""
_ROUNDING = 1e-6


def pointing_game(
    model: Model,
    x: Images,
    maps: Maps,
    masks: MaskSource,
    target: Target = None,
    *,
    tolerance: float = 15,
    mask_values: Sequence[int] | int | None = None,
    output: Output = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Measurement:
    """Measure how often the strongest place of a map lies on the object, or close to it.

    The map lies on the part of the photo that the network sees, enlarged bilinearly, and only that part of the object
    counts. The value is 1 where the peak is at most `tolerance` pixels of the photo away from the nearest pixel of the
    object (from centre to centre), and 0 elsewhere. Of several places that are equally strong, to a millionth, it is
    the share of those that count.

    Args:
        model, x, maps, output, batch_size, progress: as for `insertion`.
        target: as for `insertion`; it stands behind the masks here, so give it by its name.
        masks: where the object is: a folder of masks that are called as their photos (`photo.png` for `photo.jpg`, or
            `cat/1.png` for `cat/1.jpg`), a dict of masks by the photo's name, or a sequence with one for each image, of
            paths, PIL images, arrays and tensors (H, W), and None where there is none; also a tensor (N, H, W). With
            photos, a mask is in the photo's pixels, upright, or of another size of the same shape; where the input is
            given as a tensor, a mask has its size.
        tolerance: how far from the object still counts, in pixels of the photo; of the input, where the photo is not
            known (15, as in the paper, whose photos are about 500 pixels wide).
        mask_values: which values of a mask are the object, as (1,) of trimaps with 1 for the animal, 2 for the
            background and 3 for its border; of a picture with a palette its indices. By default all but 0: in colour,
            all but black; of a picture with transparency, what is not transparent; of a JPEG, 128 and more.

    Returns:
        A Measurement, 0..1, higher is better; `details["area"]` is the share of the pixels that the network sees which
        count, and so what a random place gets. NaN, with the reason, for a photo without a mask or with one that does
        not fit, an object that the network does not see, and a map without a positive value or without a peak.

    Raises:
        InputError: for maps that do not fit the images, masks that fit none of the photos, masks that are nowhere 0
            where `mask_values` does not say what the object is, and a wrong option.
        ImageError: for a folder that does not exist.
        TargetError: for a class that the network does not have.

    Zhang et al., arXiv 1608.00507, section 4.2.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    >>> masks[:, 2:4, 2:4] = True
    >>> pointing_game(model, torch.rand(4, 3, 8, 8), masks.float(), masks, tolerance=0).mean
    1.0
    """
    known = Masks(masks, AllImages(x, model), mask_values)
    metric = partial(pointing, masks=known, tolerance=checks.number("tolerance", tolerance, 0))
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    measured = measure("pointing_game", "higher", metric, model, x, maps, target, **options)  # type: ignore[arg-type]
    known.require_one_that_fits()
    return measured


def energy_in_mask(
    model: Model,
    x: Images,
    maps: Maps,
    masks: MaskSource,
    target: Target = None,
    *,
    mask_values: Sequence[int] | int | None = None,
    output: Output = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Measurement:
    """Measure which share of the positive values of a map lies on the object.

    The map, negative values as 0, lies on the part of the photo that the network sees, enlarged bilinearly, and the
    pixels of this part are counted.

    Args:
        model, x, maps, target, output, batch_size, progress: as for `insertion`.
        masks, mask_values: as for `pointing_game`.

    Returns:
        A Measurement, 0..1, higher is better; `details["area"]` is the share of the object in what the network sees,
        which a map that is the same everywhere gets. NaN, with the reason, as for `pointing_game`.

    Raises:
        InputError, ImageError, TargetError: as for `pointing_game`.

    The energy-based pointing game of Wang et al., arXiv 1910.01279, section 4.3, with masks in place of boxes.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    >>> masks[:, :, :2] = True
    >>> energy_in_mask(model, torch.rand(4, 3, 8, 8), torch.ones(4, 8, 8), masks).mean
    0.25
    """
    known = Masks(masks, AllImages(x, model), mask_values)
    options = {"output": output, "batch_size": batch_size, "progress": progress}
    metric = partial(energy, masks=known)
    measured = measure("energy_in_mask", "higher", metric, model, x, maps, target, **options)  # type: ignore[arg-type]
    known.require_one_that_fits()
    return measured


def pointing(part: Part, masks: Masks, tolerance: float = 15) -> Rows:
    """Whether the peak of each map is on the object, or at most so many pixels of the photo away from it."""

    def near(inside: Array) -> Array:
        outside = np.ascontiguousarray(~inside).view(np.uint8)
        cv2 = opencv()
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return np.asarray(distance <= tolerance * (1 + _ROUNDING))

    def of_peak(heat: Array, counts: Array) -> float | str:
        peaks = heat >= heat.max() * (1 - _ROUNDING)
        return "the map is the same everywhere: it has no peak" if peaks.all() else float(counts[peaks].mean())

    return _judged(part, masks, near, of_peak)


def energy(part: Part, masks: Masks) -> Rows:
    """The share of the positive values of each map on the object."""
    return _judged(part, masks, lambda inside: inside, lambda heat, inside: float(heat[inside].sum() / heat.sum()))


def _judged(
    part: Part,
    masks: Masks,
    counting: Callable[[Array], Array],
    judge: Callable[[Array, Array], float | str],
) -> Rows:
    """What is said of each map's positive values on what the network sees of its photo, and of the pixels that count.

    `counting` makes of the object the pixels that count; `judge` gives the value, or why there is none.
    """
    values = torch.full(part.raw.shape[:2], float("nan"))
    rows = Rows(values, details={"area": values.clone()})
    for place in range(len(part.numbers)):
        scene = masks.scene(part.numbers[place], part.given, place)
        if isinstance(scene, str):
            rows.reasons[place] = scene
            continue
        counts = counting(scene.inside)
        for k, raw in enumerate(part.raw[place].relu().cpu().numpy()):
            heat = scene.seen(raw)
            if not heat.any():
                value: float | str = (
                    EMPTY if bool(part.empty[place, k]) else "the map has no positive value on the photo"
                )
            else:
                value = judge(heat, counts)
            if isinstance(value, str):
                rows.reasons.setdefault(place, value)
            else:
                values[place, k], rows.details["area"][place, k] = value, float(counts.mean())
    return rows


class _Scene(NamedTuple):
    """What a network sees of a photo, and where the object is on that."""

    size: tuple[int, int]
    """Width and height of the photo."""
    box: Box
    """What the map covers, in pixels of the photo."""
    window: tuple[slice, slice]
    """The rows and columns of the photo that the network sees."""
    inside: Array
    """The object on these: bool."""

    def seen(self, values: Array) -> Array:
        """A map (h, w) on the pixels that the network sees."""
        return resample(values, self.box, *self.size)[self.window]


class Masks:
    """Where the object of each image is.

    Args:
        masks: see `MaskSource`.
        images: the images that they belong to.
        mask_values: which values are the object: see `pointing_game`.

    Raises InputError for masks of another number, and where no image has one.
    """

    def __init__(self, masks: MaskSource, images: AllImages, mask_values: Sequence[int] | int | None = None) -> None:
        self.reasons: dict[int, str] = {}
        """Why the mask of an image cannot be used, by its number; as far as masks were read."""
        self._images = images
        self._object = None if mask_values is None else _checked_values(mask_values)
        self._masks = _of_images(masks, images)
        if not self._masks:
            raise InputError(_none_fits(masks, images))
        self._fitted = False

    def mask(self, number: int) -> Array | None:
        """Mark the object in the pixels of the mask: (height, width) bool; None where the mask cannot be used.

        Raises InputError for one that is nowhere 0, where it was not said which of its values are the object, unless
        another mask fits its photo already: then this one cannot be used.
        """
        if number in self.reasons:
            return None
        if number not in self._masks:
            self.reasons[number] = "there is no mask for it"
            return None
        try:
            values, name = _values_of(self._masks[number], self._object is not None), self._name(number)
        except ImageError as error:
            self.reasons[number] = f"its mask cannot be read: {error}"
            return None
        inside = values != 0 if self._object is None else np.isin(values, self._object)
        if self._object is None and inside.all() and values.min() != values.max():
            reason = (
                f"{name} is nowhere 0 (its values: {_listed(values)}): say which are the object, as mask_values=(1,)"
            )
            if not self._fitted:
                raise InputError(reason)
            self.reasons[number] = reason
        elif inside.all():
            self.reasons[number] = f"{name} covers all of the photo (its values: {_listed(values)})"
        elif not inside.any():
            self.reasons[number] = f"{name} has no object (its values: {_listed(values)})"
        return None if number in self.reasons else inside

    @property
    def numbers(self) -> Set[int]:
        """The numbers of the images that have a mask."""
        return self._masks.keys()

    def scene(self, number: int, given: Given, place: int) -> _Scene | str:
        """What the network sees of an image, and the object on it; or why that cannot be told.

        Args:
            number: which of all images it is.
            given: a batch with it.
            place: its place in that.
        """
        inside = self.mask(number)
        if inside is None:
            return self.reasons[number]
        (width, height), box, exact = self._frame(number, given, place)
        shape = f"{inside.shape[1]} x {inside.shape[0]}"
        if inside.shape != (height, width):
            if exact or not _same_aspect(inside.shape[::-1], (width, height)):
                what = "input" if exact else "photo"
                self.reasons[number] = f"{self._name(number)} is {shape} pixels, and its {what} {width} x {height}"
                return self.reasons[number]
            small = Image.fromarray(inside).resize((width, height), Image.Resampling.NEAREST)
            inside = np.asarray(small)
        self._fitted = True
        left, top, right, bottom = (max(round(side), 0) for side in box)
        window = (slice(top, min(bottom, height)), slice(left, min(right, width)))
        if not inside[window].any():
            return "the network does not see the object: it lies outside of what is cropped"
        return _Scene((width, height), box, window, inside[window])

    def require_one_that_fits(self) -> None:
        """Raise InputError where masks were read, and none of them could be used."""
        if not self._fitted:
            first = next((self.reasons[number] for number in self._masks if number in self.reasons), "none was read")
            raise InputError(f"none of {counted(len(self._masks), 'mask')} can be used: {first}")

    def _frame(self, number: int, given: Given, place: int) -> tuple[tuple[int, int], Box, bool]:
        """The size of the photo, what the network sees of it, and whether the input stands for a photo not known."""
        height, width = given.input_size
        origin, x = given.origin, self._images.x
        if origin.photos is not None:
            photo = origin.photo(place)
            return photo.size, origin.box(photo, given.input_size), False
        whole = (0.0, 0.0, float(width), float(height))
        if isinstance(x, ImageSource):
            size, box = x.frame(number, (height, width))
            return size, box, size == (width, height) and box == whole
        return (width, height), whole, True

    def _name(self, number: int) -> str:
        mask = self._masks[number]
        return f"the mask {mask}" if isinstance(mask, (str, os.PathLike)) else "its mask"


def _of_images(masks: MaskSource, images: AllImages) -> dict[int, Any]:
    """The mask of each image that has one, by its number, as it was given."""
    count = len(images)
    if isinstance(masks, (str, os.PathLike)) and (count > 1 or os.path.isdir(masks)):
        folder = PhotoFolder(Path(masks))
        return _paired({name: folder.path / name for name in folder.names}, images)
    if isinstance(masks, Mapping):
        return _paired(masks, images)
    alone = isinstance(masks, (str, os.PathLike, Image.Image)) or getattr(masks, "ndim", 3) == 2
    several = [masks] if alone else masks
    if not isinstance(several, (Sequence, Tensor, np.ndarray)):
        raise InputError(f"masks are a folder, a dict, or a sequence with one for each image, not {kind_of(masks)}")
    if len(several) != count:
        raise InputError(f"there {are(count, 'image')}, and {counted(len(several), 'mask')}")
    return {number: mask for number, mask in enumerate(several) if mask is not None}


def _paired(masks: Mapping[str, Any], images: AllImages) -> dict[int, Any]:
    chosen = by_name(list(masks), images.names, "mask")
    return {number: masks[name] for number, name in chosen.items() if masks[name] is not None}


def _none_fits(masks: MaskSource, images: AllImages) -> str:
    if not isinstance(masks, (str, os.PathLike, Mapping)):
        return f"there are no masks: all {len(images)} are None"
    there = list(masks) if isinstance(masks, Mapping) else PhotoFolder(Path(masks)).names
    where = "the dict of masks" if isinstance(masks, Mapping) else str(masks)
    wanted = PurePath(without_suffix(images.names[0])).name
    return (
        f"none of {counted(len(there), 'mask')} in {where} is called as one of {counted(len(images), 'image')}: "
        f"that of {images.names[0]!r} would be {wanted + '.png'!r}, and there is {there[0]!r}"
    )


def _checked_values(mask_values: Sequence[int] | int) -> list[float]:
    values = list(mask_values) if isinstance(mask_values, Sequence) else [mask_values]
    if not values or isinstance(mask_values, str):
        raise InputError(f"mask_values are the values that are the object, as (1,), not {mask_values!r}")
    return [checks.number("a value of a mask", value) for value in values]


def _values_of(mask: Any, by_value: bool) -> Array:
    """The values of a mask, whatever it is given as: (height, width). Raises ImageError, InputError."""
    lossy = False
    if isinstance(mask, (str, os.PathLike)):
        lossy = Path(mask).suffix.lower() in (".jpg", ".jpeg")
        mask = read_stored(mask)
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().float().numpy() if mask.is_floating_point() else mask.detach().cpu().numpy()
    if isinstance(mask, np.ndarray):
        shape = mask.shape
        if mask.ndim == 3:
            mask = mask[0] if shape[0] == 1 else mask[..., 0] if shape[2] == 1 else mask
        if mask.ndim == 3 and mask.dtype == np.uint8 and shape[2] in (3, 4):
            mask = Image.fromarray(mask)
        elif mask.ndim != 2 or mask.dtype.kind not in "biuf" or not mask.size:
            raise InputError(f"a mask is an array (H, W) of numbers, not {shape} of {mask.dtype}")
    values = values_of_mask(mask, by_value) if isinstance(mask, Image.Image) else mask
    if not isinstance(values, np.ndarray):
        raise InputError(f"a mask is a path, a PIL image, an array or a tensor, not {kind_of(mask)}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("a mask has values that are NaN or infinite")
    return np.where(values < 128, 0, values) if lossy and values.dtype == np.uint8 else values


def _listed(values: Array) -> str:
    several = np.unique(values)
    words = [f"{value:g}" for value in several[:6].astype(float)]
    return ", ".join(words) + (f" and {len(several) - 6} more" if len(several) > 6 else "")


def _same_aspect(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes (width, height) have the same shape, to a pixel of the first."""
    (w, h), (width, height) = one, other
    return abs(w * height / width - h) <= 1 or abs(h * width / height - w) <= 1
