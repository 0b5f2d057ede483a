"""What every class heatmap of a layer gives: `Heatmap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.attribution.result import ClassMap, of_targets, warn_of_empty
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.hooks.inputs import Given
from torchviz_cnn.hooks.network import category_name
from torchviz_cnn.media import figures, render
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.media.origin import Photo
from torchviz_cnn.runs import files
from torchviz_cnn.scores.outputs import shown_names
from torchviz_cnn.scores.targets import Targets
from torchviz_cnn.scores.trace import Trace

Scale = Literal["own", "shared"]
"""What the densest colour of a class stands for: the strongest value of its own map, or of both."""
FOR_AND_AGAINST: tuple[render.Colour, ...] = ((214, 20, 30), (20, 60, 220))
TWO_COLOURS: tuple[render.Colour, ...] = ((230, 0, 126), (0, 190, 230))
"""Of two classes: magenta and cyan, which the colour-blind tell apart too."""
Layer = LayerName | Sequence[LayerName] | None
"""A layer by its name or as a module, alone or in a list; None for the one that is explained by default."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Heatmap(ClassMap):
    """How strong the evidence for a class is at each place of a layer. Raw values: see `ClassMap`.

    After the ReLU, `values` are at least 0.
    """

    layer: str
    activations: Tensor
    """The maps that the layer gave: (B, C, *S)."""

    def _title(self) -> str:
        return f"{self.method}, {self.layer}"

    def _ends(self, index: int, nth: int) -> tuple[float, ...]:
        return (0.0, max(float(self._of(self.values, index, nth).max()), 0.0))

    def _comparison(
        self, photo: Image.Image, index: int, nth: int, seed: int, geometry: Geometry | Preprocess | None
    ) -> tuple[str, Image.Image | render.Array]:
        generator = torch.Generator().manual_seed(seed)
        maps = self._of(self.activations, index).detach().float().cpu()
        alive = (maps.flatten(1).amax(1) > 0).nonzero().flatten()
        channels = alive if len(alive) else torch.arange(len(maps))
        channel = int(channels[torch.randint(len(channels), (1,), generator=generator)])
        return f"a random feature map: channel {channel}", maps[channel].numpy()

    def save(self, path: str | Path) -> Path:
        """Write values, target, logits, layer and method to a `.npz` file. Raises OutputError."""
        arrays = {"values": self.values, "target": self.target, "logits": self.logits}
        return files.save_arrays(path, {**arrays, "layer": self.layer, "method": self.method})

    def two_classes(
        self,
        photo: Photo | None = None,
        *,
        nth: tuple[int, int] = (0, 1),
        index: int = 0,
        alpha: float = 0.6,
        scale: Scale = "own",
        interpolation: render.Interpolation = "bilinear",
        geometry: Geometry | Preprocess | None = None,
        categories: Sequence[str] | None = None,
    ) -> Image.Image:
        """Draw two classes over one photo in grey: the colour says which is explained where, its density how strongly.

        Where both are, the colours mix. A legend below names the classes.

        Args:
            photo, index, interpolation, geometry: as for `overlay`.
            nth: which two of the classes that were asked for.
            alpha: strength of the colours where a map is strongest, 0..1.
            scale: a map is divided by its `own` maximum, or both by the larger (`shared`), so that the weaker class is
                paler.
            categories: the names of the classes; by default the Network's.

        Raises:
            InputError: for a class that was not asked for, an unknown option, or no photo.
        """
        if not isinstance(nth, Sequence) or isinstance(nth, str) or len(nth) != 2:
            raise InputError(f"nth says which two classes are drawn, as (0, 1), not {nth!r}")
        checks.one_of("scale", scale, get_args(Scale))
        maps = [self.map(index, k) for k in nth]
        if scale == "shared":
            peaks = [max(float(self._of(self.values, index, k).max()), 0.0) for k in nth]
            maps = [values * peak / (max(peaks) or 1) for values, peak in zip(maps, peaks, strict=True)]
        picture = self._photo(photo, index)
        box = self.origin.box(picture, self.input_size, geometry)
        drawn = render.tinted(picture, maps, TWO_COLOURS, box, alpha=alpha, interpolation=interpolation)
        known = self._names(categories)
        names = [_words(self.target, self.label, known, index, k) for k in nth]
        return figures.with_legend(drawn, names, TWO_COLOURS)

    def _names(self, categories: Sequence[str] | None) -> tuple[str, ...] | None:
        """The names of the classes; of a function's values it is not known how many there are."""
        return shown_names(categories, self.origin.categories, self.logits.shape[1] if self.label is None else None)

    def __sub__(self, other: Heatmap) -> SignedHeatmap:
        """What this heatmap shows and another of the same layer does not: red where this one is stronger, else blue."""
        if not isinstance(other, Heatmap):
            return NotImplemented
        if self.layer != other.layer or self.values.shape != other.values.shape:
            one, two = (f"{tuple(heat.values.shape)} at {heat.layer!r}" for heat in (self, other))
            raise InputError(f"heatmaps of one layer and one shape are compared, not {one} and {two}")
        values = self.values - other.values.to(self.values.device)
        if any(isinstance(heat, SignedHeatmap) and heat.other_target is not None for heat in (self, other)):
            raise InputError("two heatmaps are compared, and one of these is a difference already: take their values")
        method = self.method if self.method == other.method else f"{self.method} - {other.method}"
        fields = {**fields_of(self), "values": values, "method": method}
        return SignedHeatmap(**fields, other_target=other.target, other_label=other.label)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        what = f"classes {self.target.tolist()}" if self.label is None else self.label
        return f"{type(self).__name__}({self.method} at {self.layer}: {shape}, {what})"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SignedHeatmap(Heatmap):
    """A heatmap whose negative values count, as `relu=False` and the difference of two give it.

    It is drawn around zero: red is for the class, blue against it, over the photo in grey. `map`, `peak`, `mask` and
    `box` are those of the evidence for it.
    """

    palette: ClassVar[str] = "seismic"
    photo_palette: ClassVar[str] = "seismic"
    figure_palette: ClassVar[str | None] = "seismic"
    blending: ClassVar[render.Blend] = "mix"

    other_target: Tensor | None = None
    """Of a difference, the classes of the map that was taken away: (B,) or (B, K)."""
    other_label: str | None = None
    """And what a function explains there, in words."""

    def signed(self, index: int = 0, nth: int = 0) -> render.Array:
        """One map (h, w) with its sign as 0..1: 0.5 is nothing, 0 and 1 the map's largest absolute value."""
        return render.signed_range(self._of(self.values, index, nth).detach().float().cpu().numpy())

    def headline(
        self, index: int = 0, nth: int = 0, truth: str | None = None, categories: Sequence[str] | None = None
    ) -> str:
        """True, predicted and explained class of one map in words; of a difference, also what was taken away."""
        words = super().headline(index, nth, truth, categories)
        if self.other_target is None:
            return words
        names = self._names(categories)
        own = _words(self.target, self.label, names, index, nth)
        other = _words(self.other_target, self.other_label, names, index, nth)
        return words if own == other else f"{words}, minus: {other}"

    def _title(self) -> str:
        return f"{super()._title()}: for (red), against (blue)"

    def _shown(self, index: int, nth: int) -> render.Array:
        return self.signed(index, nth)

    def _ends(self, index: int, nth: int) -> tuple[float, ...]:
        peak = float(self._of(self.values, index, nth).abs().max())
        return (-peak, peak)

    def _over(
        self, photo: Image.Image, box: render.Box, index: int, nth: int, colormap: str | None, **options: Any
    ) -> Image.Image:
        if colormap is not None:
            return super()._over(photo, box, index, nth, colormap, **options)
        values = 2 * self.signed(index, nth) - 1
        return render.tinted(photo, [values, -values], FOR_AND_AGAINST, box, **options)


def fields_of(heat: Heatmap) -> dict[str, Any]:
    """The fields that a heatmap with negative values and one without share."""
    return {field.name: getattr(heat, field.name) for field in dataclasses.fields(Heatmap)}


def _words(target: Tensor, label: str | None, categories: tuple[str, ...] | None, index: int, nth: int) -> str:
    """The class that one map explains by its name, or what a function explains."""
    one = target[index] if target.ndim == 1 else target[index, nth]
    if label is None:
        return category_name(categories, int(one))
    return label if target.ndim == 1 else f"{label}[{nth}]"


def positive(values: Tensor, layer: str, targets: Targets) -> Tensor:
    """Maps (B, K, *S) without their negative values; warns (EmptyMapWarning) of those that have no others."""
    shown = layer.replace("{", "{{").replace("}", "}}")
    why = f"no positive evidence for {{target}} at layer {shown!r} in image {{image}}"
    warn_of_empty(values.flatten(2).amax(2) <= 0, targets, why)
    return values.relu()


def require_places(model: nn.Module, layer: str, maps: Tensor) -> None:
    """Raise LayerError for maps (B, C, *S) of one place."""
    if all(side == 1 for side in maps.shape[2:]):
        raise LayerError(
            f"layer {layer!r} of {type(model).__name__} gives maps of a single pixel, which locate nothing"
        )


def heatmap_of(method: str, given: Given, layer: str, values: Tensor, run: Trace, *, signed: bool = False) -> Heatmap:
    """The result of a method; `signed` where its negative values are evidence too."""
    return (SignedHeatmap if signed else Heatmap)(
        values=run.targets.squeezed(values),
        layer=layer,
        method=method,
        activations=run.maps(layer),
        **of_targets(given, run.targets),
    )
