"""`survey`: what a network predicts of a folder of photos, where it looks, and what it confuses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.methods import all_methods
from torchviz_cnn.attribution.metrics.images import AllImages
from torchviz_cnn.attribution.metrics.localisation import Masks, MaskSource
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, NotFiniteError, SkippedWarning, TorchvizError, counted
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.core.warn import warn
from torchviz_cnn.evaluation.classes import Matches, Truth, given_classes, matched
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model, Network, category_name, module_of
from torchviz_cnn.layers.defaults import input_channels
from torchviz_cnn.media.datasets.givers import gives_stored
from torchviz_cnn.media.datasets.photos import Photos
from torchviz_cnn.media.datasets.shards.tar_shards import TarShards
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.media.decoding import Decode, require_decoder
from torchviz_cnn.media.images import Preprocess, preparation
from torchviz_cnn.runs.folder import STATE, ResultFolder, model_checksum
from torchviz_cnn.runs.ranks import Ranks, joined
from torchviz_cnn.runs.workers import checked_workers, usual_workers
from torchviz_cnn.surveys.choice import calibration, chosen, confusions, explained_again
from torchviz_cnn.surveys.maps import Explainer
from torchviz_cnn.surveys.passes import Classes, Look, State, explained_class, run_pass
from torchviz_cnn.surveys.result import Settings, Survey, relative_name
from torchviz_cnn.surveys.saving import KIND, RESULT, complete, identity_of, read
from torchviz_cnn.surveys.shortcuts import summaries
from torchviz_cnn.topk.reading import prepare_once, read_batches

_NO_LABELS = "truth='none' takes the photos without labels"


def survey(
    net: Model,
    photos: Any,
    *,
    truth: Truth = None,
    masks: MaskSource | None = None,
    mask_values: Sequence[int] | int | None = None,
    method: str = "grad_cam",
    layer: LayerName | None = None,
    output: Output = None,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    k: int = 12,
    seed: int = 0,
    batch_size: int = 16,
    workers: int | None = None,
    decode: Decode = "cpu",
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    save_every: int = 8,
    progress: bool = False,
) -> Survey:
    """Say over a folder of photos what a network predicts, where it looks, and what it confuses.

    It takes one pass: of each batch one forward pass gives the predictions and the heatmaps of the predicted and the
    true class, which are reduced at once, so that memory hardly grows with the folder. The photos that are shown are
    explained again in the end. Values do not depend on the batch size, the workers or the ranks but for rounding
    (1e-5). Under `torchrun` the processes share the photos, and all get the same result.

    Args:
        net: a module or a Network.
        photos: a folder of photos (with a folder below it for each class, or without), tar files of them (a pattern as
            for `TarShards`), or anything map-style: torchvision's `ImageFolder`, a list of photos, a tensor
            (N, C, H, W).
        truth: the true class of each photo: a CSV file of `file,class`, `"folders"` for the name of the folder that
            each lies in, a sequence, a mapping by the photo's name, a function of the name; `"none"` for none. By
            default (None) the folders by class, or the labels of the dataset, where there are. Classes are the
            network's by name or index (see `Settings.labels`).
        masks, mask_values: where the object of each photo is, as for `torchviz_cnn.metrics.energy_in_mask`: the
            share of the evidence on it is then measured.
        method: what makes the heatmaps, by its name in the table of methods: Grad-CAM by default, as it explains any
            network by one forward and one short backward pass, and gives the maps of two classes on one scale, so that
            their difference has a meaning.
        layer: whose maps are weighed; by default the one that the method takes.
        output: as for `grad_cam`.
        preprocess: what turns photos into inputs; by default that of the Network.
        k: how many photos of each kind are shown with their heatmaps (12).
        seed: seed of the choice of the random ones.
        batch_size: how many photos at once.
        workers: how many processes decode photos meanwhile; by default all processors but one for a folder, none for
            other datasets.
        decode: as for `top_activations`: `cuda` decodes plain JPEG files on the GPU of the network.
        out: a folder for the results (see `Survey.save`), among them the page `index.html`: a run that was killed goes
            on there, a finished one is read.
        resume: whether to go on with what `out` has of the same run; otherwise that is an error.
        save_every: after how many batches, at least, `out` is written.
        progress: whether to show a progress bar.

    Returns:
        A Survey: a column for each number of the photos, classes, confusions, calibration, and the photos shown.

    Raises:
        InputError: for an option, a dataset or masks that cannot work.
        TargetError: for labels that the network does not have, all of them with the nearest names.
        ImageError: for a folder without photos.
        LayerError, ModelError: for a network that the method cannot explain.
        OutputError: for a folder of another run.
        RankError: where a process of a shared run dies.
        WorkerError: where a process that reads photos dies, as for lack of memory.

    Warns:
        SkippedWarning: for photos that cannot be read, or that hold or give NaN, which are left out.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> result = survey(model, torch.rand(6, 3, 16, 16), truth=[0, 1, 0, 1, 0, 1], k=2)
    >>> result.predicted.shape, len(result.classes), result.labelled
    ((6,), 2, True)
    """
    numbers = {"k": k, "batch_size": batch_size, "save_every": save_every}
    numbers = {name: checks.whole_number(name, value) for name, value in numbers.items()}
    checks.whole_number("seed", seed, 0)
    checks.one_of("method", method, all_methods())
    if mask_values is not None and masks is None:
        raise InputError("mask_values say which values of masks are the object, and no masks are given")
    place = None if out is None else checks.path("out", out)
    source = ImageSource(photos, preprocess or (net.preprocess if isinstance(net, Network) else None), decode)
    device = next((p.device for p in module_of(net).parameters()), _CPU)
    if decode == "cuda":
        require_decoder(device)
    if place is not None:
        source.require_apart(place)
    workers = checked_workers(workers, usual_workers() if isinstance(source.dataset, Photos) else 0)
    objects = None if masks is None else Masks(masks, AllImages(photos, net), mask_values)
    explainer = Explainer(net, method, layer, output)
    with torch.inference_mode(False), joined(str(device)) as ranks, ExitStack() as stack:
        prepare_once(source, place, KIND, ranks, progress)
        run = _started(net, source, explainer, truth, objects, k=numbers["k"], seed=seed)
        folder = None
        if place is not None:
            identity = _identity(run, masks, mask_values, truth) if ranks.first else {}
            opened = ResultFolder.run(place, KIND, identity, resume=resume)
            folder = ranks.once(lambda: stack.enter_context(opened))
        options = {"batch_size": batch_size, "workers": workers, "save_every": save_every}
        return _finished(run, folder, ranks, place is not None, progress=progress, **options)


@dataclass(frozen=True, eq=False)
class _Run:
    """What is settled before the first batch."""

    look: Look
    settings: Settings
    categories: tuple[str, ...]

    @property
    def source(self) -> ImageSource:
        return self.look.source


def _started(
    net: Model, source: ImageSource, explainer: Explainer, truth: Truth, masks: Masks | None, *, k: int, seed: int
) -> _Run:
    """Look at the first photo that can be read, so that what cannot work is said before anything is computed."""
    explainer, outputs, label = _settled(module_of(net), source, explainer)
    classes, matches = _classes(net, source, truth, outputs, label)
    _require_a_mask(masks)
    named = (net.categories if isinstance(net, Network) else None) or _names_of_labels(matches, outputs)
    prepare = source.preprocess
    settings = Settings(
        network=net.name if isinstance(net, Network) else type(net).__name__,
        weights=model_checksum(module_of(net)),
        folder=source.root,
        method=explainer.method,
        method_title=all_methods()[explainer.method].title,
        layer=explainer.layer if isinstance(explainer.layer, str) else None,
        preparation=preparation(prepare) if isinstance(prepare, Preprocess) else source.preparation(),
        random=isinstance(net, Network) and net.weights == "random",
        guessed=isinstance(net, Network) and net.guessed,
        labels=matches.how,
        seed=seed,
        k=k,
    )
    return _Run(
        Look(explainer, source, classes, masks),
        settings,
        tuple(category_name(named, index) for index in range(outputs)),
    )


def _settled(model: torch.nn.Module, source: ImageSource, explainer: Explainer) -> tuple[Explainer, int, int | None]:
    """The explainer with its layer, how many outputs there are, and the label of the first photo that can be used.

    Raises InputError where there is none. Of those that can be read a few are tried: where all give NaN, it is the
    network.
    """
    reasons, tried = list[str](), 0
    source = ImageSource(source.dataset, source.preprocess)
    for batch in (one for place in range(len(source)) for one in read_batches(source, range(1), [[place]], 0, _CPU)):
        reasons += batch.skipped.values()
        if batch.x is None:
            continue
        wanted = input_channels(model)
        if wanted is not None and batch.x.shape[1] != wanted:
            channels = counted(batch.x.shape[1], "channel")
            raise InputError(f"photos have {channels}, and {type(model).__name__} takes {wanted}")
        x, tried = batch.on(_CPU), tried + 1
        try:
            settled = explainer.settled(x)
            return settled, settled(x).probabilities.shape[1], batch.labels[0]
        except NotFiniteError:
            if tried == _TRIED:
                raise
            reasons.append(f"{source.name(int(batch.images[0]))} has or gives NaN or infinity")
    raise InputError(f"none of {counted(len(source), 'photo')} can be used; the first: {reasons[0]}")


_TRIED = 8
"""Of how many photos one must give finite numbers."""
_CPU = torch.device("cpu")


def _classes(net: Model, source: ImageSource, truth: Truth, outputs: int, label: int | None) -> tuple[Classes, Matches]:
    """The true class of each photo, and how the labels were matched, in a sentence."""
    if isinstance(truth, str) and truth == "none":
        return Classes(), Matches({}, "no labels were asked for")
    if truth is not None:
        own = source.dataset.names if gives_stored(source.dataset) else None
        names = [relative_name(source, index) for index in range(len(source))] if own is None else own
        given = given_classes(names, truth)
        matches = matched(net, given, outputs, _NO_LABELS)
        return Classes([matches.known[one] for one in given]), matches._replace(how=f"labels as given: {matches.how}")
    if label is None:
        return Classes(), Matches({}, _without_labels(source))
    if not source.categories:
        return Classes(of_labels={}, outputs=outputs), Matches({}, "labels are those of the dataset, by index")
    hint = f"the labels are {'folders of the photos' if source.root else 'classes of the dataset'}; {_NO_LABELS}"
    if isinstance(source.dataset, Photos) and any(name.count("/") > 1 for name in source.dataset.names):
        hint += ", and truth='folders' takes the innermost folder of each"
    matches = matched(net, source.categories, outputs, hint)
    of_labels = {place: matches.known[name] for place, name in enumerate(source.categories)}
    where = "the folders' names" if source.root else "the dataset's classes"
    return Classes(of_labels=of_labels), matches._replace(how=f"labels are {where}: {matches.how}")


def _without_labels(source: ImageSource) -> str:
    """Why there are no labels, in a sentence. Raises InputError for shards in which other photos have labels."""
    if not isinstance(source.dataset, Photos):
        return f"the dataset has no labels: {source.name(0)} has none"
    names = source.dataset.names
    if isinstance(source.dataset, TarShards):
        if (labelled := source.dataset.labels >= 0).any():
            raise InputError(f"{names[int(labelled.argmin())]} has no label, and others have; {_NO_LABELS}")
        return "the photos have no labels: the shards have none in a .cls or .json"
    outside = sum("/" not in name for name in names)
    if outside == len(names):
        return "the photos have no labels: they are not in a folder for each class"
    lie, first = "lies" if outside == 1 else "lie", next(name for name in names if "/" not in name)
    return f"no photo has a label, as {outside} of {len(names)} {lie} in no folder of a class: {first!r}" + (
        " and others" if outside > 1 else ""
    )


def _names_of_labels(matches: Matches, outputs: int) -> tuple[str, ...] | None:
    """The names of the classes of a network without names, where the labels stand for all of them in their order."""
    if len(matches.known) != outputs or not all(isinstance(one, str) and not one.isdigit() for one in matches.known):
        return None
    return tuple(sorted(matches.known, key=lambda one: matches.known[one]))


def _require_a_mask(masks: Masks | None) -> None:
    """Raise InputError, before anything is measured, where no mask can be used."""
    if masks is None:
        return
    for number in sorted(masks.numbers):
        if masks.mask(number) is not None:
            return
    raise InputError(f"none of the masks can be used: {next(iter(masks.reasons.values()), 'there is none')}")


def _identity(run: _Run, masks: MaskSource | None, mask_values: Any, truth: Truth) -> dict[str, Any]:
    """What identifies a run; options that do not change its results, such as the batch size, are left out."""
    listing = run.source.listing()
    given = run.look.classes.given
    classes = None if given is None else hashlib.sha256(",".join(map(str, given)).encode()).hexdigest()
    marked = str(masks) if isinstance(masks, (str, os.PathLike)) else type(masks).__name__
    objects = None if masks is None else f"{marked} {mask_values}"
    about = {"photos": listing["images"], "dataset": listing["checksum"], "classes": classes, "masks": objects}
    about |= {} if run.source.decode == "cpu" else {"decode": run.source.decode}
    return identity_of(run.settings, **about, prepared=run.source.preparation())


def _finished(
    run: _Run, folder: ResultFolder | None, ranks: Ranks, kept: bool, *, progress: bool, **options: int
) -> Survey:
    """Go on from what the folder has to the end, and write all into it.

    The first rank alone has the folder; `kept` says to all whether there is one.
    """
    earlier = ranks.gather(ranks.once(lambda: _earlier(folder)))[0]
    if isinstance(earlier, Survey):
        result = replace(earlier, source=run.source)
    else:
        state = earlier or State()
        save = partial(_saved, state, folder) if kept else None
        try:
            run_pass(run.look, state, ranks, save, **options, progress=progress)
        except TorchvizError:
            if folder is not None:
                folder.abandon()
            raise
        computed: Any = ranks.gather(ranks.once(lambda: _result(run, state, options["batch_size"])))[0]
        result = replace(computed, source=run.source)
    ranks.once(lambda: None if folder is None else complete(result, folder))
    if ranks.first and result.skipped:
        first = next(iter(result.skipped.values()))
        photos = f"{len(result.skipped)} of {counted(len(run.source), 'photo')}"
        warn(f"{photos} could not be used (skipped lists what is left out); {first}", SkippedWarning)
    return result


def _saved(state: State, folder: ResultFolder | None) -> None:
    if folder is not None:
        state.save(folder)


def _earlier(folder: ResultFolder | None) -> Survey | State | None:
    """The result of an earlier run that came to its end; else how far it came, if it came anywhere."""
    if folder is None:
        return None
    if folder.has(RESULT):
        return read(folder)
    return State.load(folder) if folder.has(STATE) else None


def _result(run: _Run, state: State, batch_size: int) -> Survey:
    columns: dict[str, Any] = {
        name: column for name in list(state.columns) if (column := state.column(name)) is not None
    }
    places, explained = columns.pop("place"), explained_class(columns)
    classes = summaries(columns, state.cells, run.categories, explained)
    reasons = chosen(columns, classes, explained, run.settings.k, run.settings.seed)
    names = tuple(relative_name(run.source, place) for place in places.tolist())
    shown = explained_again(run.look, places, names, columns.get("true"), reasons, batch_size)
    absent = dict.fromkeys(("true", "true_probability", "loss", "inside"))
    return Survey(
        settings=run.settings,
        categories=run.categories,
        names=names,
        **{**absent, **columns},
        classes=classes,
        confusions=confusions(columns),
        calibration=calibration(columns),
        shown=shown,
        skipped={relative_name(run.source, place): reason for place, reason in sorted(state.skipped.items())},
        coverage=state.coverage / len(places),
    )
