"""Several heatmaps from one call: of methods and layers at once, and averaged over flipped and noisy copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor

from torchviz_cnn.attribution.cam.formulas import CAM_METHODS, cam_maps_of_layers
from torchviz_cnn.attribution.cam.heatmap import Heatmap, Layer, fields_of, heatmap_of, positive, require_places
from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.attribution.notebook.maps import picture_of_methods
from torchviz_cnn.attribution.smoothing import gaussian
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError, did_you_mean
from torchviz_cnn.core.names import LayerName, one_or_several
from torchviz_cnn.hooks.inputs import Input, LayoutName, Output, Wrt, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.media import figures
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.scores.reader import ReadyTarget
from torchviz_cnn.scores.targets import Score, Target, Targets, asked, check_score, reader_of
from torchviz_cnn.scores.trace import layer_of, trace

Key = tuple[str, str]
"""A method and a layer."""


class _MissingMap(LayerError, KeyError):
    """A method or layer that was not explained."""

    __str__ = Exception.__str__


@dataclass(frozen=True, eq=False)
class Explanation(Mapping[Key, Heatmap]):
    """Heatmaps of the same images and classes by method and layer: `maps["layer_cam", "features.12"]`."""

    heatmaps: dict[Key, Heatmap]

    def __getitem__(self, key: Key) -> Heatmap:
        try:
            return self.heatmaps[key]
        except (KeyError, TypeError):
            both = isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key)
            near = did_you_mean("/".join(key), ["/".join(known) for known in self]) if both else ""
            there = f"methods are {', '.join(self.methods)}; layers are {', '.join(self.layers)}"
            raise _MissingMap(f"no heatmap {key!r}{near.replace('/', ', ') or ';'} {there}") from None

    def __iter__(self) -> Iterator[Key]:
        return iter(self.heatmaps)

    def __len__(self) -> int:
        return len(self.heatmaps)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order they were asked for."""
        return tuple(dict.fromkeys(method for method, _ in self.heatmaps))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order they were asked for."""
        return tuple(dict.fromkeys(layer for _, layer in self.heatmaps))

    def plot(
        self,
        photo: Any = None,
        *,
        index: int = 0,
        nth: int = 0,
        categories: Sequence[str] | None = None,
        **options: Any,
    ) -> Image.Image:
        """Draw all heatmaps of one image and class over the photo: a column for each method, a row for each layer.

        Args:
            photo: the photo that the input was made from; by default the one that was given. Of signals and volumes
                x[index], or None for the maps alone.
            index, nth: which image of the batch, and which of its classes.
            categories: the names of the classes; by default the Network's.
            options: as for `Heatmap.overlay`, of signals and volumes as for `Heatmap.image`.
        """
        first = next(iter(self.heatmaps.values()))
        draw: Callable[..., Image.Image] = Heatmap.overlay if first._is_flat else Heatmap.image
        columns = {
            self.heatmaps[method, self.layers[0]].method: [
                (layer, draw(self.heatmaps[method, layer], photo, index=index, nth=nth, **options))
                for layer in self.layers
            ]
            for method in self.methods
        }
        return figures.column_figure(columns, first.headline(index, nth, categories=categories))

    def _repr_png_(self) -> bytes | None:
        return pictures.png(lambda: picture_of_methods(self))

    def __repr__(self) -> str:
        return f"Explanation({', '.join(self.methods)} at {', '.join(self.layers)})"


def explain(
    model: Model,
    x: Input,
    targets: Target = None,
    layers: Layer = None,
    methods: str | Sequence[str] | None = None,
    *,
    score: Score = "logit",
    relu: bool = True,
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Explanation:
    """Compute heatmaps of several methods, layers and classes at once.

    All methods that weigh maps by gradients share one forward and one batched backward pass, down to the earliest of
    the layers. Others (`score_cam`, `ablation_cam`, `competitive_cam`, `cam`) run what they need after that.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) on the model's scale or, with a Network, a photo or several.
        targets: what `target` is for `grad_cam`.
        layers: a layer or several; by default the one that `grad_cam` takes.
        methods: names of functions, as `layer_cam`, one or several; by default all that weigh maps by gradients.
        score, relu: as for `grad_cam`, for the methods that take them.
        output, wrt, layout: as for `grad_cam`.

    Returns:
        A mapping from (method, layer) to a Heatmap.

    Raises:
        InputError: for a method that does not exist, or does not take a `score` or `relu` that is not the default.
        LayerError, TargetError, ModelError: as for `grad_cam`.

    Warns:
        EmptyMapWarning: where a map has no positive value.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> maps = explain(model, torch.rand(3, 1, 8, 8), 2, ["0", "1"], ["grad_cam", "layer_cam"], relu=False)
    >>> len(maps), maps["layer_cam", "1"].values.shape
    (4, torch.Size([3, 6, 6]))
    """
    check_score(score)
    for what, several in (("layers", layers), ("methods", methods)):
        if several is not None and not one_or_several(several):
            raise InputError(f"{what} is empty: name at least one, or leave it out")
    names = list(CAM_METHODS) if methods is None else [_known(name) for name in one_or_several(methods)]
    options = {name: _options(name, score, relu) for name in names}
    by_gradient = [name for name in names if name in CAM_METHODS]
    read: dict[str, Any] = {"output": output, "wrt": wrt, "layout": layout}
    with prepared(model, x, **read) as given:
        asked = one_or_several(layers) if layers is not None else [None]
        places = list(dict.fromkeys(layer_of(given, layer, targets) for layer in asked))
        heatmaps = {}
        if by_gradient:
            with trace(given, places, targets, score) as run:
                for place in places:
                    require_places(given.model, place, run.maps(place))
                formulas = [CAM_METHODS[name].formula for name in by_gradient]
                maps = cam_maps_of_layers(run, places, formulas)
            for place in places:
                for name, values in zip(by_gradient, maps.pop(place), strict=True):
                    values = positive(values, place, run.targets) if relu else values
                    title = CAM_METHODS[name].title
                    heatmaps[name, place] = heatmap_of(title, given, place, values, run, signed=not relu)
    known = methods_of("cam")
    for name in names:
        for place in places if name not in CAM_METHODS else ():
            heat: Any = known[name].explain(model, x, target=targets, layer=place, **options[name], **read)
            heatmaps[name, place] = heat
    return Explanation({(name, place): heatmaps[name, place] for name in names for place in places})


def smoothed_cam(
    model: Model,
    x: Input,
    layer: LayerName | None = None,
    target: Target = None,
    *,
    method: str = "grad_cam",
    flips: bool | None = None,
    samples: int = 0,
    noise: float = 0.1,
    seed: int = 0,
    score: Score = "logit",
    relu: bool = True,
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Heatmap:
    """Average a heatmap over copies of each image: flipped left to right (and the map flipped back), and noisy.

    The class, where None, is that of the image itself, and what is averaged are the maps before their ReLU. Every image
    meets the same noise, drawn from `seed` alone.

    Args:
        model, x, layer, target, score, relu, output, wrt, layout: as for `grad_cam`.
        method: the name of a function that gives a heatmap, as `layer_cam`.
        flips: whether the flipped image is one of the copies; by default not for signals, which would run backwards,
            and not for functions of your own, which may refer to a side. Regions and boxes of `torchviz_cnn.targets`
            are flipped with the image.
        samples: how many noisy copies there are besides (0).
        noise: the deviation of the Gaussian noise as a share of the image's range (its maximum minus its minimum).
        seed: seed of the noise (0).

    Returns:
        A Heatmap of the shapes that the method gives.

    Raises:
        InputError: for an unknown method, no copies, and negative noise.
        LayerError, TargetError, ModelError: as for the method.

    Warns:
        EmptyMapWarning: where a map has no positive value.

    The idea of noisy copies: Smilkov et al., arXiv 1706.03825.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> smoothed_cam(model, torch.rand(3, 1, 8, 8), "1", target=2, samples=2, relu=False).method
    'Grad-CAM, smoothed'
    """
    options = _options(_known(method), score, relu)
    checks.whole_number("samples", samples, 0)
    checks.number("noise", noise, 0)
    checks.whole_number("seed", seed, 0)
    averaged = {**options, "relu": False} if "relu" in options else options
    read: dict[str, Any] = {"output": output, "wrt": wrt, "layout": layout}
    run: Callable[..., Any] = partial(methods_of("cam")[method].explain, model, **averaged, **read)
    with prepared(model, x, **read) as given:
        if flips is None:
            flips = len(given.input_size) > 1 and (not callable(target) or isinstance(target, ReadyTarget))
        if not flips and not samples:
            raise InputError("there is nothing to average: ask for samples, or for flips")
        heat: Heatmap = run(x, layer=layer, target=target)
        same: Target = heat.target if target is None else target
        mirrored = same
        if isinstance(target, ReadyTarget):
            same = asked(given, target, score).reader.function
            mirrored = same.mirrored(given.input_size[-1]) if isinstance(same, ReadyTarget) else same
        total, count = heat.values, 1
        for copy, flipped in _copies(given.x, flips, samples, noise, seed):
            values = run(given.inputs(copy), layer=heat.layer, target=mirrored if flipped else same).values
            total, count = total + (values.flip(-1) if flipped else values), count + 1
        fields = {**fields_of(heat), "values": total / count, "method": f"{heat.method}, smoothed"}
        if not relu or "relu" not in options:
            return type(heat)(**fields)
        single = heat.target.ndim == 1
        classes = heat.target[:, None] if single else heat.target
        explained = Targets(heat.logits, classes, single, reader=reader_of(given, target))
        values = positive(fields["values"][:, None] if single else fields["values"], heat.layer, explained)
        return Heatmap(**{**fields, "values": explained.squeezed(values)})


def _copies(images: Tensor, flips: bool, samples: int, noise: float, seed: int) -> Iterator[tuple[Tensor, bool]]:
    """Changed copies of a batch, and whether each is flipped."""
    if flips:
        yield images.flip(-1), True
    flat = images.flatten(1)
    spread = noise * (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (images.ndim - 1))
    for one in gaussian(seed, samples, images[0]):
        yield images + spread * one, False


def _known(method: str) -> str:
    name: str = checks.one_of("method", method, methods_of("cam"))
    return name


def _options(method: str, score: Score, relu: bool) -> dict[str, Any]:
    """The options that a method takes; raises InputError where it does not take one that is not the default."""
    given: dict[str, Any] = {"score": score, "relu": relu}
    taken = methods_of("cam")[method].options
    for name, default in (("score", "logit"), ("relu", True)):
        if name not in taken and given[name] != default:
            raise InputError(f"{method} takes no {name}: leave it out, or the method")
    return {name: value for name, value in given.items() if name in taken}
