"""The pass over a dataset: forward passes that stop at the last layer, saved as they go, shared by ranks."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.core.errors import InputError, LayerError, ModelError, OutputError, counted
from torchviz_cnn.core.names import expand, named_layers
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.hooks.inputs import input_for
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.layers.defaults import Layers, chosen_patterns, input_channels
from torchviz_cnn.layers.layout import CONVOLUTIONS
from torchviz_cnn.layers.receptive_field import ReceptiveField, receptive_fields
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.runs.folder import ANEW, STATE, ResultFolder
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.pieces.cutting import Batches, Piece
from torchviz_cnn.topk.pieces.sums import Sums
from torchviz_cnn.topk.reading import read_batches, skip_reason
from torchviz_cnn.topk.relevance.shares import Relevance
from torchviz_cnn.topk.tally import Best, Candidates, Collector, Part, Ranking, Tally, as_maps

_FORMAT = 2
"""Of what `RunState` saves; 1 had sums that depended on the order of batches."""
_log = logging.getLogger("torchviz_cnn")


@dataclass(frozen=True, eq=False)
class Probe:
    """What the first image shows of the layers asked for."""

    channels: dict[str, int]
    """How many channels each layer has, in execution order."""
    fields: dict[str, ReceptiveField | None]
    """None where a unit sees everything, or it cannot be measured."""
    input_size: tuple[int, int]
    dtype: torch.dtype
    """In which activations are kept: float32 at least."""


def probe(model: nn.Module, source: ImageSource, layers: Layers, relevance: Relevance | None = None) -> Probe:
    """Run the first image that can be read: which calls of which layers there are, and what their units see.

    Raises LayerError and InputError for what cannot work on any image and, where relevance is asked for, TargetError
    and ModelError.
    """
    x = _first(model, source)
    calls = expand(model, named_layers(model), chosen_patterns(model, layers, CONVOLUTIONS))
    asked = {str(call) for call in calls if call.index is not None}
    channels: dict[str, int] = {}
    dtype = torch.float32

    def note(name: str, output: Any) -> None:
        nonlocal dtype
        try:
            maps = as_maps(model, name, output, 1)
        except LayerError:
            if name in asked:
                raise
            return  # met by a pattern only
        channels[name] = maps.shape[1]
        dtype = torch.promote_types(dtype, maps.dtype)

    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward([str(call) for call in calls], note)
        hooks.run(x.clone(), stop_early=len(asked) == len(calls))
        hooks.require_reached(asked)
    if not channels:
        raise LayerError(f"no layer of {type(model).__name__} that was asked for gives maps (B, C, h, w) or (B, C)")
    if relevance is not None:
        channels = {name: channels[name] for name in relevance.reached(model, x, list(channels), asked)}
    try:
        fields = receptive_fields(model, x, list(channels))
    except ModelError as error:
        _log.info("patches are the whole picture: %s", error)
        fields = {}
    partial = {name: None if (f := fields.get(name)) is None or f.whole else f for name in channels}
    return Probe(channels, partial, (x.shape[2], x.shape[3]), dtype)


def _first(model: nn.Module, source: ImageSource) -> Tensor:
    """The first image of a dataset that can be read, as a batch. Raises InputError where there is none, or it does not
    suit the network."""
    reason = ""
    for index in range(len(source)):
        try:
            x, _ = source.item(index)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a dataset's own code raises for one item
            reason = reason or skip_reason(source.name(index), error)
            continue
        wanted = input_channels(model)
        if len(x) != wanted and any(isinstance(m, CONVOLUTIONS) for m in named_layers(model).values()):
            raise InputError(
                f"image {index} of the dataset has {counted(len(x), 'channel')}; {type(model).__name__} takes {wanted}"
            )
        return input_for(model, x[None])
    raise InputError(f"none of {counted(len(source), 'image')} of the dataset can be read; the first: {reason}")


@dataclass(eq=False)
class RunState:
    """What is known after part of the dataset."""

    tallies: dict[str, Tally]
    done: int = 0
    """How many images of the dataset, or of the piece, were looked at, from its first on."""
    skipped: dict[int, str] = field(default_factory=dict)
    """Those among them that could not be read, by place, and why."""
    seconds: float = 0.0
    """How long it took."""

    @classmethod
    def new(cls, probed: Probe, keep: int, relevance: bool = False) -> RunState:
        """Before the first image; `keep` candidates per channel are kept, and as many by relevance."""
        state = cls({})
        for layer, count in probed.channels.items():
            rankings = (Ranking(Candidates.none(keep, count, probed.dtype)) for _ in range(2))
            state.tallies[layer] = Tally(next(rankings), Sums.none(count), next(rankings) if relevance else None)
        return state

    def save(self, folder: ResultFolder) -> None:
        """Write it as one file, so that it is of one moment."""
        tensors = {key: tensor for layer, tally in self.tallies.items() for key, tensor in tally.tensors(layer).items()}
        texts = {"format": _FORMAT, "layers": list(self.tallies)}
        texts |= {"done": self.done, "skipped": self.skipped, "seconds": self.seconds}
        folder.save(STATE, tensors, state=json.dumps(texts))
        folder.update(images=self.done, skipped=len(self.skipped), seconds=round(self.seconds, 1))

    @classmethod
    def load(cls, folder: ResultFolder, remedy: str = ANEW) -> RunState:
        """What a run left. Raises OutputError where it is broken, with the remedy, or of another version."""
        tensors, texts = folder.load_with_metadata(STATE, remedy)
        try:
            known = json.loads(texts["state"])
            if known.get("format", 1) != _FORMAT:
                formats = f"format {known.get('format', 1)}, this one's is {_FORMAT}"
                raise OutputError(
                    f"{folder.file(STATE)} is of another version of torchviz_cnn ({formats}): go on with that version, "
                    "or begin anew in another folder"
                )
            return cls(
                {layer: Tally.of(tensors, layer) for layer in known["layers"]},
                int(known["done"]),
                {int(index): str(reason) for index, reason in known["skipped"].items()},
                float(known["seconds"]),
            )
        except OutputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise OutputError(f"{folder.file(STATE)} is broken: {error}; {remedy}") from error


def run_pass(
    model: nn.Module,
    source: ImageSource,
    state: RunState,
    ranks: Ranks,
    save: Callable[[], None] | None = None,
    relevance: Relevance | None = None,
    *,
    batch_size: int,
    workers: int = 0,
    save_every: int = 50,
    progress: bool = False,
    piece: Piece | None = None,
) -> None:
    """Go on from a state to the end of the dataset, or of a piece; the first rank calls `save` every so many batches.

    Batches are cut from where the state is, and saved after a whole number of them, so that every image is
    always in the same batch, whichever rank computes it.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    piece = piece or Piece.of(0, None, len(source))
    batches = Batches(piece.start + state.done, piece.end, batch_size, save_every)
    reader = read_batches(source, batches.shares(ranks), batches, workers, device)
    bar = progress_bar(progress and ranks.first, total=len(piece), initial=state.done, unit=" images", smoothing=0.1)
    with bar, torch.no_grad(), HookManager(model) as hooks:
        current: list[Collector] = []
        if relevance is None:
            hooks.on_forward(list(state.tallies), lambda name, output: current[-1].take(name, output))
        for chunk in batches.chunks():
            began = time.monotonic()
            current[:] = [_collector(model, state, device)]
            with ranks.agreeing():
                for number in batches.share(chunk, ranks):
                    current[0].batch = batch = next(reader)
                    current[0].skipped |= batch.skipped
                    x = None if batch.x is None else batch.on(device, dtype)
                    if x is not None and relevance is None:
                        hooks.run(x)
                        hooks.require_reached()
                    elif x is not None and relevance is not None:
                        _take_all(current[0], relevance, x, list(state.tallies))
                    bar.update(min(len(batches[number]) * ranks.count, len(piece) - bar.n))
            _join(state, ranks.gather(current[0].part()))
            state.done = batches[chunk[-1]].stop - piece.start
            state.seconds += time.monotonic() - began
            bar.update(state.done - bar.n)
            if save is not None:
                ranks.once(save)
    require_some(state.skipped, piece)


def require_some(skipped: Mapping[int, str], piece: Piece) -> None:
    """Raise InputError where no image of a whole dataset could be read; those of a piece may all be broken."""
    if piece.whole and len(skipped) == len(piece):
        first = next(iter(skipped.values()))
        raise InputError(f"none of {counted(len(piece), 'image')} of the dataset can be read; the first: {first}")


def _take_all(collector: Collector, relevance: Relevance, x: Tensor, layers: list[str]) -> None:
    """Take what layers give for a batch, and each unit's share in the score: one forward and one backward pass."""
    for layer, output, shares in relevance.shares(collector.model, x, collector.batch.images, layers):
        collector.take(layer, output)
        collector.take_relevance(layer, shares)


def _collector(model: nn.Module, state: RunState, device: torch.device) -> Collector:
    tallies = state.tallies.items()
    activations = {layer: Best.since(tally.activation.candidates, device) for layer, tally in tallies}
    ranked = {layer: tally.relevance.candidates for layer, tally in tallies if tally.relevance is not None}
    return Collector(model, activations, {layer: Best.since(best, device) for layer, best in ranked.items()})


def _join(state: RunState, parts: list[Part]) -> None:
    """Add what all ranks kept; the order of ranks does not matter."""
    for layer, tally in state.tallies.items():
        tally.activation = tally.activation.best([part.activation[layer] for part in parts])
        if tally.relevance is not None:
            tally.relevance = tally.relevance.best([part.relevance[layer] for part in parts])
        tally.sums = tally.sums.plus(part.sums[layer] for part in parts if layer in part.sums)
    skipped = [item for part in parts for item in part.skipped.items()]
    state.skipped = dict(sorted([*state.skipped.items(), *skipped]))
