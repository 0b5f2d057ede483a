"""Class heatmaps of a layer: Grad-CAM and its variants, each a formula, and exact class activation maps.

A variant is a function of a layer's activations (B, C, *S) and the gradients of K scores with respect to them
(B, K, C, *S) that gives maps (B, K, *S). Today's traces give maps of two dimensions, *S = (h, w). `cam_method` makes
the public function of it and adds it to `CAM_METHODS`, which API, command line, page and docs read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.attribution.result import ClassMap, of_targets, warn_of_empty
from torchviz_cnn.core.errors import LayerError, ModelError
from torchviz_cnn.core.names import LayerName
from torchviz_cnn.hooks.inputs import Given, Input, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.media import render
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.runs import files
from torchviz_cnn.scores.gradients import require_gradient
from torchviz_cnn.scores.outputs import class_outputs
from torchviz_cnn.scores.targets import Score, Target, Targets, check_score
from torchviz_cnn.scores.trace import Trace, layer_of, trace

Layer = LayerName | Sequence[LayerName] | None
"""A layer by its name or as a module, alone or in a list; None for the one that is explained by default."""
_ROUNDING = 16 * torch.finfo(torch.float32).eps
Formula = Callable[[Tensor, Tensor], Tensor]
"""(activations (B, C, *S), gradients (B, K, C, *S)) -> maps (B, K, *S), in float32."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Heatmap(ClassMap):
    """How strong the evidence for a class is at each place of a layer. Raw values: see `ClassMap`.

    After the ReLU, `values` are at least 0.
    """

    layer: str
    activations: Tensor
    """What the layer gave: (B, C, h, w)."""

    def _title(self) -> str:
        return f"{self.method}, {self.layer}"

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

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        return f"Heatmap({self.method} at {self.layer}: {shape}, classes {self.target.tolist()})"


class CamFunction(Protocol):
    """The signature that all methods of `CAM_METHODS` share."""

    __name__: str

    def __call__(
        self,
        model: Model,
        x: Input,
        layer: Layer = None,
        target: Target = None,
        *,
        score: Score = "logit",
        relu: bool = True,
    ) -> Heatmap: ...


@dataclass(frozen=True)
class CamMethod:
    """A row of the table of methods."""

    title: str
    """As papers write it: `Grad-CAM`."""
    formula: Formula
    function: CamFunction
    shows: str
    """What the map shows, in a few words."""
    paper: str


CAM_METHODS: dict[str, CamMethod] = {}
"""All methods that weigh a layer's activations by gradients, by the name of their function."""

_ARGUMENTS = """
    Only what follows the layer is differentiated, all K classes in one forward and one batched backward pass.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) on the model's scale or, with a Network, a photo or several.
        layer: a dotted name, or the module; by default the last map that has the resolution of the last convolution,
            after its activation (the result's `layer` says which).
        target: None for each image's top class, an index, a class name (with a Network), (B,) or (B, K).
        score: `logit` as in the paper, `probability` as in the textbook, `log_probability`, or `cross_entropy` (a
            loss: its map shows the evidence against the class).
        relu: whether negative evidence is left out, as in the paper.

    Returns:
        A Heatmap with values (B, h, w) or (B, K, h, w).

    Raises:
        LayerError: for a layer that does not exist, is not reached or has no map (B, C, h, w).
        TargetError: for a class that the network does not have.
        ModelError: for a network without class scores, and where no gradient comes back.

    Warns:
        EmptyMapWarning: where a map has no positive value.

    {paper}.
"""


def cam_method(title: str, shows: str, paper: str) -> Callable[[Formula], CamFunction]:
    """Make a formula a method of the library: a function of its name, and a row of `CAM_METHODS`."""

    def register(formula: Formula) -> CamFunction:
        def function(
            model: Model,
            x: Input,
            layer: Layer = None,
            target: Target = None,
            *,
            score: Score = "logit",
            relu: bool = True,
        ) -> Heatmap:
            return _explain(title, formula, model, x, layer, target, score, relu)

        name: str = formula.__name__  # type: ignore[attr-defined]
        function.__name__ = function.__qualname__ = name
        text, _, example = inspect.cleandoc(formula.__doc__ or "").partition("\n\n>>>")
        parts = [text, inspect.cleandoc(_ARGUMENTS).format(paper=paper), *([f">>>{example}"] if example else [])]
        function.__doc__ = "\n\n".join(parts) + "\n"
        CAM_METHODS[name] = CamMethod(title, formula, function, shows, paper)
        return function

    return register


@cam_method("Grad-CAM", "the regions of a layer that hold evidence for a class", "Selvaraju et al., arXiv 1610.02391")
def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute Grad-CAM: a layer's maps, each weighted by the mean gradient of the score over it.

        values = ReLU( sum_c  mean_S( d score / d A_c )  A_c )

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> grad_cam(model, torch.rand(3, 1, 8, 8), "1", target=4, relu=False).values.shape
    torch.Size([3, 6, 6])
    """
    return torch.einsum("bkc,bc...->bk...", gradients.flatten(3).mean(3), activations)


@cam_method("LayerCAM", "finer places that hold evidence for a class, in early layers too", "Jiang et al., TIP 2021")
def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute LayerCAM: a layer's maps, each place weighted by its own positive gradient: sum_c relu(G_c) A_c."""
    return torch.einsum("bkc...,bc...->bk...", gradients.relu(), activations)


@cam_method(
    "HiResCAM",
    "the places that hold evidence for a class, each by its own gradient",
    "Draelos & Carin, arXiv 2011.08891",
)
def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute HiResCAM: a layer's maps, each place weighted by its own gradient: sum_c G_c A_c."""
    return torch.einsum("bkc...,bc...->bk...", gradients, activations)


@cam_method(
    "Grad-CAM++",
    "regions that hold evidence, also where an object is there several times",
    "Chattopadhyay et al., arXiv 1710.11063",
)
def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute Grad-CAM++: a layer's maps, weighted by positive gradients that count the more the fewer they are.

    values = ReLU( sum_c  sum_S( a_c relu(G_c) )  A_c ),   a_c = G_c^2 / (2 G_c^2 + sum_S(A_c) G_c^3)
    """
    sums = activations.flatten(2).sum(2)[(...,) + (None,) * (activations.ndim - 2)][:, None]
    # Both sides of the fraction divided by the gradient's square, which may be too small for float32.
    shares = torch.where(gradients != 0, 1 / (2 + sums * gradients), 0)
    weights = (shares * gradients.relu()).flatten(3).sum(3)
    return torch.einsum("bkc,bc...->bk...", weights, activations)


@cam_method(
    "XGrad-CAM",
    "regions whose activations account for the score, channel by channel",
    "Fu et al., arXiv 2008.02312",
)
def xgrad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute XGrad-CAM: a layer's maps, each weighted by the mean of its gradient where it is active.

    values = ReLU( sum_c  w_c A_c ),   w_c = sum_S(G_c A_c) / sum_S(A_c)
    """
    products = torch.einsum("bkc...,bc...->bkc", gradients, activations)
    sums = activations.flatten(2).sum(2)[:, None]
    return torch.einsum("bkc,bc...->bk...", torch.where(sums != 0, products / sums, 0), activations)


@cam_method(
    "Eigen-CAM",
    "what a layer's channels have most in common in a photo, whatever the class",
    "Muhammad & Yeasin, arXiv 2008.00299",
)
def eigen_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute Eigen-CAM: a layer's maps on their first principal component over channels, the same for every class.

    The larger side of the component is the positive one.
    """
    flat = activations.flatten(2)
    maps = flat - flat.mean(2, keepdim=True)
    # A channel that is the same everywhere is so but for rounding, which is nothing that channels have in common.
    maps = torch.where(maps.abs().amax(2, keepdim=True) > _ROUNDING * flat.abs().amax(2, keepdim=True), maps, 0)
    places = maps.shape[2] < maps.shape[1]  # the smaller of the two Gram matrices has the same component
    values, vectors = torch.linalg.eigh(maps.mT @ maps if places else maps @ maps.mT)
    first = vectors[..., -1]
    component = first * values[:, -1:].clamp(min=0).sqrt() if places else torch.einsum("bc,bcn->bn", first, maps)
    side = component.gather(1, component.abs().argmax(1, keepdim=True)).sign()
    shape = activations.shape[2:]
    return (side * component).view(-1, 1, *shape).expand(-1, gradients.shape[1], *shape)


def cam_maps(run: Trace, layer: str, formulas: Sequence[Formula], *, keep_graph: bool = False) -> list[Tensor]:
    """The maps (B, K, h, w) of several formulas at one layer of a trace, before their ReLU."""
    activations = run.activations[layer].detach().float()
    parts: list[list[Tensor]] = [[] for _ in formulas]
    for gradients in run.gradients([layer], keep_graph=keep_graph):
        gradient = require_gradient(gradients[layer], run.model, f"layer {layer!r}")
        with torch.autocast(activations.device.type, enabled=False):
            for maps, formula in zip(parts, formulas, strict=True):
                maps.append(formula(activations, gradient))
    return [torch.cat(maps, 1) for maps in parts]


def _explain(
    title: str, formula: Formula, model: Model, x: Input, layer: Layer, target: Target, score: Score, relu: bool
) -> Heatmap:
    check_score(score)
    with prepared(model, x) as given:
        name = layer_of(given, layer)
        with trace(given, [name], target, score) as run:
            require_places(given.model, name, run.activations[name])
            (values,) = cam_maps(run, name, [formula])
        if relu:
            values = positive(values, name, run.targets)
        return heatmap_of(title, given, name, values, run)


def positive(values: Tensor, layer: str, targets: Targets) -> Tensor:
    """Maps (B, K, h, w) without their negative values; warns (EmptyMapWarning) of those that have no others."""
    shown = layer.replace("{", "{{").replace("}", "}}")
    why = f"no positive evidence for class {{label}} at layer {shown!r} in image {{image}}"
    warn_of_empty(values.amax((2, 3)) <= 0, targets.classes, why)
    return values.relu()


def class_activation_map(model: Model, x: Input, target: Target = None, *, layer: Layer = None) -> Heatmap:
    """Compute the exact class activation map of a network whose score is the mean of a map, up to a constant.

        values = sum_c w_kc A_c,   score_k = mean_ij values + b_k

    Such networks end in global average pooling and a linear layer (ResNet, DenseNet, ...), or in a 1 x 1 convolution
    and global average pooling (SqueezeNet). That it holds is not looked up but measured: the score's gradient is the
    same at every place of the map (behind a ReLU: wherever the map is positive) and accounts for the whole score.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) or, with a Network, photos.
        target: as for `grad_cam`.
        layer: by default the last with a map larger than one pixel.

    Returns:
        A Heatmap with values (B, h, w) or (B, K, h, w), with their sign.

    Raises:
        ModelError: for a network that has no exact class activation map, as VGG.
        LayerError, TargetError: as for `grad_cam`.

    Zhou et al., arXiv 1512.04150.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> class_activation_map(model, torch.rand(3, 1, 8, 8), target=4).values.shape
    torch.Size([3, 6, 6])
    """
    with prepared(model, x) as given:
        name = layer_of(given, layer, pooled=True)
        with trace(given, [name], target) as run:
            leaf = run.activations[name]
            require_places(given.model, name, leaf)
            gradients = run.gradient(name)
            _require_pooled(given.model, name, leaf, gradients)
            maps = leaf.detach().float()
            with torch.autocast(maps.device.type, enabled=False):
                area = maps.shape[2] * maps.shape[3]
                values = area * torch.einsum("bkchw,bchw->bkhw", gradients, maps)
        _require_linear(given, name, leaf, values, run.targets)
        return heatmap_of("CAM", given, name, values, run)


_LARGE = 64
"""What follows a layer is linear if it is so for its own maps and for maps this many times as large."""


def _require_linear(given: Given, layer: str, leaf: Tensor, values: Tensor, targets: Targets) -> None:
    """Raise ModelError unless the maps account for the scores, and for those of much larger maps."""
    first = leaf.detach()[:1]
    large = _LARGE if leaf.dtype != torch.float16 else 1 / _LARGE  # half precision ends at 65504
    with torch.no_grad(), HookManager(given.model) as hooks:
        maps = torch.cat([0 * first, large * first])
        constant, scaled = class_outputs(hooks.run_from(layer, maps, given.x[:1]), 2, given.origin.categories)
    explained, classes = values.mean((2, 3)), targets.classes
    if not (
        _equal(targets.scores, explained + constant[classes], leaf)
        and _equal(scaled[classes[0]], large * explained[0] + constant[classes[0]], leaf)
    ):
        raise _not_pooled(given.model, layer, "what follows it is not linear")


def _require_pooled(model: nn.Module, layer: str, leaf: Tensor, gradients: Tensor) -> None:
    """Raise ModelError unless gradients (B, K, C, h, w) are one number per channel, except where a ReLU gives 0."""
    passes = gradients != 0
    weight = gradients.sum((-2, -1), keepdim=True) / passes.sum((-2, -1), keepdim=True).clamp(min=1)
    scale = gradients.abs().amax(dim=(-3, -2, -1), keepdim=True)
    tolerance = tolerance_of(leaf) * scale
    uneven = passes & ((gradients - weight).abs() > tolerance)
    blocked = ~passes & (leaf[:, None] > 0) & (weight.abs() > tolerance)
    if bool((uneven | blocked).any()):
        raise _not_pooled(model, layer, "the gradient of the score varies over it")


def _equal(a: Tensor, b: Tensor, leaf: Tensor) -> bool:
    close = (a.detach() - b.detach()).abs() <= tolerance_of(leaf) * torch.maximum(a.abs().max(), b.abs().max())
    return bool(close.all())


def tolerance_of(leaf: Tensor) -> float:
    return 1e-3 if leaf.dtype in (torch.float32, torch.float64) else 5e-2


def _not_pooled(model: nn.Module, layer: str, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} has no exact class activation map: it does not end in global average pooling and a "
        "linear layer, or a 1 x 1 convolution and global average pooling "
        f"(the last map is that of {layer!r}, and {why}); use grad_cam"
    )


def require_places(model: nn.Module, layer: str, maps: Tensor) -> None:
    if maps.shape[2:] == (1, 1):
        raise LayerError(
            f"layer {layer!r} of {type(model).__name__} gives maps of a single pixel, which locate nothing"
        )


def heatmap_of(method: str, given: Given, layer: str, values: Tensor, run: Trace) -> Heatmap:
    return Heatmap(
        values=run.targets.squeezed(values),
        layer=layer,
        method=method,
        activations=run.activations[layer].detach(),
        **of_targets(given, run.targets),
    )
