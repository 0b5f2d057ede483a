"""`top_activations`: what, in a whole dataset, drives every channel most. Zeiler & Fergus' figure 2, at any scale."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, SkippedWarning, counted
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model, Network
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import Layers
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.decoding import Decode, require_decoder
from torchviz_cnn.runs.folder import STATE, ResultFolder, model_checksum
from torchviz_cnn.runs.ranks import Ranks, joined
from torchviz_cnn.runs.workers import checked_workers, usual_workers, watching_workers
from torchviz_cnn.scores.targets import Score, Target
from torchviz_cnn.topk.exact import in_exact_order
from torchviz_cnn.topk.passes import Probe, RunState, probe, run_pass
from torchviz_cnn.topk.pieces.cutting import Piece
from torchviz_cnn.topk.pieces.outcome import result_of
from torchviz_cnn.topk.reading import prepare_once
from torchviz_cnn.topk.relevance.shares import Relevance
from torchviz_cnn.topk.result import KIND, RESULTS, By, TopActivations

_SPARE = 8
"""How many candidates per channel beyond k are computed again for an exact order."""


def top_activations(
    model: Model,
    dataset: Any,
    layers: Layers = None,
    k: int = 9,
    *,
    by: By = "activation",
    target: Target = None,
    score: Score = "logit",
    output: Output = None,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    save_every: int = 50,
    exact: bool = False,
    decode: Decode = "cpu",
    start: int = 0,
    end: int | None = None,
    progress: bool = False,
) -> TopActivations:
    """Find the k strongest activations of every channel of some layers over a dataset, at most one per image.

    By `relevance` it finds where channels are used, and not what excites them: the images in which the channel adds
    most to a score. A unit's share in the score is its activation times the score's gradient with respect to it, and
    the channel's relevance is the sum of its units' shares; its place is that of the largest share. The same pass gives
    the strongest activations too, as `.activation` of the result.

    It takes one pass: the forward stops at the last layer and each output is reduced at once on the device, so that
    memory does not grow with the dataset. The stronger activation comes first; of equal ones the earlier image, and of
    equal places in a map the first. Values do not depend on the batch size, the workers or the ranks but for rounding
    (1e-5), nor does the order where values differ by more. Under `torchrun` the processes share the images, and all get
    the same result. Machines that share nothing but the dataset compute pieces of it, from `start` up to `end`, and
    `merge` makes one result of them.

    Args:
        model: a module or a Network.
        dataset: a folder of photos (with folders below it by class, or without), tar files of them (a pattern as for
            `TarShards`), or anything map-style: torchvision's `ImageFolder`, a list of photos, a tensor (N, C, H, W).
            Items are inputs (C, H, W), or photos, alone or first in a tuple or dict with a label.
        layers: names, glob patterns or module types as for `capture`, fully connected layers too; by default all
            convolutions.
        k: how many activations per channel.
        by: `activation`, or `relevance` for a score, which takes a backward pass for each batch.
        target: of relevance, whose score: None for each image's top class, a class for all images by its index or (with
            a Network) its name, (N,) a class for each image of the dataset, or a function of the model's output that
            gives one number for each image, as `torchviz_cnn.targets` has them.
        score, output: of relevance, as for `grad_cam`.
        preprocess: what turns photos into inputs; by default that of the Network.
        batch_size: how many images run at once.
        workers: how many processes decode photos meanwhile; by default all processors but one for a folder, none for
            other datasets.
        out: a folder to keep the results in. A run that was killed goes on there, a finished one is read.
        resume: whether to go on with what `out` has of the same run; otherwise that is an error.
        save_every: after how many batches `out` is written.
        exact: whether the k + 8 strongest are computed again in double precision, one image at a time, and ordered by
            these values: the result is then the same for every batch size, number of workers and ranks.
        start, end: the piece of the dataset that is looked at: the images from `start` (0) up to, and without, `end`
            (None: the last one too). Places in the result are those of the whole dataset.
        decode: `cuda` decodes plain JPEG files on the model's GPU, which many photos a second need, and prepares them
            there: pixels differ from those of `cpu` by a few levels. Others are read as ever.
        progress: whether to show a progress bar.

    Returns:
        TopActivations: `values` (C, k), `images` (C, k), `positions` (C, k, 2) and `statistics` of each layer, which
        draw pages of patches. Statistics are of activations, whatever the order is by.

    Raises:
        LayerError: for a layer that does not exist, is not reached or gives neither maps nor features.
        InputError: for an option or a dataset that cannot work.
        TargetError, ModelError: for a target that does not fit, and a score that does not depend on a layer.
        OutputError: for a folder of another model or dataset.
        RankError: where a process of a shared run dies.
        WorkerError: where a process that reads photos dies, as for lack of memory.

    Warns:
        SkippedWarning: for images that cannot be read or give NaN, which are left out, and for a network that does not
            run in double precision.

    Zeiler & Fergus, arXiv 1311.2901, figure 2; relevance maximization: Achtibat et al., arXiv 2206.03208.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
    >>> top = top_activations(model, torch.rand(20, 3, 16, 16), ["1", "4"], k=5)
    >>> top.values["4"].shape, top.images["4"].shape, top.positions["4"].shape
    (torch.Size([6, 5]), torch.Size([6, 5]), torch.Size([6, 5, 2]))
    """
    k, batch_size = checks.whole_number("k", k), checks.whole_number("batch_size", batch_size)
    save_every = checks.whole_number("save_every", save_every)
    checks.one_of("by", by, get_args(By))
    with untouched(model) as module:
        source = ImageSource(dataset, preprocess or (model.preprocess if isinstance(model, Network) else None), decode)
        if decode == "cuda":
            require_decoder(next((p.device for p in module.parameters()), torch.device("cpu")))
        workers = checked_workers(workers, usual_workers() if isinstance(source.dataset, Photos) else 0)
        with joined(str(next((p.device for p in module.parameters()), "cpu"))) as ranks, ExitStack() as stack:
            if out is not None:
                source.require_apart(out)
            prepare_once(source, out, KIND, ranks, progress)
            piece = Piece.of(start, end, len(source))
            relevance = _relevance(model, source, by, target, score, output)
            probed = probe(module, source, layers, relevance)
            folder, state = None, RunState.new(probed, k + _SPARE if exact else k, relevance is not None)
            if out is not None:
                # The first rank alone writes; what it refuses ends all of them.
                identity = _identity(module, source, probed, k, exact, relevance, piece) if ranks.first else {}
                run = ResultFolder.run(out, KIND, identity, resume=resume)
                folder = ranks.once(lambda: stack.enter_context(run))
                earlier = ranks.gather(ranks.once(lambda: _earlier(folder)))[0]
                if isinstance(earlier, TopActivations):
                    return earlier.attached(source, module)
                state = earlier or state

            def save() -> None:
                if folder is not None:
                    state.save(folder)

            options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "save_every": save_every}
            options |= {"progress": progress, "piece": piece}
            with watching_workers(lambda: None if out is None else state.done, len(piece)):
                run_pass(module, source, state, ranks, None if out is None else save, relevance, **options)
                if exact:
                    _compute_exactly(state, module, source, ranks, workers, relevance)
                if not piece.whole:  # merging needs them
                    ranks.once(save)
            words = None if relevance is None else relevance.words()
            top = result_of(state, piece, k, probed.fields, words, source, module)
            ranks.once(lambda: None if folder is None else top.write(folder))
            if ranks.first:
                _warn(state)
            return top


def _compute_exactly(
    state: RunState, model: nn.Module, source: ImageSource, ranks: Ranks, workers: int, relevance: Relevance | None
) -> None:
    """Note what candidates are in double precision, where the network runs in it."""
    for of in (None,) if relevance is None else (None, relevance):
        rankings = {
            layer: tally.activation if of is None else tally.relevance for layer, tally in state.tallies.items()
        }
        candidates = {layer: one.candidates for layer, one in rankings.items() if one is not None}
        exact = in_exact_order(model, source, candidates, ranks, workers, of)
        for layer, one in rankings.items():
            if one is not None:
                one.exact = None if exact is None else exact[layer]


def _relevance(
    model: Model, source: ImageSource, by: By, target: Target, score: Score, output: Output
) -> Relevance | None:
    """What relevance is of, where it is asked for. Raises InputError for what says so where it is not."""
    if by == "relevance":
        return Relevance.of(model, len(source), target, score, output)
    for name, value, usual in (("target", target, None), ("score", score, "logit"), ("output", output, None)):
        if value is not usual and not (isinstance(value, str) and value == usual):
            raise InputError(f"{name} says whose relevance is meant, and the order is by activation: by='relevance'")
    return None


def _identity(
    model: nn.Module,
    source: ImageSource,
    probed: Probe,
    k: int,
    exact: bool,
    relevance: Relevance | None,
    piece: Piece,
) -> dict[str, Any]:
    """Return what identifies a run; options that do not change its results, such as the batch size, are left out."""
    listing = source.listing()
    return {
        "model": type(model).__name__,
        "weights": model_checksum(model),
        "images": listing["images"],
        "dataset": listing["checksum"],
        "preprocess": source.preparation(),
        "input": list(probed.input_size),
        "layers": list(probed.channels),
        "k": k,
        "exact": exact,
        **({} if source.decode == "cpu" else {"decode": source.decode}),
        **({} if relevance is None else relevance.identity()),
        **piece.identity(),
    }


def _earlier(folder: ResultFolder | None) -> TopActivations | RunState | None:
    """The result of an earlier run that came to its end; else how far it came, if it came anywhere."""
    if folder is not None and folder.has(RESULTS):
        return TopActivations.load(folder.path).attached(None, None)
    return RunState.load(folder) if folder is not None and folder.has(STATE) else None


def _warn(state: RunState) -> None:
    if state.skipped:
        first = next(iter(state.skipped.values()))
        images = f"{len(state.skipped)} of {counted(state.done, 'image')}"
        warn(f"{images} could not be read (skipped lists what is left out); {first}", SkippedWarning)
    for layer, tally in state.tallies.items():
        for what, ranking in (("the maximum of an image's map", tally.activation), ("the relevance", tally.relevance)):
            if ranking is not None and ranking.not_numbers:
                times = f"{counted(ranking.not_numbers, 'time')} {what}"
                warn(f"layer {layer!r}: {times} is not a number (NaN); these were left out", SkippedWarning)
