"""`top_activations`: what, in a whole dataset, drives every channel most. Zeiler & Fergus' figure 2, at any scale."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.core.errors import InputError, SkippedWarning
from torchviz_cnn.hooks.network import preprocess_of
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.media.dataset import ImageSource
from torchviz_cnn.media.photo_folder import PhotoFolder
from torchviz_cnn.runs.folder import ResultFolder, model_checksum
from torchviz_cnn.runs.ranks import joined
from torchviz_cnn.topk.near_ties import Settled, settle
from torchviz_cnn.topk.passes import STATE, Layers, Probe, State, probe, run_pass
from torchviz_cnn.topk.reading import usual_workers
from torchviz_cnn.topk.result import KIND, RESULTS, TopActivations
from torchviz_cnn.topk.statistics import ChannelStatistics

_SPARE = 8
"""How many candidates per channel are kept beyond k, for images that are equal within rounding."""


def top_activations(
    model: nn.Module, dataset: Any, layers: Layers = None, k: int = 9, *,
    preprocess: Callable[[Image.Image], Tensor] | None = None, batch_size: int = 32, workers: int | None = None,
    out: str | Path | None = None, resume: bool = True, save_every: int = 50, exact: bool = True, progress: bool = False,
) -> TopActivations:  # fmt: skip
    """The k strongest activations of every channel of some layers over a dataset, at most one per image.

    `dataset`: a folder of photos (with folders below it by class, or without), or anything map-style: torchvision's
    `ImageFolder`, a list of photos, a tensor (N, C, H, W); items are inputs (C, H, W), or photos, which `preprocess` (by
    default that of the model that `load_model` made) turns into inputs, alone or first in a tuple or dict with a label.
    `layers`: names, glob patterns or module types as for `capture`; by default all convolutions. Fully connected layers too.

    One pass: the forward stops at the last layer, each output is reduced at once on the device, photos are decoded by
    `workers` processes meanwhile (None: by all processors but one for photos, by this one for other datasets). Memory does
    not grow with the dataset. Images that cannot be read are left out, and listed in `skipped` (SkippedWarning).

    The answer does not depend on batch size, workers, ranks or interruptions: values that are equal within rounding are
    compared in double precision, and ties go to the earlier image and the first position (`exact=False`: as computed).

    `out`: a folder to keep the results in. It is written every `save_every` batches; a run that was killed goes on there,
    a finished one is read. Under `torchrun` the processes share the images, and all get the same result.

    Gives `values` (C, k), `images` (C, k), `positions` (C, k, 2) and `statistics` for each layer, and draws pages of patches.
    Raises LayerError, InputError; OutputError for a folder of another model or dataset; RankError where a process dies.

    Zeiler & Fergus, arXiv 1311.2901, figure 2.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
    >>> top = top_activations(model, torch.rand(20, 3, 16, 16), ["1", "4"], k=5)
    >>> top.values["4"].shape, top.images["4"].shape, top.positions["4"].shape
    (torch.Size([6, 5]), torch.Size([6, 5]), torch.Size([6, 5, 2]))
    """
    for name, number, least in (
        ("k", k, 1),
        ("batch_size", batch_size, 1),
        ("save_every", save_every, 1),
        ("workers", workers or 0, 0),
    ):
        if not isinstance(number, int) or number < least:
            raise InputError(f"{name} is a whole number of at least {least}, not {number!r}")
    with untouched(model) as lent:
        source = ImageSource(dataset, preprocess or preprocess_of(lent))
        if workers is None:
            workers = usual_workers() if isinstance(source.dataset, PhotoFolder) else 0
        with joined(str(next((p.device for p in lent.parameters()), "cpu"))) as ranks:
            found = probe(lent, source, layers)
            folder, state = None, State.new(found, k + _SPARE)
            if out is not None:
                # The first rank alone writes; what it refuses ends all of them.
                whose = _identity(lent, source, found, k, exact) if ranks.first else {}
                folder = ranks.once(lambda: ResultFolder.open(out, KIND, whose, resume=resume))
                finished = ranks.gather(ranks.once(lambda: _finished(folder)))[0]
                if finished is not None:
                    return replace(finished, source=source, model=lent)
                state = ranks.gather(ranks.once(lambda: _left(folder)))[0] or state
            run_pass(
                lent, source, state, batch_size=batch_size, workers=workers, save_every=save_every, ranks=ranks,
                save=None if out is None else lambda: None if folder is None else state.save(folder), progress=progress,
            )  # fmt: skip
            candidates = {layer: tally.candidates for layer, tally in state.tallies.items()}
            settled = settle(lent, source, candidates, k, ranks, workers) if exact else Settled(candidates, 0)
            top = _result(lent, source, found, state, settled, k)
            ranks.once(lambda: None if folder is None else top.write(folder))
            if ranks.first:
                _warn(state, settled)
            return top


def _identity(model: nn.Module, source: ImageSource, found: Probe, k: int, exact: bool) -> dict[str, Any]:
    """Whose results these are. What does not change them, as the batch size, is not part of it."""
    listing = source.listing()
    return {
        "model": type(model).__name__,
        "weights": model_checksum(model),
        "images": listing["images"],
        "dataset": listing["checksum"],
        "preprocess": source.preparation(),
        "input": list(found.input_size),
        "layers": list(found.channels),
        "k": k,
        "exact": exact,
    }


def _finished(folder: ResultFolder | None) -> TopActivations | None:
    """What an earlier run found, if it came to its end."""
    done = folder is not None and folder.has(RESULTS)
    return replace(TopActivations.load(folder.path), source=None) if folder is not None and done else None


def _left(folder: ResultFolder | None) -> State | None:
    """How far an earlier run came, if it came anywhere."""
    return State.load(folder) if folder is not None and folder.has(STATE) else None


def _result(
    model: nn.Module, source: ImageSource, found: Probe, state: State, settled: Settled, k: int
) -> TopActivations:  # fmt: skip
    values, images, positions = {}, {}, {}
    for layer, candidates in settled.candidates.items():
        none = candidates.images[:k].T < 0
        values[layer] = candidates.values[:k].T.float().masked_fill(none, torch.nan)
        images[layer] = candidates.images[:k].T.contiguous()
        positions[layer] = candidates.positions[:k].transpose(0, 1).contiguous()
    return TopActivations(
        layers=tuple(state.tallies),
        values=values,
        images=images,
        positions=positions,
        statistics={layer: ChannelStatistics.of(tally) for layer, tally in state.tallies.items()},
        count=len(source),
        skipped=dict(state.skipped),
        fields=found.fields,
        uncertain=settled.uncertain,
        source=source,
        model=model,
    )


def _warn(state: State, settled: Settled) -> None:
    if state.skipped:
        first = next(iter(state.skipped.values()))
        warnings.warn(
            f"{len(state.skipped)} of {state.done} images could not be read and were left out (skipped lists them); {first}",
            SkippedWarning,
            stacklevel=4,
        )
    for layer, tally in state.tallies.items():
        if tally.not_numbers:
            warnings.warn(
                f"layer {layer!r}: {tally.not_numbers} times the maximum of an image's map is not a number (NaN); "
                "these were left out",
                SkippedWarning,
                stacklevel=4,
            )
    if settled.problem is not None:
        warnings.warn(
            f"images that are equal within rounding stay in the order computed: {settled.problem}",
            SkippedWarning,
            stacklevel=4,
        )
