"""`trust`: how far each method can be believed for a network, on one's own photos."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.attribution.metrics.images import AllImages, Images
from torchviz_cnn.attribution.metrics.localisation import Masks, MaskSource
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, counted
from torchviz_cnn.core.names import LayerPattern
from torchviz_cnn.evaluation.classes import Truth, classes_of
from torchviz_cnn.evaluation.collecting import BUDGET, Pieces, Table, collected
from torchviz_cnn.evaluation.columns import COLUMNS, MASKED, Column
from torchviz_cnn.evaluation.measuring import Run, spread
from torchviz_cnn.evaluation.ranking import FEWEST
from torchviz_cnn.evaluation.result import Trust
from torchviz_cnn.evaluation.rows import CENTRE, Methods, Row, probed, rows_of
from torchviz_cnn.evaluation.written.examples import examples_of
from torchviz_cnn.hooks.inputs import Output, batch_of, prepared
from torchviz_cnn.hooks.network import Model, Network, module_of
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.runs.folder import ResultFolder, model_checksum
from torchviz_cnn.scores.targets import predict

__all__ = ["trust"]

KIND = "trust"
"""What a folder of results is of."""
FILES = ("trust.csv", "trust.json", "trust.md", "index.html")


def trust(
    net: Model,
    photos: Images,
    *,
    methods: Methods = None,
    layers: LayerPattern | Sequence[LayerPattern] | None = None,
    masks: MaskSource | None = None,
    mask_values: Sequence[int] | int | None = None,
    truth: Truth = None,
    output: Output = None,
    budget: float | None = None,
    perturbed: int = 64,
    mosaics: int = 40,
    threshold: float = 0.99,
    tolerance: float = 15,
    steps: int = 32,
    seed: int = 0,
    batch_size: int = 8,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Trust:
    """Measure how far the maps of each method can be believed for a network, on your own photos.

    All methods are judged by all metrics of `torchviz_cnn.metrics` on the same photos, beside two references that know
    nothing of the network: a blob in the middle, and a random map. Metrics disagree; the result says which do.

    Args:
        net: a module or a Network.
        photos: a folder of photos or photos (with a Network), a map-style dataset, or a batch (N, C, H, W).
        methods: names of methods (see `torchviz-cnn cam --help`), `"all"`, or a mapping from a name of yours to a
            function (model, x, target=...) -> maps (B, h, w), or a list of these; by default ten quick ones.
        layers: names or patterns of the layers at which methods of a layer are compared; by default the one that each
            takes.
        masks, mask_values: where the object of each photo is, as for `torchviz_cnn.metrics.pointing_game`; without, the
            pointing game and the energy in the mask are not measured.
        truth: the true class of each photo, by index or name: a sequence, a mapping by the photo's name, a function of
            the name, a CSV file of `file,class`, or `"folders"` for the name of the folder that it lies in. By default
            the network's top class is explained.
        output: as for `grad_cam`.
        budget: seconds that it may take; all methods are measured on the same photos all the same. A few photos are
            measured at a time, and only if those before were quick enough for them to be done in time. Of each kind of
            measurement the first photo is begun without knowing, so the budget is overrun by that one photo at most. By
            default (None) all photos are measured.
        perturbed: how many photos at most, spread evenly over the list, are changed many times, for insertion and what
            is like it; a quarter of them is explained by networks with random weights.
        mosaics: how many mosaics of four photos that the network recognises are made, for the grid pointing game; 0:
            none.
        threshold: with what probability the network recognises the photos of mosaics (0.99).
        tolerance: as for `torchviz_cnn.metrics.pointing_game` (15).
        steps: in how many steps the pixels of a photo go or come (32).
        seed: seed of what is random.
        batch_size: how many photos at once.
        out: a folder for the results: a run that was interrupted goes on there, and it gets `trust.csv`, `trust.json`,
            `trust.md` and the page `index.html`.
        progress: whether to show progress bars.

    Returns:
        A Trust: rows of methods, columns of metrics, each photo's values, ranks, agreement and sentences.

    Raises:
        InputError: for a wrong option, classes that do not fit, masks none of which can be used, and where no method
            explains the network.
        LayerError, TargetError: for a layer or class that the network does not have.
        ImageError: for photos that cannot be read.
        OutputError: for a folder of another run.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> result = trust(model, torch.rand(3, 3, 16, 16), methods=["grad_cam", "saliency"], steps=4)
    >>> [row.method for row in result.rows]
    ['grad_cam', 'saliency', 'centre', 'random']
    >>> result["grad_cam", "insertion"].values.shape
    torch.Size([3])
    """
    begun = time.monotonic()
    until = math.inf if budget is None else begun + checks.number("budget", budget, 0)
    counts = {"perturbed": perturbed, "steps": steps, "batch_size": batch_size}
    counts = {name: checks.whole_number(name, value) for name, value in counts.items()}
    place = None if out is None else checks.path("out", out)
    checks.whole_number("seed", seed, 0)
    counts["mosaics"] = checks.whole_number("mosaics", mosaics, 0)
    checks.number("tolerance", tolerance, 0)
    checks.number("threshold", threshold, 0)
    if mask_values is not None and masks is None:
        raise InputError("mask_values say which values of masks are the object, and no masks are given")
    rows = rows_of(net, methods, layers, output)
    images = AllImages(photos, net)
    classes = classes_of(net, images.names, truth)
    known = None if masks is None else Masks(masks, images, mask_values)
    rows = _probed_on_first(net, images, classes, rows, output)
    if known is not None:
        _require_a_mask(net, images, known, output)
    weights = model_checksum(module_of(net))
    opened: AbstractContextManager[ResultFolder | None] = nullcontext()
    if place is not None:
        said = {"tolerance": tolerance, "threshold": threshold, "seed": seed, "masks": _of_masks(masks, mask_values)}
        said |= {"weights": weights, "output": _text_of(output)}
        identity = _identity(net, images, classes, rows, {**counts, **said})
        opened = ResultFolder.run(place, KIND, identity)
    with opened as folder, torch.inference_mode(False):  # what is kept must be of use outside of it
        run = Run(
            model=net,
            photos=photos,
            images=images,
            classes=classes,
            rows=tuple(rows),
            columns=COLUMNS,
            pieces=Pieces(folder),
            masks=known,
            output=output,
            threshold=threshold,
            tolerance=tolerance,
            seed=seed,
            **counts,
            until=until,
            begun=begun,
            progress=progress,
        )
        run.measure()
        result = _result(net, run, weights)
        if folder is not None:
            for name in FILES:
                result.save(folder.path / name)
    return result


def _probed_on_first(
    net: Model, images: AllImages, classes: list[int] | None, rows: list[Row], output: Output
) -> list[Row]:
    """The rows after a run on the first photo that can be read. Raises InputError where there is none."""
    reasons: dict[int, str] = {}
    for number in spread(len(images)):
        read, one, skipped = images.take([number])
        reasons |= skipped
        if read:
            x, _ = batch_of(net, one)
            target = predict(net, x, output=output).argmax(1) if classes is None else torch.tensor([classes[number]])
            return probed(net, rows, x, target)
    raise InputError(f"no photo could be read: {next(iter(reasons.values()), 'there is none')}")


def _require_a_mask(net: Model, images: AllImages, masks: Masks, output: Output) -> None:
    """Raise InputError, before anything is measured, where no mask can be used."""
    reasons = list[str]()
    for number in (number for number in spread(len(images)) if number in masks.numbers):
        read, one, _ = images.take([number])
        if read:
            x, origin = batch_of(net, one)
            with prepared(net, x, dims=(2,), output=output) as given:
                scene = masks.scene(number, replace(given, origin=origin), 0)
            if not isinstance(scene, str):
                return
            reasons.append(scene)
    raise InputError(f"none of the masks can be used: {next(iter(reasons), 'no photo that can be read has one')}")


def _result(net: Model, run: Run, weights: str) -> Trust:
    table = collected(run)
    name = net.name if isinstance(net, Network) else type(net).__name__
    return Trust(
        network=name,
        explained="each photo's top class" if run.classes is None else "each photo's true class",
        names=run.images.names,
        sizes=tuple(map(_size, run.images.x)) if isinstance(run.images.x, list) else (),
        weights=weights,
        classes=table.classes,
        categories=net.categories if isinstance(net, Network) else None,
        rows=run.rows,
        columns=run.columns,
        measured=table.measured,
        skipped=table.skipped,
        notes=tuple(_notes(run, table)),
        examples=examples_of(run, table.measured, table.classes) if run.pieces.folder is not None else (),
    )


def _notes(run: Run, table: Table) -> list[str]:
    classes, skipped = table.classes, table.skipped
    done, count = int((classes >= 0).sum()), len(run.images)
    measured = f"{done} of {counted(count, 'photo')} {'is' if done == 1 else 'are'} measured"
    notes = [f"{measured}, with the same photos for all methods." if done else f"{measured}."]
    if done + len(skipped) < count:
        notes.append("The budget was spent before the others; the same call with a larger one goes on.")
    if skipped:
        first = next(iter(skipped.values()))
        left = f"{counted(len(skipped), 'photo was', 'photos were')} left out"
        notes.append(f"{left}, as {run.images.names[next(iter(skipped))]}: {first}")
    few = [c.title for c in run.columns if c.judges and 0 < table.measured[CENTRE, c.name].count < FEWEST]
    if few:
        notes.append(f"Fewer than {FEWEST} photos or mosaics tell no methods apart: {', '.join(few)}.")
    for column in run.columns:
        notes += _of_column(run, table, column)
    if table.mosaics:
        notes.append(f"Own cell is measured on {table.mosaics}.")
    return notes


def _of_column(run: Run, table: Table, column: Column) -> list[str]:
    """That a column with masks could not be measured on photos, and why."""
    if run.masks is None or column.name not in MASKED:
        return []
    measured = table.measured[CENTRE, column.name]
    reasons = {number: why for number, why in measured.reasons.items() if number not in table.skipped and why != BUDGET}
    if not reasons:
        return []
    first = next(iter(reasons))
    what = counted(len(reasons), "photo")
    return [f"{column.title.capitalize()} is not measured on {what}, as {run.images.names[first]}: {reasons[first]}."]


def _size(photo: Any) -> int | None:
    """The size of a photo's file in bytes; None of what is no file."""
    return os.path.getsize(photo) if isinstance(photo, (str, os.PathLike)) and os.path.exists(photo) else None


def _of_masks(masks: Any, mask_values: Any) -> str | None:
    """A checksum over masks, or over the names and sizes of their files."""
    if masks is None:
        return None
    if isinstance(masks, (str, os.PathLike)) and os.path.isdir(masks):
        folder = PhotoFolder(Path(masks))
        parts: list[Any] = [f"{name} {os.path.getsize(folder.path / name)}" for name in folder.names]
    elif isinstance(masks, Mapping):
        parts = [part for name, mask in masks.items() for part in (str(name), _mask_bytes(mask))]
    else:
        parts = [_mask_bytes(mask) for mask in ([masks] if isinstance(masks, (str, os.PathLike)) else masks)]
    return _checksum([str(mask_values), *parts])


def _mask_bytes(mask: Any) -> str | bytes:
    return str(mask) if mask is None or isinstance(mask, (str, os.PathLike)) else _bytes(mask)


def _identity(
    net: Model, images: AllImages, classes: list[int] | None, rows: Sequence[Row], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What identifies a run; what does not change its results, as the budget, is left out."""
    return {
        "model": type(module_of(net)).__name__,
        "photos": len(images),
        "listing": _listing(images),
        "classes": None if classes is None else _checksum([str(classes)]),
        "metrics": [column.name for column in COLUMNS],
        "methods": {row.key: _described(row) for row in rows},
        **options,
    }


def _described(row: Row) -> str:
    """What stands for a function: its name, which is the same in every process."""
    return _name_of(getattr(row.explain, "func", row.explain))


def _text_of(output: Output) -> str | None:
    """What stands for the part of the output that is explained, the same in every process."""
    return _name_of(output) if callable(output) else None if output is None else repr(output)


def _name_of(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


def _listing(images: AllImages) -> str:
    """A checksum over the names and sizes of the photos' files or, of others, over their values."""
    if isinstance(images.x, ImageSource):
        return str(images.x.listing()["checksum"])
    if isinstance(images.x, Tensor):
        return _checksum([str(images.x.dtype), str(tuple(images.x.shape)), _bytes(images.x)])
    parts: list[str | bytes] = []
    for name, photo in zip(images.names, images.x, strict=True):
        is_file = isinstance(photo, (str, os.PathLike))
        parts += [name, str(_size(photo)) if is_file else _bytes(photo)]
    return _checksum(parts)


def _bytes(pixels: Any) -> bytes:
    if isinstance(pixels, Tensor):
        return bytes(pixels.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return bytes(np.ascontiguousarray(np.asarray(pixels)).tobytes())


def _checksum(parts: Sequence[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
        digest.update(b"\n")
    return digest.hexdigest()
