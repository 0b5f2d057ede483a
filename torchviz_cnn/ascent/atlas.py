"""`filter_atlas`: the patterns of many layers in a folder, shared out among processes, gone on with after a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.loop import Ascent, Precision
from torchviz_cnn.ascent.maximize import chosen_channels, steps_bar, warn_dead
from torchviz_cnn.ascent.parameters import InputScale, Size
from torchviz_cnn.ascent.recipes import Preset, Quality, Recipe, as_settings, chosen_recipe, from_settings
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError, OutputError, counted
from torchviz_cnn.core.names import LayerName, one_call, one_or_several
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import convolutions
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.runs.folder import ANEW, ResultFolder, model_checksum
from torchviz_cnn.runs.ranks import Ranks

Rectify = Literal["first", "always", "never"]
KIND = "atlas"
_IN_NOTEBOOKS = 8
"""How many layers a notebook shows."""
_DIMENSIONS = {"values": 4, "scores": 2, "dead": 1, "channels": 1, "rectify": 1}
"""What a file of patterns holds, and how many dimensions each tensor has."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """A folder of filter patterns, as `filter_atlas` and `filters` write it: a file for channels made together."""

    folder: ResultFolder
    layers: tuple[str, ...]
    """Their names, in the order in which they were asked for."""

    @classmethod
    def read(cls, path: str | Path) -> Atlas:
        """The atlas in a folder, finished or not. Raises OutputError where there is none, or it is broken."""
        folder = ResultFolder.read(path, KIND)
        files = _files(folder)
        return cls(folder, tuple(dict.fromkeys([*(name for name in _asked(folder) if name in files), *files])))

    def patterns(self, layer: str) -> Patterns:
        """The patterns of a layer, by channel, as far as they are made; values are rounded to 16 bits.

        Raises LayerError for a layer that the atlas does not have.
        """
        if layer not in self.layers:
            more = "" if layer not in _asked(self.folder) else ", which was asked for: the same call makes its patterns"
            has = ", ".join(self.layers) or "none"
            raise LayerError(f"the atlas {self.folder.path} has no layer {layer!r}{more}; it has {has}")
        tensors = _layer_tensors(self.folder, list(_files(self.folder)[layer]))
        identity, channels, dead = self.folder.manifest["identity"], tensors["channels"], tensors["dead"].bool()
        try:
            recipe = from_settings({**identity["settings"], "rectify": bool(tensors["rectify"].any())})
            scale = InputScale(*(tuple(map(float, identity["scale"][part])) for part in ("mean", "std")))
            seed = int(identity["seed"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise OutputError(f"the manifest of {self.folder.path} is not that of an atlas: {error}") from error
        values, scores, text = tensors["values"].float(), tensors["scores"], f"channels of {layer}"
        return Patterns(values, scores, text, recipe, scale, layer, channels, tuple(channels[dead].tolist()), seed)

    def _repr_png_(self) -> bytes | None:
        return pictures.png(self._in_notebooks)

    def _in_notebooks(self) -> Image.Image | None:
        """The first patterns of layers spread over the network."""
        if not self.layers:
            return None
        count = min(len(self.layers), _IN_NOTEBOOKS)
        shown = [self.layers[round(place)] for place in np.linspace(0, len(self.layers) - 1, count)]
        tiles = []
        for layer in shown:
            patterns = self.patterns(layer)
            few = replace(patterns, values=patterns.values[:9], scores=patterns.scores[:9])
            title = f"{layer}: {len(few.values)} of {len(patterns.values)} filters"
            tiles.append((title, pictures.smaller(few.grid(3))))
        words = [str(self.folder.path), pictures.left_out(count, len(self.layers), "layers")]
        return pictures.titled_grid(tiles, "; ".join(filter(None, words)))

    def __repr__(self) -> str:
        return f"Atlas({str(self.folder.path)!r}, {counted(len(self.layers), 'layer')})"


def filter_atlas(
    model: Model,
    folder: str | Path,
    layers: LayerName | Sequence[LayerName] | None = None,
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
    on_layer: Callable[[Patterns], object] | None = None,
) -> Atlas:
    """Make the filter patterns of many layers, in a folder that a killed run leaves whole.

    What the folder has already is kept: running again goes on where it stopped, also for more layers or channels.

    Args:
        folder: a new one, an empty one, or one that was begun with the same model and settings.
        layers: by default the first convolution at each resolution, as in the textbook.
        k: how many channels of each layer, the first ones; all of them with None.
        channels: which channels of each layer, in place of `k`.
        model, size, steps, preset, quality, seed, precision, progress: as for `filter_patterns`.
        rectify: whether negative activations count as 0: `"first"` in layers that are linear in the image (see
            `objectives.channel`), `"always"` or `"never"`.
        name: the model's, for the manifest; by default its class.
        ranks: the processes that share the work, from `ranks.joined()`. Other numbers of them compute other batches:
            the patterns agree as those of `filter_patterns` do.
        on_layer: called with the patterns of each layer as soon as they are all made, by the first process.

    Returns:
        The `Atlas`, as it is in the folder now.

    Raises:
        OutputError: for a folder of another model or other settings.
        LayerError, InputError, ModelError: as `filter_patterns`, before anything is written; it warns as that does.
    """
    ranks, recipe = ranks or Ranks(), chosen_recipe(preset, quality, steps)
    checks.one_of("rectify", rectify, get_args(Rectify))
    if channels is not None and k not in (None, 64):
        raise InputError(f"k counts the first channels, channels selects them: give one of the two, not k={k} as well")
    first = None if k is None or channels is not None else checks.whole_number("k", k)
    place = checks.path("folder", folder)
    chosen = None if channels is None else checks.indices("channel", channels)
    asked = None if layers is None else one_or_several(layers)
    if asked == []:
        raise InputError("an atlas is of at least one layer")
    with untouched(model) as module:
        ascent = Ascent(module, model, recipe, size, None, seed, precision)
        asked = asked or convolutions(module, torch.zeros(1, *ascent.shape, device="cpu"), first=True)
        calls = dict.fromkeys(one_call(module, layer) for layer in asked)
        plan = [b for call in calls for b in _planned(ascent, call, chosen, first, rectify, ranks.count)]
        opened = _begun(place, name or type(module).__name__, ascent, plan, rectify, ranks)
        # The batches that are missing are dealt out to the ranks one by one, across all layers.
        missing = ranks.gather(ranks.once(lambda: _missing(opened, plan)))[0] or []
        with ranks.agreeing():
            done = _finished(opened, plan, on_layer) if on_layer is not None and ranks.first else None
            _fill(ascent, opened, missing[ranks.rank :: ranks.count], progress and ranks.first, done)
            if done is not None and ranks.count == 1:
                done()
        ranks.once(lambda: _require_whole(opened, plan))
    if ranks.first:
        for layer, files in _files(opened).items():
            made = {channel for batch in plan if batch.layer == layer for channel in batch.channels}
            warn_dead(layer, sorted({channel for part in files.values() for channel in made if part.get(channel)}))
    return Atlas.read(folder)


class _Batch(NamedTuple):
    """Channels of a layer that are made at once."""

    layer: str
    rectify: bool
    channels: list[int]
    alone: bool
    """Whether it was planned as the layer's only batch."""


def _planned(
    ascent: Ascent, layer: str, channels: int | list[int] | None, k: int | None, rectify: Rectify, ranks: int
) -> list[_Batch]:
    footprint = ascent.measure(objectives.channel(layer, 0))
    chosen = list(dict.fromkeys(chosen_channels(channels, layer, footprint.shapes[layer])[:k]))
    rectified = rectify == "always" or (rectify == "first" and ascent.is_linear(layer))
    batches = ascent.batches(len(chosen), footprint, layer=layer, least=ranks)
    return [_Batch(layer, rectified, [chosen[i] for i in batch], len(batches) == 1) for batch in batches]


def _begun(folder: Path, name: str, ascent: Ascent, plan: list[_Batch], rectify: Rectify, ranks: Ranks) -> ResultFolder:
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
        with ResultFolder.run(folder, KIND, identity) as opened:  # for that moment alone: several runs may fill it
            opened.update(layers=list(dict.fromkeys([*_asked(opened), *(batch.layer for batch in plan)])))

    ranks.once(prepare)
    return ResultFolder.read(folder, KIND)


def _require_whole(folder: ResultFolder, plan: list[_Batch]) -> None:
    """Raise OutputError where the folder was deleted or changed meanwhile."""
    lost = [f"{len(batch.channels)} of layer {batch.layer!r}" for batch in _missing(folder, plan)]
    if lost:
        raise OutputError(f"{folder.path} lost patterns while others were made: {lost[0]}; the same call makes them")


def _missing(folder: ResultFolder, plan: list[_Batch]) -> list[_Batch]:
    """What of the plan is still to be made."""
    made = {(layer, c) for layer, files in _files(folder).items() for channels in files.values() for c in channels}
    left = [b._replace(channels=[c for c in b.channels if (b.layer, c) not in made]) for b in plan]
    return [batch for batch in left if batch.channels]


def _finished(folder: ResultFolder, plan: list[_Batch], on_layer: Callable[[Patterns], object]) -> Callable[[], None]:
    """What gives the layers that are whole by now, each once."""
    told: set[str] = set()

    def tell() -> None:
        missing = {batch.layer for batch in _missing(folder, plan)}
        for layer in dict.fromkeys(batch.layer for batch in plan):
            if layer not in missing | told:
                told.add(layer)
                on_layer(Atlas(folder, (layer,)).patterns(layer))

    return tell


def _fill(
    ascent: Ascent,
    folder: ResultFolder,
    share: list[_Batch],
    progress: bool,
    done: Callable[[], None] | None = None,
) -> None:
    """Make these batches and write each to a file of its own: a process that is killed loses the one it is at.

    No file is ever written over with other channels, so that several runs may fill one folder. `done` is called after
    each.
    """
    total = sum(len(batch.channels) for batch in share)
    with steps_bar(total, "filters", "filters", ascent.recipe.steps, progress and total > 0) as bar:
        for layer, rectify, channels, alone in share:
            values, scores, dead = ascent.raise_channels(layer, channels, channels, bar.update, rectify=rectify)
            fits = float(values.abs().max()) < torch.finfo(torch.float16).max
            tensors = {
                "values": values.half() if fits else values,
                "scores": scores,
                "dead": dead,
                "channels": torch.tensor(channels, device="cpu"),
                "rectify": torch.tensor([rectify], device="cpu"),
            }
            named_by_layer = alone and not folder.has(layer)
            folder.save(layer if named_by_layer else f"{layer}@{channels}", tensors, layer=layer)
            if done is not None:
                done()


def _asked(folder: ResultFolder) -> list[str]:
    """The layers that were asked for so far, in this order."""
    layers = folder.manifest["progress"].get("layers")
    return [name for name in layers if isinstance(name, str)] if isinstance(layers, list) else []


def _layer_tensors(folder: ResultFolder, paths: Sequence[Path]) -> dict[str, Tensor]:
    """The parts of one layer as one, by channel; of a channel that is there twice, the first."""
    parts = [folder.load(path.stem) for path in paths]
    try:
        together = {name: torch.cat([part[name] for part in parts]) for name in _DIMENSIONS}
        count = len(together["channels"])
        for name, tensor in together.items():
            if tensor.ndim != _DIMENSIONS[name] or (name != "rectify" and len(tensor) != count):
                raise IndexError(f"{name} has the shape {tuple(tensor.shape)} for {counted(count, 'channel')}")
        order = torch.from_numpy(np.unique(together["channels"].numpy(), return_index=True)[1])
        return {name: tensor[:1] if name == "rectify" else tensor[order] for name, tensor in together.items()}
    except (KeyError, RuntimeError, IndexError, TypeError) as error:
        files = ", ".join(map(str, paths))
        raise OutputError(f"{files}: {error}; they do not fit together, or are broken: {ANEW}") from error


def _files(folder: ResultFolder) -> dict[str, dict[Path, dict[int, bool]]]:
    """The files of each layer's patterns: the channels that each has, and whether they are dead."""
    files: dict[str, dict[Path, dict[int, bool]]] = {}
    for path in sorted(folder.path.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                layer = (file.metadata() or {}).get("layer")
                if layer is not None:
                    channels, dead = (file.get_tensor(name).tolist() for name in ("channels", "dead"))
                    files.setdefault(layer, {})[path] = dict(zip(channels, dead, strict=True))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise OutputError(f"{path} is broken: {error}; {ANEW}") from error
    return files
