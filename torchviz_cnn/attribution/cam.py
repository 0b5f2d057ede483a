"""Class heatmaps: Grad-CAM (arXiv 1610.02391) and exact class activation maps (arXiv 1512.04150)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.attribution.result import OnPhoto, require_images, require_maps, warn_of_empty
from torchviz_cnn.core.errors import LayerError, ModelError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.untouched import lend_input, untouched
from torchviz_cnn.layers.describe import last_spatial_layer
from torchviz_cnn.media import render
from torchviz_cnn.media.images import Geometry, Preprocess, preprocess_of, to_rgb
from torchviz_cnn.runs import files
from torchviz_cnn.scores.targets import (
    Score,
    Target,
    check_score,
    class_outputs,
    gradients_at,
    resolve_target,
    score_of,
)

_LARGE = 64  # what follows a layer is linear if it is so at one size of input and at 64 times that


@dataclass(frozen=True, eq=False)
class Heatmap(OnPhoto):
    """How much each place of a layer speaks for a class. Raw values; scaled only where drawn (see `OnPhoto`)."""

    values: Tensor
    """(B, h, w), or (B, K, h, w) where K classes were asked for, float32. Grad-CAM: at least 0."""
    target: Tensor
    """The classes: (B,) or (B, K)."""
    layer: str
    method: str
    logits: Tensor
    """What the network gave for all classes: (B, n)."""
    activations: Tensor
    """What the layer gave: (B, C, h, w)."""
    input_size: tuple[int, int]
    """(H, W) of the network's input."""
    preprocess: Preprocess | None = field(default=None, repr=False)

    def plot(
        self, photo: Image.Image, *, index: int = 0, k: int = 0, alpha: float = 0.4, truth: str | None = None,
        categories: Sequence[str] | None = None, seed: int = 0, blend: render.Blend = "add", colormap: str | None = None,
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:  # fmt: skip
        """Photo, heatmap, overlay and, for comparison, a random feature map of the same layer, side by side.

        The headline names the true class (where `truth` is given), the predicted one and its probability, and the
        class that is explained.
        """
        photo = to_rgb(photo)
        generator = torch.Generator().manual_seed(seed)
        channel = int(torch.randint(self.activations.shape[1], (1,), generator=generator))
        feature = self._of(self.activations, index)[channel].detach().float().cpu().numpy()
        drawn: dict[str, Any] = {"index": index, "k": k, "colormap": colormap, "geometry": geometry}
        pictures: list[Image.Image | render.Array] = [
            photo,
            self.image(photo, **drawn),
            self.overlay(photo, alpha, blend=blend, **drawn),
            feature,
        ]
        titles = ["photo", f"{self.method}, {self.layer}", "overlay", f"a random feature map: channel {channel}"]
        return render.panel(pictures, titles, self.headline(index, k, truth, categories))

    def save(self, path: str | Path) -> Path:
        """Write values, target, logits, layer and method to a `.npz` file. Raises OutputError."""
        arrays = {"values": self.values, "target": self.target, "logits": self.logits}
        return files.save_arrays(path, {**arrays, "layer": self.layer, "method": self.method})

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        return f"Heatmap({self.method} at {self.layer}: {shape}, classes {self.target.tolist()})"


def grad_cam(
    model: nn.Module, x: Tensor, layer: str | None = None, target: Target = None, *, score: Score = "logit",
    relu: bool = True,
) -> Heatmap:  # fmt: skip
    """Grad-CAM: where a layer's maps, weighted by the mean gradient of the score, speak for a class.

        values = ReLU( sum_c  mean_ij( d score / d A_cij )  A_c )

    `x` (B, C, H, W). `layer`: a dotted name; by default the last map that has the resolution of the last convolution,
    after its activation (the result's `layer` says which). `target`: None for each image's top class, an int, (B,) or
    (B, K). `score`: `logit` as in the paper, `probability` as in the textbook, `log_probability`, `cross_entropy`
    (a loss: its map shows what speaks against the class). `relu=False` keeps negative evidence. Returns values
    (B, h, w) or (B, K, h, w).

    Only what comes after the layer is differentiated, all K classes in one forward and one batched backward pass.
    Raises LayerError for a layer that does not exist, is not reached or has no map (B, C, h, w), TargetError, and
    ModelError where no gradient comes back. Warns (EmptyMapWarning) where a map has no positive value.

    Selvaraju et al., arXiv 1610.02391.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> grad_cam(model, torch.rand(3, 1, 8, 8), "1", target=4, relu=False).values.shape
    torch.Size([3, 6, 6])
    """
    check_score(score)
    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        layer = last_spatial_layer(lent, x[:1]) if layer is None else layer
        with _from_layer(lent, x, layer) as (leaf, output):
            logits = class_outputs(output, len(x))
            classes, one = resolve_target(target, logits)
            gradients = gradients_at(lent, f"layer {layer!r}", score_of(logits, classes, score), leaf)
            with torch.autocast(x.device.type, enabled=False):
                activations = leaf.detach().float()
                maps = [torch.einsum("kbc,bchw->bkhw", g.float().mean((-2, -1)), activations) for g in gradients]
        values = torch.cat(maps, 1)
        if relu:
            values = _positive(values, classes, layer)
        return _heatmap("Grad-CAM", lent, x, layer, values, classes, one, logits, leaf)


def class_activation_map(model: nn.Module, x: Tensor, target: Target = None, *, layer: str | None = None) -> Heatmap:
    """The exact class activation map of a network whose score is the mean of a map, up to a constant.

        values = sum_c w_kc A_c,   score_k = mean_ij values + b_k

    Such networks end in global average pooling and a linear layer (ResNet, DenseNet, ...), or in a 1 x 1 convolution
    and global average pooling (SqueezeNet). That it holds is not looked up but measured: the score's gradient is the
    same at every place of the map (behind a ReLU: wherever the map is positive) and accounts for the whole score.
    Raises ModelError where it does not, as for VGG.

    `x` (B, C, H, W); `target` as in `grad_cam`; `layer`: by default the last with a map larger than one pixel. Returns
    values (B, h, w) or (B, K, h, w), with their sign.

    Zhou et al., arXiv 1512.04150.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> class_activation_map(model, torch.rand(3, 1, 8, 8), target=4).values.shape
    torch.Size([3, 6, 6])
    """
    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        layer = last_spatial_layer(lent, x[:1], pooled=True) if layer is None else layer
        with _from_layer(lent, x, layer) as (leaf, output):
            logits = class_outputs(output, len(x))
            classes, one = resolve_target(target, logits)
            scores = logits.gather(1, classes)
            gradients = gradients_at(lent, f"layer {layer!r}", scores, leaf)
            area = leaf.shape[2] * leaf.shape[3]
            maps = []
            with torch.autocast(x.device.type, enabled=False):
                for gradient in gradients:
                    _require_pooled(lent, layer, leaf, gradient)
                    maps.append(area * torch.einsum("kbchw,bchw->bkhw", gradient.float(), leaf.detach().float()))
        values = torch.cat(maps, 1)
        explained = values.mean((2, 3))
        first = leaf.detach()[:1]
        large = _LARGE if leaf.dtype != torch.float16 else 1 / _LARGE  # half precision ends at 65504
        constant, scaled = _output_for(lent, x[:1], layer, torch.cat([0 * first, large * first]))
        if not (
            _equal(scores, explained + constant[classes], leaf)
            and _equal(scaled[classes[0]], large * explained[0] + constant[classes[0]], leaf)
        ):
            raise _not_pooled(lent, layer, "what follows it is not linear")
        return _heatmap("CAM", lent, x, layer, values, classes, one, logits, leaf)


def _output_for(model: nn.Module, x: Tensor, layer: str, maps: Tensor) -> Tensor:
    """The class outputs (n, classes) that other maps (n, C, h, w) at a layer lead to. `x` is one image (1, C, H, W)."""
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward(layer, lambda name, output: maps)
        output = hooks.run(x.expand(len(maps), -1, -1, -1).contiguous(), stop_early=False)
    return class_outputs(output, len(maps))


@contextmanager
def _from_layer(model: nn.Module, x: Tensor, layer: str) -> Iterator[tuple[Tensor, Any]]:
    """Run the model with the layer's output as the leaf of the graph: nothing before it is differentiated.

    Gives the leaf and the model's output. Differentiate inside the block: with activation checkpointing, the layer runs
    again then.
    """
    leaf: Tensor | None = None

    def lift(name: str, output: Any) -> Tensor:
        nonlocal leaf
        require_maps(model, name, output, len(x))
        if output.shape[2:] == (1, 1):
            raise LayerError(
                f"layer {name!r} of {type(model).__name__} gives maps of a single pixel, which locate nothing"
            )
        if leaf is None:
            leaf = output.detach().clone().requires_grad_()
        return leaf.clone()  # what follows may overwrite it in place

    with HookManager(model) as hooks:
        hooks.on_forward(layer, lift)
        output = hooks.run(x, stop_early=False)
        hooks.require_reached()
        assert leaf is not None  # since the layer was reached
        yield leaf, output


def _require_pooled(model: nn.Module, layer: str, leaf: Tensor, gradient: Tensor) -> None:
    """Raise ModelError unless the gradient (k, B, C, h, w) is one number per channel, save where a ReLU is shut."""
    open_ = gradient != 0
    weight = gradient.sum((-2, -1), keepdim=True) / open_.sum((-2, -1), keepdim=True).clamp(min=1)
    scale = gradient.abs().amax(dim=(-3, -2, -1), keepdim=True)
    tolerance = _tolerance(leaf) * scale
    uneven = open_ & ((gradient - weight).abs() > tolerance)
    shut = ~open_ & (leaf > 0) & (weight.abs() > tolerance)
    if bool((uneven | shut).any()):
        raise _not_pooled(model, layer, "the gradient of the score varies over it")


def _equal(a: Tensor, b: Tensor, leaf: Tensor) -> bool:
    close = (a.detach() - b.detach()).abs() <= _tolerance(leaf) * torch.maximum(a.abs().max(), b.abs().max())
    return bool(close.all())


def _tolerance(leaf: Tensor) -> float:
    return 1e-3 if leaf.dtype in (torch.float32, torch.float64) else 5e-2


def _not_pooled(model: nn.Module, layer: str, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} has no exact class activation map: it does not end in global average pooling and a linear "
        f"layer, or a 1 x 1 convolution and global average pooling (the last map is that of {layer!r}, and {why}); use grad_cam"
    )


def _positive(values: Tensor, classes: Tensor, layer: str) -> Tensor:
    values = values.relu()
    name = layer.replace("{", "{{").replace("}", "}}")
    why = f"no positive evidence for class {{label}} at layer {name!r} in image {{image}}"
    warn_of_empty(values.amax((2, 3)) <= 0, classes, why)
    return values


def _heatmap(
    method: str, model: nn.Module, x: Tensor, layer: str, values: Tensor, classes: Tensor, one: bool, logits: Tensor,
    leaf: Tensor,
) -> Heatmap:  # fmt: skip
    return Heatmap(
        values=values[:, 0] if one else values,
        target=classes[:, 0] if one else classes,
        layer=layer,
        method=method,
        logits=logits.detach(),
        activations=leaf.detach(),
        input_size=(x.shape[2], x.shape[3]),
        preprocess=preprocess_of(model),
    )
