"""`filter_atlas`: the patterns of many layers in a folder, shared out among processes, gone on with after a stop."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.loop import Ascended, Ascent, Precision
from torchviz_cnn.ascent.maximize import chosen_channels, one_call, steps_bar, warn_dead
from torchviz_cnn.ascent.parameters import InputScale, Size
from torchviz_cnn.ascent.recipes import Preset, Quality, Recipe, as_settings, chosen_recipe, from_settings
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError, OutputError
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import convolutions
from torchviz_cnn.runs.folder import ResultFolder, model_checksum
from torchviz_cnn.runs.ranks import Ranks

Rectify = Literal["first", "always", "never"]
Batches = list[list[int]]
KIND = "atlas"
_TENSORS = {"values": 4, "scores": 2, "dead": 1, "channels": 1, "rectify": 1}
"""What a file of patterns holds, and how many dimensions each has."""
_SECONDS = 5.0
"""How often what is finished is written. A process that is killed loses that, and the batches it was at."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """A folder of filter patterns, one file for each layer: what `filter_atlas` and the command `filters` write."""

    folder: ResultFolder
    layers: tuple[str, ...]
    """In the order in which they were asked for."""

    @classmethod
    def read(cls, path: str | Path) -> Atlas:
        """The atlas in a folder, finished or not. Raises OutputError where there is none, or it is broken."""
        folder = ResultFolder.read(path, KIND)
        files = {layer: None for layer, _ in _files(folder)}
        known = folder.manifest["progress"].get("layers", [])
        order = [name for name in known if name in files] if isinstance(known, list) else []
        return cls(folder, tuple(dict.fromkeys([*order, *files])))

    def patterns(self, layer: str) -> Patterns:
        """The patterns of a layer, by channel, as far as they are made; values are rounded to 16 bits.

        Raises LayerError for a layer that the atlas does not have.
        """
        if layer not in self.layers:
            raise LayerError(f"the atlas {self.folder.path} has no layer {layer!r}; it has {', '.join(self.layers)}")
        parts = [self.folder.load(path.stem) for name, path in _files(self.folder) if name == layer]
        joined = _joined(parts)
        identity, channels, dead = self.folder.manifest["identity"], joined["channels"], joined["dead"].bool()
        try:
            recipe = from_settings({**identity["settings"], "rectify": bool(joined["rectify"].any())})
            scale = InputScale(*(tuple(identity["scale"][part]) for part in ("mean", "std")))
            seed = int(identity["seed"])
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"the manifest of {self.folder.path} is not that of an atlas: {error}") from error
        values, scores, text = joined["values"].float(), joined["scores"], f"channels of {layer}"
        return Patterns(values, scores, text, recipe, scale, layer, channels, tuple(channels[dead].tolist()), seed)

    def __repr__(self) -> str:
        return f"Atlas({str(self.folder.path)!r}, {len(self.layers)} layers)"


def filter_atlas(
    model: Model,
    folder: str | Path,
    layers: str | Sequence[str] | None = None,
    k: int | None = 64,
    *,
    channels: int | Iterable[int] | None = None,
    size: Size | None = None,
    steps: int | None = None,
    preset: Preset | Recipe | None = None,
    quality: Quality | None = None,
    rectify: Rectify = "first",
    seed: int = 0,
    precision: Precision = "float32",
    name: str | None = None,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> Atlas:
    """Make the filter patterns of many layers, in a folder that a killed run leaves whole.

    What the folder has already is kept: running again goes on where it stopped, also for more layers or channels.

    Args:
        model: a module or a Network, as for `filter_patterns`.
        folder: a new one, an empty one, or one that was begun with the same model and settings.
        layers: by default the first convolution at each resolution, as in the textbook.
        k: how many channels of each layer, the first ones; all of them with None.
        channels: which channels of each layer, in place of `k`.
        size, steps, preset, quality, seed, precision, progress: as for `filter_patterns`.
        rectify: whether negative activations count as 0: `"first"` in layers that are linear in the image (see
            `objectives.channel`), `"always"` or `"never"`.
        name: the model's, for the manifest; by default its class.
        ranks: the processes that share the work, from `ranks.joined()`. Other numbers of them compute other batches:
            the patterns agree as those of `filter_patterns` do.

    Returns:
        The `Atlas`, as it is in the folder now.

    Raises:
        OutputError: for a folder of another model or other settings.
        LayerError, InputError, ModelError: as `filter_patterns`, before anything is written.

    Warns:
        DeadFilterWarning: of channels asked for to which no gradient comes back from any start.
    """
    ranks, recipe = ranks or Ranks(), chosen_recipe(preset, quality, steps)
    checks.one_of("rectify", rectify, get_args(Rectify))
    if channels is not None and k not in (None, 64):
        raise InputError(f"k counts the first channels, channels selects them: give one of the two, not k={k} as well")
    wanted = None if channels is None else objectives.indices(channels, "channel").flatten().tolist()
    first = None if k is None or wanted is not None else checks.whole_number("k", k)
    layers = [layers] if isinstance(layers, str) else layers
    if layers is not None and not layers:
        raise InputError("an atlas is of at least one layer")
    with untouched(model) as module:
        ascent = Ascent(module, model, recipe, size, None, seed, precision)
        asked = layers or convolutions(module, torch.zeros(1, *ascent.shape, device="cpu"), first=True)
        plan = [_layer(ascent, layer, wanted, first, rectify, ranks.count) for layer in dict.fromkeys(asked)]
        opened = _begun(Path(folder), name or type(module).__name__, ascent, plan, rectify, ranks)
        _make(ascent, opened, plan, ranks, progress)
    if ranks.first:
        for layer in plan:
            if _missing(opened, layer):
                raise OutputError(f"{folder} lost patterns meanwhile, to another run or by hand: run this again")
            dead = _tensor_of(opened.file(layer.name), "channels")[_tensor_of(opened.file(layer.name), "dead")]
            warn_dead(layer.name, sorted(layer.channels.intersection(dead.tolist())))
    return Atlas.read(folder)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of the plan, with its channels in batches."""

    name: str
    batches: Batches
    rectify: bool

    @property
    def channels(self) -> set[int]:
        return {channel for batch in self.batches for channel in batch}


def _layer(
    ascent: Ascent, layer: str, channels: list[int] | None, k: int | None, rectify: Rectify, ranks: int
) -> _Layer:
    name = one_call(ascent.module, layer)
    footprint = ascent.measure(objectives.channel(name, 0))
    chosen = list(dict.fromkeys(chosen_channels(channels, name, footprint.shapes[name])[:k]))
    batches = ascent.batches(len(chosen), footprint, layer=name, least=ranks)
    rectified = rectify == "always" or (rectify == "first" and ascent.is_linear(name))
    return _Layer(name, [[chosen[i] for i in batch] for batch in batches], rectified)


def _begun(folder: Path, name: str, ascent: Ascent, plan: list[_Layer], rectify: Rectify, ranks: Ranks) -> ResultFolder:
    """The folder, made by the first rank, or opened again with what it has of the same model and settings."""
    identity = {
        "model": name,
        "checksum": model_checksum(ascent.module),
        "settings": as_settings(ascent.recipe),
        "rectify": rectify,
        "size": list(ascent.shape[1:]),
        "scale": {"mean": list(ascent.scale.mean), "std": list(ascent.scale.std)},
        "seed": ascent.seed,
        "precision": "bfloat16" if ascent.low_precision else "float32",
    }

    def prepare() -> None:
        opened = ResultFolder.open(folder, KIND, identity)
        _tidy(opened)
        known = opened.manifest["progress"].get("layers", [])
        opened.update(layers=list(dict.fromkeys([*known, *(layer.name for layer in plan)])))

    ranks.once(prepare)
    return ResultFolder.read(folder, KIND)


def _make(ascent: Ascent, folder: ResultFolder, plan: list[_Layer], ranks: Ranks, progress: bool) -> None:
    """Make what is missing, together with the other ranks."""
    missing = ranks.gather(ranks.once(lambda: [_missing(folder, layer) for layer in plan]))[0] or []
    # Dealt out one by one across all layers: dealt anew for each, those with few batches would all be the first rank's.
    before = list(itertools.accumulate((len(batches) for batches in missing), initial=0))
    shares = [b[(ranks.rank - offset) % ranks.count :: ranks.count] for b, offset in zip(missing, before, strict=False)]
    problem: Exception | None = None
    try:
        _fill(ascent, folder, plan, shares, ranks, progress)
    except Exception as error:  # told to the other ranks, then raised
        problem = error
    finally:
        if ranks.count == 1:
            _tidy(folder)
    ranks.agree(problem)
    ranks.once(lambda: _tidy(folder))


def _missing(folder: ResultFolder, layer: _Layer) -> Batches:
    """The batches of channels of a layer that are still to be made."""
    there = {c for name, path in _files(folder) if name == layer.name for c in _tensor_of(path, "channels").tolist()}
    batches = [[channel for channel in batch if channel not in there] for batch in layer.batches]
    return [batch for batch in batches if batch]


def _fill(
    ascent: Ascent, folder: ResultFolder, plan: list[_Layer], shares: list[Batches], ranks: Ranks, progress: bool
) -> None:
    """Make this rank's share of what is missing."""
    total = sum(len(batch) for batches in shares for batch in batches)
    with steps_bar(total, "filters", "filters", ascent.recipe.steps, progress and ranks.first and total > 0) as bar:
        for layer, batches in zip(plan, shares, strict=True):
            part = _Part(folder, layer, ranks.rank)
            try:
                for batch in batches:
                    part.add(batch, ascent.raise_channels(layer.name, batch, batch, bar.update, rectify=layer.rectify))
            finally:
                part.write()
            if ranks.count == 1:
                _tidy(folder)


class _Part:
    """What one rank has made of one layer so far: written every few seconds, and at the end."""

    def __init__(self, folder: ResultFolder, layer: _Layer, rank: int) -> None:
        self.folder, self.layer, self.rank = folder, layer, rank
        self.parts: list[dict[str, Tensor]] = []
        self.written, self.took = time.monotonic(), 0.0

    def add(self, channels: Sequence[int], result: Ascended) -> None:
        values = result.values.cpu()
        fits = float(values.abs().max()) < torch.finfo(torch.float16).max
        self.parts.append(
            {
                "values": values.half() if fits else values,
                "scores": result.scores.cpu(),
                "dead": result.dead.cpu(),
                "channels": torch.tensor(channels, device="cpu"),
                "rectify": torch.tensor([self.layer.rectify], device="cpu"),
            }
        )
        if time.monotonic() - self.written > max(_SECONDS, 10 * self.took):
            self.write()

    def write(self) -> None:
        if not self.parts:
            return
        start = time.monotonic()
        self.parts = [_joined(self.parts)]
        # Of two runs that share a folder each has a file of its own.
        self.folder.save(
            f"{self.layer.name}@{self.rank}-{os.getpid()}", self.parts[0], layer=self.layer.name, part=str(self.rank)
        )
        self.written = time.monotonic()
        self.took = self.written - start


def _tidy(folder: ResultFolder) -> None:
    """Put the parts of each layer into the layer's one file, and take them away."""
    files: dict[str, list[Path]] = {}
    for layer, path in _files(folder):
        files.setdefault(layer, []).append(path)
    for layer, paths in files.items():
        whole = folder.file(layer)
        if paths == [whole]:
            continue
        folder.save(layer, _joined([folder.load(path.stem) for path in paths]), layer=layer)
        for path in paths:
            if path != whole:
                path.unlink(missing_ok=True)


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parts of one layer as one, by channel; of a channel that is there twice, the first."""
    try:
        together = {name: torch.cat([part[name] for part in parts]) for name in _TENSORS}
        channels = together["channels"].tolist()
        wrong = [name for name, dimensions in _TENSORS.items() if together[name].ndim != dimensions]
        wrong += [name for name, t in together.items() if name != "rectify" and len(t) != len(channels)]
        if wrong:
            raise IndexError(f"{wrong[0]} has the shape {tuple(together[wrong[0]].shape)} for {len(channels)} channels")
        place = {channel: i for i, channel in reversed(list(enumerate(channels)))}
        order = torch.tensor([place[channel] for channel in sorted(place)], dtype=torch.long)
        return {name: t if name == "rectify" else t[order] for name, t in together.items()} | {
            "rectify": together["rectify"].any(0, keepdim=True)
        }
    except (KeyError, RuntimeError, IndexError, TypeError) as error:
        raise OutputError(f"the parts of a layer do not fit together, or are broken: {error}") from error


def _files(folder: ResultFolder) -> Iterable[tuple[str, Path]]:
    """Each file of patterns with the layer it is of, whole layers before parts."""
    entries = []
    for path in sorted(folder.path.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{path} is broken: {error}") from error
        if "layer" in metadata:
            entries.append(("part" in metadata, metadata["layer"], path))
    return [(layer, path) for _, layer, path in sorted(entries, key=lambda item: item[0])]


def _tensor_of(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} is broken: {error}") from error
