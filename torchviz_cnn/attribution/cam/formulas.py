"""Class heatmaps of a layer: Grad-CAM and its variants, each a formula.

A variant is a function of a layer's activations (B, C, *S) and the gradients of K scores with respect to them
(B, K, C, *S) that gives maps (B, K, *S), with one, two or three spatial dimensions. `cam_method` makes the public
function of it and adds it to `CAM_METHODS`, which API, command line, page and docs read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchviz_cnn.attribution.cam.heatmap import Heatmap, Layer, heatmap_of, positive, require_places
from torchviz_cnn.hooks.inputs import Given, Input, LayoutName, Output, Wrt, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.targets import Score, Target, check_score
from torchviz_cnn.scores.trace import Trace, layer_of, trace

_ROUNDING = 16 * torch.finfo(torch.float32).eps
Formula = Callable[[Tensor, Tensor], Tensor]
"""(activations (B, C, *S), gradients (B, K, C, *S)) -> maps (B, K, *S), in float32."""


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
        output: Output = None,
        wrt: Wrt = None,
        layout: LayoutName = None,
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
    of_class: bool = True
    """Whether its maps depend on the gradients, and so on the class."""


CAM_METHODS: dict[str, CamMethod] = {}
"""All methods that weigh a layer's activations by gradients, by the name of their function."""

_ARGUMENTS = """
    Only what follows the layer is differentiated, all K classes in one forward and one batched backward pass.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) on the model's scale or, with a Network, a photo or several; also signals (B, C, L), and
            volumes or videos (B, C, D, H, W). Of a model of several inputs a tuple, or a dict of keyword inputs.
        layer: a dotted name, or the module; by default the last map that has the resolution of the last convolution,
            after its activation, or the last tokens on whose places the score depends (the result's `layer` says
            which).
        target: None for each image's top class, an index, a class name (with a Network), (B,) or (B, K); or a function
            of the model's output that gives (B,) or (B, K), as `torchviz_cnn.targets` has them.
        score: `logit` as in the paper, `probability` as in the textbook, `log_probability`, or `cross_entropy` (a
            loss: its map shows the evidence against the class).
        relu: whether negative evidence is left out, as in the paper. Else the map is drawn with it: see
            `SignedHeatmap`.
        output: what of the model's output is explained: a key, an index, an attribute (`"out"`, `"heads.0.logits"`),
            or a function that picks the tensor. By default class scores are looked for.
        wrt: which of several inputs the batch of images is; by default the first.
        layout: how the layer's tensor is read: `channels_first` (B, C, *S), `channels_last` (B, *S, C), or tokens
            (B, N, C) by the grid that the last of them make, as (14, 14); by default it is recognised.

    Returns:
        A Heatmap with values (B, h, w) or (B, K, h, w); of signals (B, l), of volumes (B, d, h, w).

    Raises:
        LayerError: for a layer that does not exist, is not reached or has no map, as tokens that make no grid.
        TargetError: for a class that the network does not have, and a function that gives something else.
        ModelError: for a network without class scores, and where no gradient comes back.

    Warns:
        EmptyMapWarning: where a map has no positive value.

    {paper}.
"""


def cam_method(title: str, shows: str, paper: str, *, of_class: bool = True) -> Callable[[Formula], CamFunction]:
    """Make a formula a method of the library: a function of its name, and a row of `CAM_METHODS`.

    One that is not `of_class` reads no gradient, and gives the same for every class: none is computed for it alone.
    """

    def register(formula: Formula) -> CamFunction:
        def function(
            model: Model,
            x: Input,
            layer: Layer = None,
            target: Target = None,
            *,
            score: Score = "logit",
            relu: bool = True,
            output: Output = None,
            wrt: Wrt = None,
            layout: LayoutName = None,
        ) -> Heatmap:
            check_score(score)
            with prepared(model, x, output=output, wrt=wrt, layout=layout) as given:
                return _explain(CAM_METHODS[name], given, layer, target, score, relu)

        name: str = formula.__name__  # type: ignore[attr-defined]
        function.__name__ = function.__qualname__ = name
        text, _, example = inspect.cleandoc(formula.__doc__ or "").partition("\n\n>>>")
        parts = [text, inspect.cleandoc(_ARGUMENTS).format(paper=paper), *([f">>>{example}"] if example else [])]
        function.__doc__ = "\n\n".join(parts) + "\n"
        CAM_METHODS[name] = CamMethod(title, formula, function, shows, paper, of_class)
        return function

    return register


@cam_method("Grad-CAM", "the regions of a layer that hold evidence for a class", "Selvaraju et al., arXiv 1610.02391")
def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute Grad-CAM: a layer's maps, each weighted by the mean gradient of the score over it.

        values = ReLU( sum_c  mean_S( d score / d A_c )  A_c )

    >>> from torch import nn
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> grad_cam(model, torch.rand(3, 1, 8, 8), "1", target=4, relu=False).values.shape
    torch.Size([3, 6, 6])
    """
    return torch.einsum("bkc,bc...->bk...", gradients.flatten(3).mean(3), activations)


@cam_method("LayerCAM", "finer places that hold evidence for a class, in early layers too", "Jiang et al., TIP 2021")
def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute LayerCAM: a layer's maps, each place weighted by its own positive gradient: sum_c relu(G_c) A_c."""
    return (gradients.relu() * activations[:, None]).sum(2)


@cam_method(
    "HiResCAM",
    "the places that hold evidence for a class, each by its own gradient",
    "Draelos & Carin, arXiv 2011.08891",
)
def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute HiResCAM: a layer's maps, each place weighted by its own gradient: sum_c G_c A_c."""
    return (gradients * activations[:, None]).sum(2)  # not einsum, which makes a product of matrices for each place


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
    products = (gradients * activations[:, None]).flatten(3).sum(3)
    sums = activations.flatten(2).sum(2)[:, None]
    return torch.einsum("bkc,bc...->bk...", torch.where(sums != 0, products / sums, 0), activations)


@cam_method(
    "Eigen-CAM",
    "what a layer's channels have most in common in a photo, whatever the class",
    "Muhammad & Yeasin, arXiv 2008.00299",
    of_class=False,
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
    """The maps (B, K, *S) of several formulas at one layer of a trace, before their ReLU."""
    return cam_maps_of_layers(run, [layer], formulas, keep_graph=keep_graph)[layer]


def cam_maps_of_layers(
    run: Trace, layers: Sequence[str], formulas: Sequence[Formula], *, keep_graph: bool = False
) -> dict[str, list[Tensor]]:
    """The same of several layers, from one batched backward pass."""
    parts: dict[str, list[list[Tensor]]] = {layer: [[] for _ in formulas] for layer in layers}
    for gradients in run.gradients(layers, keep_graph=keep_graph):
        for layer in layers:
            activations = run.maps(layer).float()
            gradient = run.required(layer, gradients.pop(layer))
            with torch.autocast(activations.device.type, enabled=False):
                for maps, formula in zip(parts[layer], formulas, strict=True):
                    maps.append(formula(activations, gradient))
    return {layer: [torch.cat(maps, 1) for maps in of_layer] for layer, of_layer in parts.items()}


def _explain(method: CamMethod, given: Given, layer: Layer, target: Target, score: Score, relu: bool) -> Heatmap:
    name = layer_of(given, layer, target)
    with torch.set_grad_enabled(method.of_class), trace(given, [name], target, score) as run:
        require_places(given.model, name, run.maps(name))
        values = cam_maps(run, name, [method.formula])[0] if method.of_class else _of_any_class(run, name, method)
    if relu:
        values = positive(values, name, run.targets)
    return heatmap_of(method.title, given, name, values, run, signed=not relu)


def _of_any_class(run: Trace, layer: str, method: CamMethod) -> Tensor:
    """The maps (B, K, *S) of a formula that reads no gradient but for their number."""
    activations = run.maps(layer).float()
    unread = activations.new_zeros(()).expand(len(activations), run.targets.scores.shape[1], *activations.shape[1:])
    with torch.autocast(activations.device.type, enabled=False):
        return method.formula(activations, unread)
