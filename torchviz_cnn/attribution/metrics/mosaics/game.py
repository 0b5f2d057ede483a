"""The grid pointing game: whether the evidence for each class lies on its own photo in a mosaic."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import Images
from torchviz_cnn.attribution.metrics.mosaics.choice import Mosaics, Size, Truth
from torchviz_cnn.attribution.metrics.parts import Method, method_of, values_of
from torchviz_cnn.attribution.metrics.result import Measurement
from torchviz_cnn.core.errors import EmptyMapWarning, InputError, NotFiniteError, counted, one_line
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model, category_name


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CellMeasurement(Measurement):
    """The share of the evidence in its own cell, of each mosaic; `details["cells"]` has those of all cells."""

    mosaics: Mosaics
    """What was measured on."""

    @property
    def median(self) -> float:
        """The median over all cells that could be measured, where `mean` is over mosaics; NaN where none could."""
        shares = self.details["cells"]
        return float(shares[shares.isfinite()].double().quantile(0.5)) if bool(shares.isfinite().any()) else math.nan

    def __repr__(self) -> str:
        return f"{super().__repr__()}; by chance {self.mosaics.chance:.3f}; {self.mosaics!r}"


def grid_pointing_game(
    model: Model,
    x: Images,
    method: Method | str,
    *,
    truth: Truth = None,
    n: int = 2,
    count: int = 40,
    threshold: float = 0.99,
    size: Size = "grow",
    output: Output = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> CellMeasurement:
    """Measure which share of the positive evidence for a class lies on its own photo, in mosaics of several.

    A mosaic has n x n photos of different classes, each of which the network recognises alone. They are put together
    as the network gets them, so that the input is n times as high and as wide. For each of the n x n classes, the value
    is the share of the map's positive values in the cell of its photo; of what lies across a border each cell gets its
    part.

    Args:
        model: a module or a Network.
        x: photos of several classes: see `insertion`; or the `mosaics` of a result, so that several methods are
            measured on the same ones: `truth`, `n`, `count`, `threshold`, `size` and `seed` are theirs then.
        method: what makes the maps, by its name (`"grad_cam"`) or as a function (model, x, target=...). Methods of
            this library get the classes of a mosaic at once, (1, K); another function one class at a time, (1,).
        truth: the true classes: one for each photo, its index, its name, or None for a photo that is left out; or a
            function of its path that gives these, as `lambda path: int(path.name.split("_")[0])`. By default those of
            a folder with a folder for each class, named as the network's classes, or of a dataset; where there are no
            such, or with `"predicted"`, a photo is of the class that the network takes it for.
        n: how many photos side by side, at least 2.
        count: how many mosaics.
        threshold: how probable the class of each photo is at least, alone; it is the likeliest too.
        size: `grow`, or `fit` for a network of one input size, which gets the mosaic made smaller to its own.
        output: as for `grad_cam`.
        batch_size: how many photos at a time are looked at.
        seed: seed of the choice of photos.
        progress: whether to show bars.

    Returns:
        A CellMeasurement with a value for each mosaic, the mean over its classes: 0..1, higher is better, 1 / n ** 2 by
        chance. Its `median` is over all cells, its `mosaics` says how many photos were recognised. A class whose map
        has no positive value is not measured.

    Raises:
        InputError: for photos of too few classes that are recognised, classes that do not fit, a network that does not
            take an input of n times its size, and a wrong option.
        TargetError: for a class that the network does not have.

    Boehle et al., arXiv 2104.00032, section 4.1.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(20 * torch.eye(4)[..., None, None])
    >>> x = torch.eye(4)[..., None, None].expand(4, 4, 8, 8)
    >>> measured = grid_pointing_game(model, x, "input_x_gradient", truth=[0, 1, 2, 3], count=8)
    >>> measured.mean, measured.mosaics.recognised
    (1.0, 4)
    """
    options = {"truth": truth, "n": n, "count": count, "threshold": threshold, "size": size, "output": output}
    options |= {"batch_size": batch_size, "seed": seed, "progress": progress}
    mosaics = x if isinstance(x, Mosaics) else Mosaics.of(model, x, **options)  # type: ignore[arg-type]
    return own_cell(model, mosaics, method, output=output, progress=progress)


def own_cell(
    model: Model, mosaics: Mosaics, method: Method | str, *, output: Output = None, progress: bool = False
) -> CellMeasurement:
    """Measure one method on mosaics that are there already: see `grid_pointing_game`.

    Args:
        model, method, output, progress: as for `grid_pointing_game`.
        mosaics: as `Mosaics.of` makes them.

    Returns:
        A CellMeasurement.
    """
    chosen = {} if output is None else {"output": output}
    explain, several = method_of(method), takes_several(method)

    def maps(index: int) -> Tensor:
        return maps_of(partial(explain, model, mosaics.input(model, index), **chosen), mosaics.classes[index], several)

    return measured_cells("grid_pointing_game", mosaics, maps, progress)


def maps_of(explain: Callable[..., Any], classes: Tensor, several: bool) -> Tensor:
    """The maps of the classes of one mosaic: (K, h, w). Raises InputError for a method that gives others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyMapWarning)  # the Measurement says which are, by the class's name
        if several:
            values = values_of(explain(target=classes[None]))
        else:
            values = torch.stack([values_of(explain(target=one[None])) for one in classes], 1)
    if values.ndim != 4 or values.shape[:2] != (1, len(classes)):
        raise InputError(
            f"the method gives maps {tuple(values.shape)} for one mosaic of {counted(len(classes), 'class')}: it "
            "cannot be measured on mosaics"
        )
    if not bool(values.isfinite().all()):
        raise NotFiniteError("its map has NaN or infinity in it")
    return values[0]


def measured_cells(name: str, mosaics: Mosaics, maps: Callable[[int], Tensor], progress: bool) -> CellMeasurement:
    """The share of each class in its own cell, mosaic by mosaic. Raises NotFiniteError where no map is finite."""
    rows, reasons, wrong = list[Tensor](), dict[int, str](), dict[int, str]()
    with progress_bar(progress, total=len(mosaics), desc=name.replace("_", " "), unit=" mosaics") as bar:
        for index in range(len(mosaics)):
            try:
                rows.append(own_shares(maps(index), mosaics.n))
            except NotFiniteError as error:
                rows.append(torch.full((mosaics.n**2,), math.nan))
                reasons[index] = wrong[index] = one_line(error)
            missing = rows[-1].isnan().nonzero()[:, 0].tolist()
            if missing and index not in wrong:
                classes = [category_name(mosaics.categories, int(mosaics.classes[index, k])) for k in missing]
                reasons[index] = f"the map of {', '.join(classes)} has no positive value"
            bar.update()
    if len(wrong) == len(mosaics):
        raise NotFiniteError(f"no map can be used; {mosaics.name(0)}: {wrong[0]}")
    with torch.inference_mode(False):  # so that the result can be computed with outside of it too
        shares = torch.stack(rows).clone()
        values = shares.nanmean(1)
    return CellMeasurement(
        metric=name,
        better="higher",
        values=values,
        names=tuple(map(mosaics.name, range(len(mosaics)))),
        reasons=reasons,
        details={"cells": shares},
        mosaics=mosaics,
    )


def own_shares(maps: Tensor, n: int) -> Tensor:
    """The share of the positive values of each of n * n maps (n * n, h, w) in its own cell; NaN where there are none.

    >>> own_shares(torch.ones(4, 3, 3), 2)
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    positive = maps.relu().double().cpu()
    rows, columns = (_parts_in(side, n) for side in positive.shape[1:])
    cells = torch.einsum("ir,krc,jc->kij", rows, positive, columns).flatten(1)
    return (cells.diagonal() / cells.sum(1)).float()


def _parts_in(side: int, n: int) -> Tensor:
    """Which part of each of `side` rows lies in each of n equal bands: (n, side)."""
    edges = torch.arange(side, dtype=torch.float64) * n
    bands = torch.arange(n, dtype=torch.float64)[:, None] * side
    return (torch.minimum(edges + n, bands + side) - torch.maximum(edges, bands)).clamp(min=0) / n


def takes_several(method: Method | str) -> bool:
    """Whether a method takes several classes at once, (1, K): those of this library do."""
    function: Any = method
    while isinstance(function, partial):
        function = function.func
    return isinstance(function, str) or getattr(function, "__module__", "").partition(".")[0] == "torchviz_cnn"
