"""What the strongest activations over a dataset are, as arrays and as pages of patches beside their projections."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from torchviz_cnn.core.errors import InputError, LayerError, OutputError, did_you_mean
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.layers.receptive_field import ReceptiveField
from torchviz_cnn.media.dataset import ImageSource, Seen
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.media.photo_folder import PhotoFolder
from torchviz_cnn.runs import files
from torchviz_cnn.runs.folder import ResultFolder, model_checksum
from torchviz_cnn.scores.projection import Projection
from torchviz_cnn.topk.patches import (
    cut,
    field_on_input,
    on_photo,
    project_units,
    projection_image,
    tile,
)
from torchviz_cnn.topk.statistics import ChannelStatistics, depth_plot

KIND = "top"
RESULTS = "results"


@dataclass(frozen=True, eq=False)
class TopActivations:
    """The k strongest activations of every channel of some layers over a dataset, at most one per image.

    Photos are read again from the dataset, and projections computed by the model, when they are asked for; both may be
    given to `load`.
    """

    layers: tuple[str, ...]
    """In execution order."""
    values: Mapping[str, Tensor]
    """By layer, (C, k) float32, in falling order; NaN where the dataset has fewer images."""
    images: Mapping[str, Tensor]
    """By layer, (C, k): places in the dataset; -1 for none."""
    positions: Mapping[str, Tensor]
    """By layer, (C, k, 2): row and column in the layer's map; -1 for none."""
    statistics: Mapping[str, ChannelStatistics]
    """By layer, of every channel over the whole dataset."""
    count: int
    """How many images the dataset has."""
    skipped: Mapping[int, str]
    """The images that could not be read, by place, and why."""
    fields: Mapping[str, ReceptiveField | None] = field(repr=False)
    """What a layer's units see of the input; None: everything."""
    uncertain: Mapping[str, list[int]] = field(default_factory=dict, repr=False)
    """Channels in which more images than were kept are equal to the k-th within rounding: which of them are listed
    may differ with the batch size."""
    source: ImageSource | None = field(default=None, repr=False)
    model: nn.Module | None = field(default=None, repr=False)

    @property
    def k(self) -> int:
        """How many activations per channel."""
        return int(self.values[self.layers[0]].shape[1])

    def channels(self, layer: str) -> int:
        """How many channels a layer has. Raises LayerError for a layer that was not looked at."""
        if layer not in self.values:
            near = did_you_mean(str(layer), self.layers)
            raise LayerError(f"no layer {layer!r} was looked at{near or ';'} there are: {', '.join(self.layers)}")
        return len(self.values[layer])

    def strongest_channels(self, layer: str, count: int = 16) -> list[int]:
        """The channels with the largest values, in falling order."""
        self.channels(layer)
        first = self.values[layer][:, 0].nan_to_num(-torch.inf)
        return [int(c) for c in first.argsort(descending=True, stable=True)[:count]]

    def some_channels(self, layer: str, count: int = 16) -> list[int]:
        """Evenly chosen ones of those that are not dead; of all, where all are."""
        alive = [c for c in range(self.channels(layer)) if not bool(self.statistics[layer].dead[c])]
        alive = alive or list(range(self.channels(layer)))
        count = min(count, len(alive))
        return [alive[i * len(alive) // count] for i in range(count)]

    def patches(self, layer: str, channel: int, *, context: float = 1.0) -> list[Image.Image]:
        """The parts of the original photos that the channel's strongest units saw, strongest first.

        Each is exactly the unit's receptive field, mapped back through crop and resize, without what lies beyond the
        network's input; `context` = 2 shows twice as much to each side. At the photo's own pixels, so sizes differ.
        """
        return [
            cut(seen.photo, on_photo(self._field(layer, position, seen.input_size, context), seen, context))
            for seen, position in self._seen(layer, channel)
        ]

    def projections(
        self, layer: str, channel: int, *, projection: Projection = "deconvnet", model: nn.Module | None = None,
        other_activations: OtherActivations = "error",
    ) -> list[Image.Image]:  # fmt: skip
        """What in these patches drove the units, projected down to pixels: cut like the patches, zero is mid-grey.

        `deconvnet` (Zeiler & Fergus) or `guided` gradients. Raises InputError without a model.
        """
        values = self.project(layer, [channel], projection=projection, model=model, other_activations=other_activations)
        units = self._units(layer, channel)
        return [
            cut(projection_image(v), self._field(layer, position, _size(v), 1.0))
            for v, (_, position) in zip(values[channel], units, strict=True)
        ]

    def project(
        self, layer: str, channels: Sequence[int], *, projection: Projection = "deconvnet",
        model: nn.Module | None = None, other_activations: OtherActivations = "error",
    ) -> dict[int, list[Tensor]]:  # fmt: skip
        """The raw projections (C, H, W) of several channels' strongest units, all in batches together."""
        model = model if model is not None else self.model
        if model is None:
            raise InputError("projections are computed by the model: pass model=, to this or to TopActivations.load")
        units = [(c, image, position) for c in channels for image, position in self._units(layer, c)]
        found = project_units(
            model, self._source(), layer, [u[1] for u in units], [u[0] for u in units], [u[2] for u in units],
            projection, other_activations,
        )  # fmt: skip
        values: dict[int, list[Tensor]] = {channel: [] for channel in channels}
        for (channel, _, _), one in zip(units, found, strict=True):
            values[channel].append(one)
        return values

    def grid(
        self, layer: str, channel: int, *, projection: Projection | None = "deconvnet", context: float = 1.0,
        side: int = 80, model: nn.Module | None = None, other_activations: OtherActivations = "error",
    ) -> Image.Image:  # fmt: skip
        """One channel as in Zeiler & Fergus' figure 2: the patches in a square, beside them their projections.

        `side`: of each patch in pixels. Without a model, or with `projection=None`, the patches alone.
        """
        return self._block(layer, [channel], projection, context, side, model, other_activations)[0]

    def page(
        self, layer: str, channels: Sequence[int] | None = None, *, columns: int | None = None,
        projection: Projection | None = "deconvnet", context: float = 1.0, side: int = 56,
        model: nn.Module | None = None, other_activations: OtherActivations = "error",
    ) -> Image.Image:  # fmt: skip
        """Many channels on a page, each as `grid` shows it, with its number and strongest value; by default 16 evenly
        chosen ones that are not dead."""
        channels = self.some_channels(layer) if channels is None else channels
        if not len(channels):
            raise InputError("a page shows at least one channel")
        channels = [int(channel) for channel in channels]
        blocks = self._block(layer, channels, projection, context, side, model, other_activations)
        captioned = [
            _captioned(block, f"channel {channel}: {float(self.values[layer][channel, 0]):.4g}")
            for channel, block in zip(channels, blocks, strict=True)
        ]
        # Of 2, 3 or 4 columns those that leave the fewest places empty.
        columns = columns or min((4, 3, 2), key=lambda n: -len(blocks) % n) if len(blocks) > 1 else 1
        width, height = max(b.width for b in captioned), max(b.height for b in captioned)
        rows = math.ceil(len(captioned) / columns)
        page = Image.new("RGB", (columns * (width + 14) + 2, rows * (height + 10) + 2), "white")
        for i, block in enumerate(captioned):
            page.paste(block, (8 + (i % columns) * (width + 14), 6 + (i // columns) * (height + 10)))
        return page

    def plot(self) -> Image.Image:
        """Zeros, dead channels and class selectivity over the layers, as a figure."""
        return depth_plot(self.statistics)

    def save(self, path: str | Path) -> Path:
        """Write all to a folder that `load` reads: `results.safetensors` and a manifest. Raises OutputError."""
        whose: dict[str, Any] = {"model": None, "weights": None, "images": self.count, "dataset": None}
        if self.model is not None:
            whose |= {"model": type(self.model).__name__, "weights": model_checksum(self.model)}
        if self.source is not None:
            whose["dataset"] = self.source.listing()["checksum"]
        folder = ResultFolder.open(path, KIND, {**whose, "layers": list(self.layers), "k": self.k})
        self.write(folder)
        return folder.path

    def write(self, folder: ResultFolder) -> None:
        """Write all into a folder of results that is open."""
        tensors: dict[str, Tensor] = {}
        for layer in self.layers:
            parts = {"values": self.values, "images": self.images, "positions": self.positions}
            tensors |= {f"{layer}/{name}": part[layer] for name, part in parts.items()}
            tensors |= {f"{layer}/statistics/{name}": t for name, t in self.statistics[layer].tensors().items()}
        fields = {layer: None if f is None else dataclasses.asdict(f) for layer, f in self.fields.items()}
        about = {
            "layers": self.layers, "count": self.count, "skipped": dict(self.skipped), "fields": fields,
            "uncertain": dict(self.uncertain), **_origin(self.source),
        }  # fmt: skip
        folder.save(RESULTS, tensors, about=json.dumps(about))
        folder.update(finished=True, images=self.count, skipped=len(self.skipped))

    @classmethod
    def load(
        cls, path: str | Path, dataset: Any = None, model: nn.Module | None = None, preprocess: Any = None
    ) -> TopActivations:
        """What a finished run wrote. `dataset` is needed for patches unless it was a folder of photos that is still there,
        `model` for projections. Raises OutputError for a folder of something else, or one that is not finished or broken."""
        folder = ResultFolder.read(path, KIND)
        if not folder.has(RESULTS):
            done = folder.manifest["progress"].get("images", 0)
            raise OutputError(f"{path} is not finished: {done} images are done; the same command goes on with it")
        tensors, texts = folder.load_with_metadata(RESULTS)
        try:
            about = json.loads(texts["about"])
            layers = tuple(about["layers"])
            fields = {layer: None if f is None else _field_of(f) for layer, f in about["fields"].items()}
            found = cls(
                layers=layers,
                values={layer: tensors[f"{layer}/values"] for layer in layers},
                images={layer: tensors[f"{layer}/images"] for layer in layers},
                positions={layer: tensors[f"{layer}/positions"] for layer in layers},
                statistics={layer: _statistics_of(tensors, layer) for layer in layers},
                count=int(about["count"]),
                skipped={int(index): str(reason) for index, reason in about["skipped"].items()},
                fields=fields,
                uncertain={layer: list(channels) for layer, channels in about["uncertain"].items()},
                model=model,
            )
            how = about.get("preprocess")
            preprocess = preprocess or (None if how is None else _preprocess_of(how))
            where = about.get("folder")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{folder.file(RESULTS)} is broken: {error}") from error
        if dataset is None and where is not None and os.path.isdir(where):
            photos = PhotoFolder(where)
            dataset = photos if len(photos) == found.count else None
        if dataset is None:
            return found
        source = ImageSource(dataset, preprocess)
        if len(source) != found.count:
            raise InputError(f"the dataset has {len(source)} images; {path} was made from {found.count}")
        return dataclasses.replace(found, source=source)

    def _units(self, layer: str, channel: int) -> list[tuple[int, tuple[int, int]]]:
        """Image and position of a channel's units, strongest first."""
        count = self.channels(layer)
        if not isinstance(channel, (int, np.integer)) or not 0 <= channel < count:
            raise InputError(f"channel {channel} is out of range: layer {layer!r} has {count} channels")
        images, positions = self.images[layer][channel].tolist(), self.positions[layer][channel].tolist()
        return [(image, (row, column)) for image, (row, column) in zip(images, positions, strict=True) if image >= 0]

    def _seen(self, layer: str, channel: int) -> list[tuple[Seen, tuple[int, int]]]:
        """The photo of each unit and the unit's position."""
        source = self._source()
        return [(source.seen(image), position) for image, position in self._units(layer, channel)]

    def _field(self, layer: str, position: Sequence[int], size: tuple[int, int], context: float) -> Any:
        if not context >= 1:
            raise InputError(f"context is how much more than the field is shown, at least 1, not {context}")
        return field_on_input(self.fields.get(layer), position, size, context)

    def _source(self) -> ImageSource:
        if self.source is None:
            raise InputError("the photos are needed: pass dataset= to TopActivations.load")
        return self.source

    def _block(
        self, layer: str, channels: Sequence[int], projection: Projection | None, context: float, side: int,
        model: nn.Module | None, other_activations: OtherActivations,
    ) -> list[Image.Image]:  # fmt: skip
        drawn = projection is not None and (model is not None or self.model is not None)
        values = {}
        if drawn and projection is not None:
            values = self.project(
                layer, channels, projection=projection, model=model, other_activations=other_activations
            )
        blocks = []
        for channel in channels:
            patches, projected = [], []
            for i, (seen, position) in enumerate(self._seen(layer, channel)):
                window = self._field(layer, position, seen.input_size, context)
                patches.append(tile(seen.photo, on_photo(window, seen, context), side))
                if drawn:
                    projected.append(tile(projection_image(values[channel][i]), window, side))
            blocks.append(
                _beside([_square(t, self.k, side) for t in (patches, projected) if t or (not drawn and t is patches)])
            )
        return blocks

    def _repr_png_(self) -> bytes:
        last = self.layers[-1]
        if self.source is None:
            return files.png(self.plot())
        return files.png(self.page(last, self.strongest_channels(last, 8), projection=None))

    def __repr__(self) -> str:
        rows = [f"  {layer}: {len(self.values[layer])} channels" for layer in self.layers]
        left_out = f", {len(self.skipped)} not readable" if self.skipped else ""
        return "\n".join([f"TopActivations: the {self.k} strongest of {self.count} images{left_out}", *rows])


def _size(values: Tensor) -> tuple[int, int]:
    return values.shape[-2], values.shape[-1]


def _square(tiles: list[Image.Image], count: int, side: int) -> Image.Image:
    """Tiles in as many columns as rows, row by row; grey where there are fewer."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    width, height = max((t.width for t in tiles), default=side), max((t.height for t in tiles), default=side)
    square = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for i in range(count):
        place = (i % columns * (width + 2), i // columns * (height + 2))
        square.paste(tiles[i] if i < len(tiles) else Image.new("RGB", (width, height), (235, 235, 235)), place)
    return square


def _beside(squares: list[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (sum(s.width + 6 for s in squares) - 6, max(s.height for s in squares)), "white")
    left = 0
    for square in squares:
        canvas.paste(square, (left, 0))
        left += square.width + 6
    return canvas


def _captioned(block: Image.Image, text: str) -> Image.Image:
    captioned = Image.new("RGB", (block.width, block.height + 15), "white")
    captioned.paste(block, (0, 15))
    ImageDraw.Draw(captioned).text((0, 1), text, fill="black")
    return captioned


def _origin(source: ImageSource | None) -> dict[str, Any]:
    """Where the photos are and how they were prepared, as far as that can be written down."""
    if source is None:
        return {}
    owner, how = source.dataset, source.preprocess
    if isinstance(owner, PhotoFolder) and owner.preprocess is not None:
        how = owner.preprocess
    where = {"folder": str(owner.path.resolve())} if isinstance(owner, PhotoFolder) else {}
    return {**where, "preprocess": dataclasses.asdict(how) if isinstance(how, Preprocess) else None}


def _preprocess_of(how: dict[str, Any]) -> Preprocess:
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in how.items()}
    return Preprocess(**known)


def _field_of(saved: dict[str, Any]) -> ReceptiveField:
    return ReceptiveField(tuple(saved["size"]), tuple(saved["stride"]), tuple(saved["start"]), bool(saved["whole"]))


def _statistics_of(tensors: dict[str, Tensor], layer: str) -> ChannelStatistics:
    prefix = f"{layer}/statistics/"
    return ChannelStatistics(**{key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
