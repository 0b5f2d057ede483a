"""What the strongest activations over a dataset are, as arrays and as pages of patches next to their projections."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError, OutputError, counted, did_you_mean
from torchviz_cnn.hooks.network import Model, Network, module_of
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.layers.receptive_field import ReceptiveField
from torchviz_cnn.media.datasets.kept import kept
from torchviz_cnn.media.datasets.source import ImageSource, View
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.runs.folder import ANEW, ResultFolder, model_checksum
from torchviz_cnn.scores.projection import Projection
from torchviz_cnn.topk.patches import (
    Crop,
    arranged,
    cut,
    field_on_input,
    on_photo,
    project_units,
    projection_image,
    titled,
)
from torchviz_cnn.topk.pieces.cutting import Piece
from torchviz_cnn.topk.statistics import ChannelStatistics, depth_plot
from torchviz_cnn.topk.tally import check_shape
from torchviz_cnn.topk.written import drawing
from torchviz_cnn.topk.written.storing import origin_of, same_photos, statistics_of, tuples

By = Literal["activation", "relevance"]
"""What the order is by: how strong a channel is, or how much it adds to a score."""
KIND = "top"
RESULTS = "results"
_PARTS = ("values", "images", "positions")


@dataclass(frozen=True, eq=False)
class TopActivations:
    """The k strongest activations of every channel of some layers over a dataset, at most one per image.

    Photos are read again from the dataset, and projections computed by the model, when they are asked for; both may be
    given to `load`.
    """

    layers: tuple[str, ...]
    """In execution order."""
    values: Mapping[str, Tensor]
    """By layer, (C, k) float32, in falling order: activations, or the relevance of the channel in the image; NaN where
    the dataset has fewer images."""
    images: Mapping[str, Tensor]
    """By layer, (C, k): places in the dataset; -1 for none."""
    positions: Mapping[str, Tensor]
    """By layer, (C, k, 2): row and column in the layer's map; -1 for none."""
    statistics: Mapping[str, ChannelStatistics]
    """Figures of every channel over the whole dataset, by layer."""
    count: int
    """How many images the dataset has."""
    skipped: Mapping[int, str]
    """The images that could not be read, by place, and why."""
    fields: Mapping[str, ReceptiveField | None] = field(repr=False)
    """What a layer's units see of the input; None: everything."""
    source: ImageSource | None = field(default=None, repr=False)
    model: nn.Module | None = field(default=None, repr=False)
    by: By = "activation"
    """What the order is by."""
    target: str | None = None
    """Of relevance, whose score it is of, in words."""
    activation: TopActivations | None = field(default=None, repr=False)
    """Of relevance, the same channels by activation, which come of the same pass."""
    piece: tuple[int, int] | None = None
    """From which image of the dataset on, and up to which without it, this is of; None: all of them."""

    @property
    def k(self) -> int:
        """How many activations per channel."""
        return int(self.values[self.layers[0]].shape[1])

    @property
    def names(self) -> list[str]:
        """What each image of the dataset is called: its file below the folder; `image 3` where it has none."""
        return [self._source().name(number) for number in range(self.count)]

    @property
    def looked_at(self) -> str:
        """Which images it is of, in words."""
        return counted(self.count, "image") if self.piece is None else str(Piece(*self.piece, self.count))

    def channels(self, layer: str) -> int:
        """Count the channels of a layer. Raises LayerError for a layer that was not looked at."""
        if layer not in self.values:
            near = did_you_mean(str(layer), self.layers)
            raise LayerError(f"no layer {layer!r} was looked at{near or ';'} there are: {', '.join(self.layers)}")
        return len(self.values[layer])

    def strongest_channels(self, layer: str, k: int = 16) -> list[int]:
        """List the k channels with the largest values, activations or relevance, in falling order."""
        self.channels(layer)
        first = self.values[layer][:, 0].nan_to_num(-torch.inf)
        return [int(c) for c in first.argsort(descending=True, stable=True)[: checks.whole_number("k", k)]]

    def some_channels(self, layer: str, k: int = 16) -> list[int]:
        """List k evenly chosen channels of those that are not dead; of all, where all are."""
        alive = [c for c in range(self.channels(layer)) if not bool(self.statistics[layer].dead[c])]
        alive = alive or list(range(self.channels(layer)))
        k = min(checks.whole_number("k", k), len(alive))
        return [alive[i * len(alive) // k] for i in range(k)]

    def patches(self, layer: str, channel: int, *, context: float = 1.0) -> list[Image.Image]:
        """Cut out the parts of the original photos that the channel's strongest units see, strongest first.

        Each is exactly the unit's receptive field, mapped back through crop and resize, without what lies beyond the
        network's input. `context` is the side of a patch as a multiple of the field (1.0). Patches have the photo's own
        pixels, so their sizes differ.
        """
        return [
            cut(view.photo, on_photo(self._field(layer, position, view.input_size, context), view, context))
            for view, position in self.views(layer, channel)
        ]

    def views(self, layer: str, channel: int) -> list[tuple[View, tuple[int, int]]]:
        """Give the photo of each of a channel's units, strongest first, and its row and column in the layer's map."""
        source = kept(self._source())
        units = self.units(layer, channel)
        images = source.fetched([image for image, _ in units], inputs=False, views=True)
        return [(source.view(image), position) for image, (_, position) in zip(images, units, strict=True)]

    def projections(
        self,
        layer: str,
        channel: int,
        *,
        projection: Projection = "deconvnet",
        model: Model | None = None,
        other_activations: OtherActivations = "error",
    ) -> list[Image.Image]:
        """Draw what in these patches drives the units, projected down to pixels and cut like the patches; zero is grey.

        Args:
            layer, channel: one of `layers`, and which channel of it.
            projection, model, other_activations: as for `project`.
        """
        values = self.project(layer, [channel], projection=projection, model=model, other_activations=other_activations)
        units = self.units(layer, channel)
        return [
            cut(projection_image(v), self._field(layer, position, (v.shape[1], v.shape[2]), 1.0))
            for v, (_, position) in zip(values[channel], units, strict=True)
        ]

    def project(
        self,
        layer: str,
        channels: Sequence[int],
        *,
        projection: Projection = "deconvnet",
        model: Model | None = None,
        other_activations: OtherActivations = "error",
    ) -> dict[int, list[Tensor]]:
        """Project several channels' strongest units down to pixels, in batches of all of them together.

        Args:
            layer: one of `layers`.
            channels: which channels of it.
            projection: `deconvnet` (Zeiler & Fergus) or `guided` gradients.
            model: what computes them; by default the one that the result was made with.
            other_activations: what becomes of activations that are not ReLUs, as for `deconvnet`.

        Returns:
            By channel, the raw projections (C, H, W), strongest unit first.

        Raises:
            InputError: without a model or without the photos.
            LayerError: for activations that are not ReLUs.
        """
        model = model if model is not None else self.model
        if model is None:
            raise InputError("projections are computed by the model: pass model=, to this or to TopActivations.load")
        values: dict[int, list[Tensor]] = {channel: [] for channel in checks.channel_numbers(channels)}
        units = [(channel, image, position) for channel in values for image, position in self.units(layer, channel)]
        numbers, images, positions = zip(*units, strict=True) if units else ((), (), ())
        options: Any = (projection, other_activations)
        projected = project_units(model, self._source(), layer, images, numbers, positions, *options)
        for channel, values_of_unit in zip(numbers, projected, strict=True):
            values[channel].append(values_of_unit)
        return values

    def grid(
        self,
        layer: str,
        channel: int,
        *,
        projection: Projection | None = "deconvnet",
        context: float = 1.0,
        side: int = 80,
        model: Model | None = None,
        other_activations: OtherActivations = "error",
    ) -> Image.Image:
        """Draw one channel as in Zeiler & Fergus' figure 2: the patches in a square, next to them their projections.

        By relevance, the patches that the channel is used for come last, behind those that excite it most.

        Args:
            layer, channel: one of `layers`, and which channel of it.
            projection: as for `project`; None, or no model, draws the patches alone.
            context: side of a patch as a multiple of the receptive field (1.0).
            side: of each patch in pixels.
            model, other_activations: as for `project`.
        """
        given: Any = {"model": model or self.model, "other_activations": other_activations}
        return drawing.blocks(self, layer, [channel], projection, context, side, **given)[0]

    def page(
        self,
        layer: str,
        channels: Sequence[int] | None = None,
        *,
        columns: int | None = None,
        projection: Projection | None = "deconvnet",
        context: float = 1.0,
        side: int = 56,
        model: Model | None = None,
        other_activations: OtherActivations = "error",
    ) -> Image.Image:
        """Draw many channels on a page, each as `grid` shows it, with its number and largest value.

        Args:
            layer: one of `layers`.
            channels: which channels of it; by default 16 evenly chosen ones that are not dead.
            columns: how many channels stand in a row; by default 2, 3 or 4, whichever leaves the fewest places empty.
            projection, context: as for `grid`.
            side: of each patch in pixels.
            model, other_activations: as for `project`.
        """
        channels = self.some_channels(layer) if channels is None else checks.channel_numbers(channels)
        if columns is None:
            columns = min((4, 3, 2), key=lambda n: -len(channels) % n) if len(channels) > 1 else 1
        columns = min(checks.whole_number("columns", columns), len(channels))
        given: Any = {"model": model or self.model, "other_activations": other_activations}
        blocks = drawing.blocks(self, layer, channels, projection, context, side, **given)
        page = arranged(blocks, columns, 12, [drawing.title(self, layer, channel) for channel in channels])
        return ImageOps.expand(titled(page, drawing.legend(self, layer)), 6, "white")

    def plot(self) -> Image.Image:
        """Draw sparsity, dead channels and class selectivity over the layers."""
        return depth_plot(self.statistics)

    def by_relevance(
        self,
        values: Mapping[str, Tensor],
        images: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        target: str | None,
    ) -> TopActivations:
        """Make the same channels' result by the relevance that these say, for this target in words."""
        ranked: dict[str, Any] = {"values": values, "images": images, "positions": positions}
        return dataclasses.replace(self, **ranked, by="relevance", target=target, activation=self)

    def attached(self, source: ImageSource | None, model: nn.Module | None) -> TopActivations:
        """Make the same with another dataset and model."""
        activation = self.activation and self.activation.attached(source, model)
        return dataclasses.replace(self, source=source, model=model, activation=activation)

    def save(self, path: str | Path) -> Path:
        """Write all to a folder that `load` reads: `results.safetensors` and a manifest. Raises OutputError."""
        identity: dict[str, Any] = {"model": None, "weights": None, "images": self.count, "dataset": None}
        if self.model is not None:
            identity |= {"model": type(self.model).__name__, "weights": model_checksum(self.model)}
        if self.source is not None:
            identity["dataset"] = self.source.listing()["checksum"]
        identity |= {"by": self.by, "target": self.target} if self.by == "relevance" else {}
        identity |= {} if self.piece is None else {"piece": self.piece}
        with ResultFolder.run(path, KIND, {**identity, "layers": list(self.layers), "k": self.k}) as folder:
            self.write(folder)
        return folder.path

    def write(self, folder: ResultFolder, origin: Mapping[str, Any] | None = None) -> None:
        """Write all into a folder of results that is open; `origin` says where its photos are, if not in `source`."""
        tensors: dict[str, Tensor] = {}
        for layer in self.layers:
            tensors |= {f"{layer}/{name}": getattr(self, name)[layer] for name in _PARTS}
            if self.activation is not None:
                of_activation = {name: getattr(self.activation, name)[layer] for name in _PARTS}
                tensors |= {f"{layer}/activation/{name}": tensor for name, tensor in of_activation.items()}
            tensors |= {f"{layer}/statistics/{name}": t for name, t in self.statistics[layer].tensors().items()}
        fields = {layer: None if f is None else dataclasses.asdict(f) for layer, f in self.fields.items()}
        about = {"layers": self.layers, "count": self.count, "skipped": dict(self.skipped), "fields": fields}
        about |= {**(origin or origin_of(self.source)), "by": self.by, "target": self.target, "piece": self.piece}
        folder.save(RESULTS, tensors, about=json.dumps(about))
        images = self.count if self.piece is None else self.piece[1] - self.piece[0]
        folder.update(finished=True, images=images, skipped=len(self.skipped))

    @classmethod
    def load(
        cls, path: str | Path, dataset: Any = None, model: Model | None = None, preprocess: Any = None
    ) -> TopActivations:
        """Read what a finished run wrote.

        `dataset` is needed for patches unless it was a folder or shards that are still there, `model` for projections;
        `preprocess` is by default what the run used, as far as it was saved, else that of a Network. A server that has
        the shards is asked when the first photo is read. Raises OutputError for a folder of something else, or one that
        is not finished or broken.
        """
        folder, module = ResultFolder.read(path, KIND), None if model is None else module_of(model)
        if not folder.has(RESULTS):
            done = counted(folder.manifest["progress"].get("images", 0), "image")
            raise folder.without_result(RESULTS, done)
        tensors, texts = folder.load_with_metadata(RESULTS)
        try:
            about = json.loads(texts["about"])
            layers = tuple(about["layers"])
            parts: Any = {name: {layer: tensors[f"{layer}/{name}"] for layer in layers} for name in _PARTS}
            saved = cls(
                layers=layers,
                **parts,
                statistics={layer: statistics_of(tensors, layer) for layer in layers},
                count=int(about["count"]),
                skipped={int(index): str(reason) for index, reason in about["skipped"].items()},
                fields={layer: f and ReceptiveField(**tuples(f)) for layer, f in about["fields"].items()},
                model=module,
                piece=about.get("piece") and (int(about["piece"][0]), int(about["piece"][1])),
            )
            how = about.get("preprocess")
            preprocess = preprocess or (None if how is None else Preprocess(**tuples(how)))
            saved._require_shapes()
            if about.get("by", "activation") == "relevance":
                saved = saved._read_activation(tensors, about["target"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise OutputError(f"{folder.file(RESULTS)} is broken: {error}; {ANEW}") from error
        given = dataset is not None
        if not given:
            dataset = same_photos(about, folder.path, folder.manifest["identity"].get("dataset"))
        if dataset is None:
            return saved
        source = ImageSource(dataset, preprocess or (model.preprocess if isinstance(model, Network) else None))
        if given:
            source.prepare(folder.path if folder.has("shards") else None)
        if len(source) != saved.count:
            raise InputError(f"the dataset has {counted(len(source), 'image')}; {path} was made from {saved.count}")
        return saved.attached(source, module)

    def _read_activation(self, tensors: Mapping[str, Tensor], target: str) -> TopActivations:
        """The same, read as that of relevance, with what was saved beside it: the order by activation."""
        parts: Any = {name: {layer: tensors[f"{layer}/activation/{name}"] for layer in self.layers} for name in _PARTS}
        activation = dataclasses.replace(self, **parts)
        activation._require_shapes()
        return activation.by_relevance(self.values, self.images, self.positions, target)

    def _require_shapes(self) -> None:
        """Raise ValueError for tensors that do not fit together, or are of other images than there are."""
        k = self.values[self.layers[0]].shape[1]
        for layer in self.layers:
            channels = len(self.values[layer])
            for name, shape in zip(_PARTS, ((channels, k), (channels, k), (channels, k, 2)), strict=True):
                check_shape(f"{name} of {layer}", getattr(self, name)[layer], shape)
            for name, tensor in self.statistics[layer].tensors().items():
                check_shape(f"{name} of {layer}", tensor, (channels,))
            images, (start, end) = self.images[layer], self.piece or (0, self.count)
            if not bool(((images == -1) | ((images >= start) & (images < end))).all()):
                raise ValueError(f"images of {layer} are not among the {end - start} from image {start} on")

    def units(self, layer: str, channel: int) -> list[tuple[int, tuple[int, int]]]:
        """List the image of each of a channel's units, strongest first, and its row and column in the layer's map."""
        count = self.channels(layer)
        if not isinstance(channel, (int, np.integer)) or not 0 <= channel < count:
            raise InputError(f"channel {channel} is out of range: layer {layer!r} has {counted(count, 'channel')}")
        images, positions = self.images[layer][channel].tolist(), self.positions[layer][channel].tolist()
        return [(image, (row, column)) for image, (row, column) in zip(images, positions, strict=True) if image >= 0]

    def _field(self, layer: str, position: Sequence[int], size: tuple[int, int], context: float) -> Crop:
        return field_on_input(self.fields.get(layer), position, size, checks.number("context", context, 1))

    def _source(self) -> ImageSource:
        if self.source is None:
            raise InputError("the photos are needed, as for this result: pass dataset= to TopActivations.load")
        return self.source

    def _repr_png_(self) -> bytes | None:
        """The patches of the strongest channels of the last layer; figures of all where the photos are not there."""
        last = self.layers[-1]
        page = pictures.png(lambda: self.page(last, self.strongest_channels(last, 4), projection=None))
        return page or pictures.png(self.plot)

    def __repr__(self) -> str:
        rows = [f"  {layer}: {counted(len(self.values[layer]), 'channel')}" for layer in self.layers]
        left_out = f", {len(self.skipped)} not readable" if self.skipped else ""
        of = "strongest" if self.target is None else f"most relevant for {self.target}"
        return "\n".join([f"TopActivations: the {self.k} {of} of {self.looked_at}{left_out}", *rows])
