"""The filter patterns of many layers in a folder: made by several processes if there are, and gone on with where they stopped."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.ascent_run import AscentRun, Found, Measured, Precision, Size
from torchviz_cnn.ascent.maximize import chosen_channels, one_call, steps_bar
from torchviz_cnn.ascent.parameters import InputScale
from torchviz_cnn.ascent.recipes import Preset, Quality, Recipe, as_settings, choose, from_settings
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.core.errors import InputError, LayerError, OutputError
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import convolutions
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.runs.folder import ResultFolder, model_checksum
from torchviz_cnn.runs.ranks import Ranks

Rectify = Literal["first", "always", "never"]
KIND = "atlas"
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
        identity, channels, dead = self.folder.manifest["identity"], joined["channels"], joined["dead"]
        try:
            recipe = from_settings({**identity["settings"], "rectify": bool(joined["rectify"].any())})
            scale = InputScale(*(tuple(identity["scale"][part]) for part in ("mean", "std")))
            seed = int(identity["seed"])
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"the manifest of {self.folder.path} is not that of an atlas: {error}") from error
        return Patterns(
            values=joined["values"].float(),
            scores=joined["scores"],
            objective=f"channels of {layer}",
            recipe=recipe,
            scale=scale,
            layer=layer,
            channels=channels,
            dead=tuple(channels[dead].tolist()),
            seed=seed,
        )

    def __repr__(self) -> str:
        return f"Atlas({str(self.folder.path)!r}, {len(self.layers)} layers)"


def filter_atlas(
    model: nn.Module, folder: str | Path, layers: Sequence[str] | None = None, channels: int | None = 64, *,
    size: Size | None = None, preset: Preset | None = None, quality: Quality | None = None, rectify: Rectify = "first",
    seed: int = 0, precision: Precision = "float32", preprocess: Preprocess | None = None, name: str | None = None,
    ranks: Ranks | None = None, progress: bool = False, **changes: Any,
) -> Atlas:  # fmt: skip
    """The patterns of the first so many channels of layers (None: of all), in a folder that a killed run leaves whole.

    `layers`: by default the first convolution at each resolution, as in the textbook. What the folder has already is
    kept: running again goes on where it stopped, also for more layers or channels. `rectify`: `"first"` for layers that are
    linear in the image (see `objectives.channel`), `"always"` or `"never"`. `ranks`: the processes that share the work, from
    `ranks.joined()`; the files are the same, bit for bit on a CPU, for any number of them and of cores. Other arguments as
    for `filter_patterns`: `changes` may be `steps`, `step`, `normalize`, `border`, `parameters`, `optimizer`,
    `transformations`.

    Raises OutputError for a folder of another model or other settings; what `filter_patterns` raises.
    """
    ranks = ranks or Ranks()
    if not isinstance(seed, int):
        raise InputError(f"seed is a whole number, not {seed!r}")
    recipe = choose(preset, quality, **changes)
    if rectify not in ("first", "always", "never"):
        raise InputError(f"rectify is 'first', 'always' or 'never', not {rectify!r}")
    if channels is not None and not (isinstance(channels, int) and channels >= 1):
        raise InputError(f"channels is how many of each layer, at least 1, not {channels!r}")
    if isinstance(layers, str):
        layers = [layers]
    if layers is not None and not layers:
        raise InputError("an atlas is of at least one layer")
    with untouched(model) as lent:
        run = AscentRun(lent, recipe, size=size, seed=seed, precision=precision, preprocess=preprocess)
        plan = _plan(lent, run, layers, channels, rectify)
        identity = {
            "model": name or type(unwrap(model)).__name__,
            "checksum": model_checksum(model),
            "settings": as_settings(recipe),
            "rectify": rectify,
            "size": list(run.shape[1:]),
            "scale": {"mean": list(run.scale.mean), "std": list(run.scale.std)},
            "seed": seed,
            "precision": "bfloat16" if run.low_precision else "float32",
        }

        def prepare() -> list[list[list[int]]]:
            opened = ResultFolder.open(folder, KIND, identity)
            _tidy(opened)
            known = opened.manifest["progress"].get("layers", [])
            opened.update(layers=list(dict.fromkeys([*known, *(layer.name for layer in plan)])))
            return _missing(lent, run, opened, plan, ranks.count * torch.get_num_threads())

        missing = ranks.gather(ranks.once(prepare))[0] or []
        opened = ResultFolder.read(folder, KIND)
        problem: Exception | None = None
        try:
            _fill(lent, run, opened, plan, missing, ranks, progress)
        except Exception as error:
            problem = error
        finally:
            if ranks.count == 1:
                _tidy(opened)
        ranks.agree(problem)
        ranks.once(lambda: _tidy(opened))
    return Atlas.read(folder)


@dataclass(frozen=True, eq=False)
class _Layer:
    name: str
    channels: list[int]
    measured: Measured
    recipe: Recipe


def _plan(
    lent: nn.Module, run: AscentRun, layers: Sequence[str] | None, channels: int | None, rectify: Rectify
) -> list[_Layer]:
    if layers is None:
        layers = convolutions(lent, torch.zeros(1, *run.shape), first=True)
    plan = []
    for name in dict.fromkeys(one_call(lent, layer) for layer in layers):
        measured = run.measure(lent, objectives.channel(name, 0))
        every = chosen_channels(None, name, measured.shapes)
        rectified = rectify == "always" or (rectify == "first" and run.is_linear(lent, name))
        plan.append(_Layer(name, every[:channels], measured, replace(run.recipe, rectify=rectified)))
    return plan


def _missing(
    lent: nn.Module, run: AscentRun, folder: ResultFolder, plan: list[_Layer], workers: int
) -> list[list[list[int]]]:  # fmt: skip
    """For each layer, the batches of channels that are still to be made, by so many workers."""
    missing = []
    for layer in plan:
        there = {c for name, path in _files(folder) if name == layer.name for c in _channels_of(path)}
        batches: list[list[int]] = []
        if not there.issuperset(layer.channels):
            most = max(1, -(-len(layer.channels) // workers))
            size = run.with_recipe(layer.recipe).batch(lent, layer.name, layer.channels, layer.measured, most)
            every = [layer.channels[i : i + size] for i in range(0, len(layer.channels), size)]
            batches = [left for left in ([c for c in batch if c not in there] for batch in every) if left]
        missing.append(batches)
    return missing


def _fill(
    lent: nn.Module, run: AscentRun, folder: ResultFolder, plan: list[_Layer], missing: list[list[list[int]]],
    ranks: Ranks, progress: bool,
) -> None:  # fmt: skip
    """Make this rank's share of what is missing."""
    # Dealt out one by one across all layers: dealt anew for each, those with few batches would all be the first rank's.
    before = list(itertools.accumulate((len(batches) for batches in missing), initial=0))
    shares = [b[(ranks.rank - offset) % ranks.count :: ranks.count] for b, offset in zip(missing, before, strict=False)]
    total = sum(len(batch) for batches in shares for batch in batches)
    with steps_bar(total, "filters", "filters", run.recipe.steps, progress and ranks.first and total > 0) as tick:
        for layer, batches in zip(plan, shares, strict=True):
            part = _Part(folder, layer, ranks.rank)
            try:
                if batches:
                    run.with_recipe(layer.recipe).climb_channels(
                        lent, layer.name, [c for batch in batches for c in batch], layer.measured, tick,
                        sizes=[len(batch) for batch in batches], ended=part.add,
                    )  # fmt: skip
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

    def add(self, channels: Sequence[int], found: Found) -> None:
        values = found.values.cpu()
        fits = float(values.abs().max()) < torch.finfo(torch.float16).max
        self.parts.append(
            {
                "values": values.half() if fits else values,
                "scores": found.scores.cpu(),
                "dead": found.dead.cpu(),
                "channels": torch.tensor(channels),
                "rectify": torch.tensor([self.layer.recipe.rectify]),
            }
        )
        if time.monotonic() - self.written > max(_SECONDS, 10 * self.took):
            self.write()

    def write(self) -> None:
        if not self.parts:
            return
        start = time.monotonic()
        self.parts = [_joined(self.parts)]
        self.folder.save(f"{self.layer.name}@{self.rank}", self.parts[0], layer=self.layer.name, part=str(self.rank))
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
                path.unlink()


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parts of one layer as one, by channel; of a channel that is there twice, the first."""
    try:
        together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        channels = together["channels"].tolist()
        place = {channel: i for i, channel in reversed(list(enumerate(channels)))}
        order = torch.tensor([place[channel] for channel in sorted(place)], dtype=torch.long)
        return {name: t if name == "rectify" else t[order] for name, t in together.items()} | {
            "rectify": together["rectify"].any(0, keepdim=True)
        }
    except (KeyError, RuntimeError, IndexError) as error:
        raise OutputError(f"the parts of a layer do not fit together: {error}") from error


def _files(folder: ResultFolder) -> Iterable[tuple[str, Path]]:
    """Each file of patterns with the layer it is of, whole layers before parts."""
    found = []
    for path in sorted(folder.path.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        except Exception as error:
            raise OutputError(f"{path} is broken: {error}") from error
        if "layer" in metadata:
            found.append(("part" in metadata, metadata["layer"], path))
    return [(layer, path) for _, layer, path in sorted(found, key=lambda item: item[0])]


def _channels_of(path: Path) -> list[int]:
    with safe_open(path, "pt") as file:
        channels: list[int] = file.get_tensor("channels").tolist()
    return channels
