"""What maps of the input share: one picked out of a batch, laid on the photo that it belongs to, and put in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.notebook.maps import picture_of_maps
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import EmptyMapWarning, GeometryWarning, InputError, NotFiniteError
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.inputs import Given
from torchviz_cnn.hooks.network import category_name
from torchviz_cnn.media import figures, render
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.media.origin import Origin, Photo, as_photo
from torchviz_cnn.scores.outputs import Activation, both_classes, probabilities, shown_names
from torchviz_cnn.scores.targets import Targets


class Box(NamedTuple):
    """A box around a connected part of a map, in pixels of the photo; `photo.crop(box[:4])` cuts it out."""

    left: int
    top: int
    right: int
    """The first column that is not in it."""
    bottom: int
    """The first row that is not in it."""
    strength: float
    """The map's strongest value in this part, as a share of its strongest on the photo: 0..1."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassMap:
    """What results with one map per image and class have in common, and how they are drawn.

    `index` chooses an image of the batch, and `nth` one of its classes where several were asked for, wherever one
    picture is drawn. A map is laid on the part of the photo that the network saw. Where the method was given a Network
    and photos, the result remembers them; a photo, a `geometry` (`crop`, `stretch`, `pad` or a Preprocess) and
    `categories` that are given by hand win.
    """

    palette: ClassVar[str] = "jet"
    """The colormap of a map alone where none is named."""
    photo_palette: ClassVar[str] = "jet"
    """And over the photo."""
    blending: ClassVar[render.Blend] = "add"
    """How it is blended with the photo where that is not said."""
    figure_palette: ClassVar[str | None] = None
    """The colormap of a map of a signal or volume; None for the usual ones."""

    values: Tensor
    """The maps: (B, h, w), or (B, K, h, w) of K classes, float32; of signals (B, l), of volumes (B, d, h, w)."""
    target: Tensor
    """The classes: (B,) or (B, K)."""
    method: str
    logits: Tensor
    """What the network gave for all classes: (B, n)."""
    input_size: tuple[int, ...]
    """The spatial sides of the network's input: (H, W), of signals (L,), of volumes and videos (D, H, W)."""
    origin: Origin = field(default=Origin(), repr=False)
    """The photos, how they were prepared, and the names of the classes, as far as they are known."""
    activation: Activation | None = None
    """What makes probabilities of the logits: see `predict`; None for what is usual."""
    label: str | None = None
    """What a function explains, in words; None for classes."""

    def __post_init__(self) -> None:
        if not bool(self.values.isfinite().all()):
            raise NotFiniteError(
                "the map holds NaN or infinity: the network's numbers, or their gradients, are too large for their "
                "type; run it in float32, or in bfloat16 where it is in float16"
            )

    def map(self, index: int = 0, nth: int = 0) -> render.Array:
        """One map (*S) divided by its maximum, negative values as 0: 0..1. Without positive values: zeros."""
        return render.unit_range(self._of(self.values, index, nth).detach().float().cpu().numpy())

    def overlay(
        self,
        photo: Photo | None = None,
        alpha: float = 0.4,
        *,
        index: int = 0,
        nth: int = 0,
        blend: render.Blend | None = None,
        colormap: str | None = None,
        interpolation: render.Interpolation = "bilinear",
        geometry: Geometry | Preprocess | None = None,
        preset: render.Preset | None = None,
    ) -> Image.Image:
        """Draw the map in colour over the photo, at the photo's own size.

        Args:
            photo: the photo that the input was made from; by default the one that the method was given.
            alpha: strength of the colours, 0..1.
            index, nth: which image of the batch, and which of its classes.
            blend: `add` is the textbook's photo + alpha x colour, clipped (the default, but for signed maps); `mix` is
                (1 - alpha) x photo + alpha x colour.
            colormap: a name that matplotlib knows.
            interpolation: `nearest`, `bilinear` or `quadratic`.
            geometry: how the photo became the input; by default as the Network says.
            preset: draw as the textbook's listing does, to the byte: `dlwp-2017` (OpenCV's jet and resizing, sum
                rounded and clipped) or `dlwp-2025` (matplotlib's jet, colours enlarged, sum stretched to 0..255). Both
                lay the map over the whole photo. By default (None) as the other options say.

        Raises:
            InputError: for an alpha outside 0..1, an unknown option, a preset together with another way to blend, to
                colour or to interpolate, or no photo.

        Warns:
            GeometryWarning: where a preset lays the map over more of the photo than the network saw.
        """
        picture = self._photo(photo, index)
        if preset is not None:
            if (blend or "add", colormap, interpolation) != ("add", None, "bilinear"):
                raise InputError("preset says how to blend, colour and interpolate: leave these options out")
            self._require_stretched(picture, geometry)
            return render.listing(preset, picture, self.map(index, nth), alpha)
        box, options = self.origin.box(picture, self.input_size, geometry), {"interpolation": interpolation}
        return self._over(picture, box, index, nth, colormap, alpha=alpha, blend=blend or self.blending, **options)

    def image(
        self,
        photo: Photo | None = None,
        *,
        index: int = 0,
        nth: int = 0,
        colormap: str | None = None,
        interpolation: render.Interpolation = "bilinear",
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:
        """Draw the map alone in colour: at the photo's size and place, or without one at the size of the input.

        What the network did not see of the photo lies under a veil around it. A map of a signal is drawn as a curve,
        one of a volume or video in slices, as `plot` does.

        Args:
            photo, index, nth, colormap, interpolation, geometry: as for `overlay`.
        """
        return self._drawn(self._shown(index, nth), photo, index, colormap, interpolation, geometry)

    def plot(
        self,
        photo: Photo | None = None,
        *,
        index: int = 0,
        nth: int = 0,
        alpha: float = 0.4,
        truth: str | None = None,
        categories: Sequence[str] | None = None,
        seed: int = 0,
        blend: render.Blend | None = None,
        colormap: str | None = None,
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:
        """Draw photo, map, overlay and a picture to compare with, side by side.

        The headline names the true class (where `truth` is given), the predicted one with its probability, and the
        explained one. The last picture is: of a heatmap a random live feature map of its layer; of a saliency map the
        evidence for (red) and against (blue) the class; of an occlusion the score by place of the patch. Of a signal
        its curves are drawn over the colours of the map; of a volume up to 11 slices, and the maximum of all.

        Args:
            photo, index, nth, alpha, blend, colormap, geometry: as for `overlay`; instead of a photo the signal (L,) or
                (C, L), or the volume (D, H, W) or (C, D, H, W), as x[index] is, or None for the map alone.
            truth: the name of the true class, for the headline.
            categories: the names of the classes; by default the Network's.
            seed: seed of the choice of the feature map (0).
        """
        shown = self._in_pictures()
        if not self._is_flat:
            headline = f"{self._title()}; {self.headline(index, nth, truth, categories)}"
            return self._figure(shown._shown(index, nth), photo, colormap, alpha=alpha, headline=headline)
        picture = self._photo(photo, index)
        options: dict[str, Any] = {"index": index, "nth": nth, "colormap": colormap, "geometry": geometry}
        alone, over = shown.image(picture, **options), shown.overlay(picture, alpha, blend=blend, **options)
        title, comparison = self._comparison(picture, index, nth, seed, geometry)
        titles, headline = ["photo", self._title(), "overlay", title], self.headline(index, nth, truth, categories)
        bars = {1: (colormap or shown.palette, ends)} if (ends := shown._ends(index, nth)) else {}
        return figures.panel([picture, alone, over, comparison], titles, headline, bars=bars)

    def headline(
        self, index: int = 0, nth: int = 0, truth: str | None = None, categories: Sequence[str] | None = None
    ) -> str:
        """True, predicted and explained class of one map in words."""
        words = [f"true: {truth}"] if truth is not None else []
        if self.label is not None:
            which = "" if self.target.ndim == 1 else f"[{nth}]"
            words.append(f"explained: {self.label}{which} ({float(self._of(self.logits, index)[nth]):.3g})")
            return ", ".join(words)
        names = shown_names(categories, self.origin.categories, self.logits.shape[1])
        shares = probabilities(self._of(self.logits, index)[None], self.activation)
        asked = int(self._of(self.target, index, nth))
        if shares.shape[1] == 1 and names is not None and len(names) == 2:  # the only output is the second class's
            shares, asked = both_classes(shares, "none"), 1
        top, shares = int(shares.argmax()), shares[0]
        words.append(f"predicted: {category_name(names, top)} ({float(shares[top]):.3f})")
        if asked != top:
            words.append(f"explained: {category_name(names, asked)} ({float(shares[asked]):.3f})")
        return ", ".join(words)

    def peak(
        self, photo: Photo | None = None, *, index: int = 0, nth: int = 0, geometry: Geometry | Preprocess | None = None
    ) -> tuple[int, int]:
        """The pixel (x, y) of the photo where the map is strongest."""
        return render.strongest(*self._on_photo(photo, index, nth, geometry))

    def mask(
        self,
        threshold: float = 0.15,
        *,
        photo: Photo | None = None,
        index: int = 0,
        nth: int = 0,
        geometry: Geometry | Preprocess | None = None,
    ) -> render.Array:
        """Mark the pixels of the photo where the map is strong.

        Args:
            threshold: how strong, as a share of the map's strongest value on the photo, above 0 and at most 1.
            photo, index, nth, geometry: as for `overlay`.

        Returns:
            True where the map, enlarged bilinearly, is at least that strong: (height, width) of the photo. False
            beyond the region that the network saw, and everywhere where the map is all zeros.

        Raises:
            InputError: for a threshold outside 0..1, or no photo.
        """
        return render.mask(*self._on_photo(photo, index, nth, geometry), _threshold(threshold))

    def box(
        self,
        threshold: float = 0.15,
        *,
        photo: Photo | None = None,
        index: int = 0,
        nth: int = 0,
        geometry: Geometry | Preprocess | None = None,
    ) -> list[Box]:
        """Find boxes around the connected parts of `mask`.

        Args:
            threshold: as for `mask`. The default is that of the Grad-CAM paper, which takes the box around the
                largest part.
            photo, index, nth, geometry: as for `overlay`.

        Returns:
            The boxes in pixels of the photo, that of the strongest part first, equally strong ones from the top; an
            empty list where the map is all zeros. Pixels that touch at a corner are connected.

        Raises:
            InputError: for a threshold outside 0..1, or no photo.

        Selvaraju et al., arXiv 1610.02391, section 4.1.
        """
        return [
            Box(*one) for one in render.regions(*self._on_photo(photo, index, nth, geometry), _threshold(threshold))
        ]

    @property
    def _is_flat(self) -> bool:
        """Whether the maps and the input have two dimensions, as photos have."""
        return self.values.ndim - self.target.ndim == len(self.input_size) == 2

    def _title(self) -> str:
        """What the map is called in a figure."""
        return self.method

    def _shown(self, index: int, nth: int) -> render.Array:
        """One map in 0..1 as pictures colour it."""
        return self.map(index, nth)

    def _over(
        self, photo: Image.Image, box: render.Box, index: int, nth: int, colormap: str | None, **options: Any
    ) -> Image.Image:
        """One map in colour over what it covers of a photo."""
        return render.overlay(
            photo, self._shown(index, nth), box, colormap_name=colormap or self.photo_palette, **options
        )

    def _in_pictures(self) -> ClassMap:
        """The map as pictures show it."""
        return self

    def _ends(self, index: int, nth: int) -> tuple[float, ...]:
        """The values of the first and the last colour of a map alone; none where these are not told."""
        return ()

    def _comparison(
        self, photo: Image.Image, index: int, nth: int, seed: int, geometry: Geometry | Preprocess | None
    ) -> tuple[str, Image.Image | render.Array]:
        """A picture to compare the map with, and its title."""
        raise NotImplementedError

    def _of(self, batch: Tensor, index: int, nth: int | None = None) -> Tensor:
        of_image = batch[checks.place("image", index, len(batch))]
        if nth is None or self.target.ndim == 1:
            if nth:
                raise InputError(f"class {nth} is out of range: one class per image was asked for")
            return of_image
        return of_image[checks.place("class", nth, len(of_image))]

    def _photo(self, photo: Photo | None, index: int) -> Image.Image:
        if not self._is_flat:
            kind = {1: "signal", 2: "picture", 3: "volume or video"}[len(self.input_size)]
            raise InputError(f"this map of a {kind} is not laid on a photo: plot(x[index]) draws it, .values has it")
        return self.origin.photo(index) if photo is None else as_photo(photo)

    def _on_photo(
        self, photo: Photo | None, index: int, nth: int, geometry: Geometry | Preprocess | None
    ) -> tuple[render.Array, render.Box, int, int]:
        """A map, what it covers of the photo, and the photo's width and height."""
        picture = self._photo(photo, index)
        box = self.origin.box(picture, self.input_size, geometry)
        return self.map(index, nth), box, picture.width, picture.height

    def _figure(self, values: render.Array, given: Any, colormap: str | None, **options: Any) -> Image.Image:
        """A map of a signal or volume, with what was given."""
        return figures.map_figure(values, self.input_size, given, colormap=colormap or self.figure_palette, **options)

    def _require_stretched(self, photo: Image.Image, geometry: Geometry | Preprocess | None) -> None:
        """Warn where the network saw another part of a photo than all of it."""
        box = self.origin.box(photo, self.input_size, geometry)
        if max(abs(a - b) for a, b in zip(box, (0, 0, *photo.size), strict=True)) > 1:
            left, top, right, bottom = (round(side) for side in box)
            warn(
                f"the listing stretches the map over the whole photo, but the network saw {left}, {top} to {right}, "
                f"{bottom} of {photo.width} x {photo.height}: the heat is not in its place; leave preset out, or give "
                "the network the whole photo (geometry 'stretch')",
                GeometryWarning,
            )

    def _drawn(
        self,
        values: render.Array,
        photo: Photo | None,
        index: int,
        colormap: str | None,
        interpolation: render.Interpolation,
        geometry: Geometry | Preprocess | None,
    ) -> Image.Image:
        if not self._is_flat:
            return self._figure(values, photo, colormap, interpolation=interpolation)
        height, width = self.input_size
        box, picture = (0.0, 0.0, float(width), float(height)), None
        if photo is not None or self.origin.photos is not None:
            picture = self._photo(photo, index)
            width, height = picture.size
            box = self.origin.box(picture, self.input_size, geometry)
        return render.heat_image(
            values,
            box,
            width,
            height,
            colormap_name=colormap or self.palette,
            interpolation=interpolation,
            photo=picture,
        )

    def _repr_png_(self) -> bytes | None:
        return pictures.png(lambda: picture_of_maps(self))


def _threshold(value: float) -> float:
    if not 0 < checks.number("threshold", value) <= 1:
        raise InputError(f"threshold is a share of the strongest value, above 0 and at most 1, not {value}")
    return value


def of_targets(given: Given, targets: Targets) -> dict[str, Any]:
    """The fields that every result has from what was given and what is explained."""
    return {
        "target": targets.squeezed(targets.classes),
        "logits": targets.logits.detach(),
        "input_size": given.input_size,
        "origin": given.origin,
        "activation": targets.activation,
        "label": targets.label,
    }


def warn_of_empty(empty: Tensor, targets: Targets, why: str, kind: str = "") -> None:
    """Warn (EmptyMapWarning), in one line for all, of maps that are all zeros: (B, K).

    `why` has places for what is explained, `{target}`, and `{image}`.
    """
    if bool(empty.any()):
        image, k = (int(i) for i in empty.nonzero()[0])
        others = f" (and {int(empty.sum()) - 1} more)" if int(empty.sum()) > 1 else ""
        message = why.format(target=targets.words(image, k), image=image)
        warn(f"{message}{others}: the {kind}map is all zeros", EmptyMapWarning)
