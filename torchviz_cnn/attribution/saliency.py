"""Which pixels a class score depends on: its gradient with respect to the input, plain, guided or averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.attribution.result import OnPhoto, keep_maps, require_images, require_maps, warn_of_empty
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.relu_rules import OtherActivations, ReluRule, Rule, relu_rule
from torchviz_cnn.hooks.untouched import lend_input, untouched
from torchviz_cnn.layers.describe import LastMap
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

Channels = Literal["max", "sum"]


@dataclass(frozen=True, eq=False)
class Saliency(OnPhoto):
    """How much each pixel of the input matters for a class. Raw values; scaled only where drawn (see `OnPhoto`)."""

    palette: ClassVar[str] = "gray"
    photo_palette: ClassVar[str] = "hot"

    gradients: Tensor
    """The gradient, or the attribution, of each input value with its sign: (B, C, H, W), or (B, K, C, H, W), float32."""
    values: Tensor
    """Its absolute value, the channels' maximum or sum: (B, H, W) or (B, K, H, W)."""
    target: Tensor
    """The classes: (B,) or (B, K)."""
    method: str
    logits: Tensor
    """What the network gave for all classes: (B, n)."""
    input_size: tuple[int, int]
    """(H, W) of the network's input."""
    preprocess: Preprocess | None = field(default=None, repr=False)
    completeness_error: Tensor | None = None
    """Integrated gradients: sum of all attributions minus the difference of the scores they explain, (B,) or (B, K)."""
    score: Score = "logit"
    """Which number of the class was explained."""

    def map(self, index: int = 0, k: int = 0) -> render.Array:
        """One map (H, W) from its minimum to its maximum as 0..1; a constant one is zeros."""
        values = self._of(self.values, index, k).double().cpu().numpy()
        return render.unit_range(values - values.min())

    def grey(self, index: int = 0, k: int = 0) -> render.Array:
        """One map (H, W) as grey pixels, its minimum 0 and its maximum 255: uint8, cut off as the textbook does."""
        return np.asarray(self.map(index, k) * 255).astype(np.uint8)

    def clipped(self, percentile: float = 99.5) -> Saliency:
        """The same with each map's strongest values cut down to this percentile, so that a picture shows the others too."""
        if not 0 < percentile <= 100:
            raise InputError(f"a percentile is more than 0 and at most 100, not {percentile}")
        level = torch.quantile(self.values.flatten(-2), percentile / 100, -1)
        return replace(self, values=torch.minimum(self.values, level[..., None, None]))

    def signed(self, index: int = 0, k: int = 0, percentile: float = 99.5) -> render.Array:
        """The sum over channels with its sign as 0..1 (H, W): 0.5 is nothing, 0 and 1 this percentile of its strength.

        Above 0.5 speaks for the class: of a cross-entropy, which rises where the class is lost, the sign is turned.
        """
        values = self._of(self.gradients, index, k).double().sum(0).cpu().numpy()
        values = -values if self.score == "cross_entropy" else values
        peak = max(float(np.percentile(np.abs(values), percentile)), np.finfo(np.float64).tiny)
        return np.asarray(0.5 + 0.5 * np.clip(values / peak, -1, 1))

    def signed_image(
        self, photo: Image.Image | None = None, *, index: int = 0, k: int = 0, colormap: str = "seismic",
        interpolation: render.Interpolation = "bilinear", geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:  # fmt: skip
        """What speaks for the class in red and against it in blue: at the photo's size and place, or the input's."""
        return self._drawn(self.signed(index, k), photo, colormap, interpolation, geometry)

    def colour_image(self, index: int = 0, k: int = 0) -> Image.Image:
        """The gradient itself as a picture (H, W), as guided backpropagation is shown: grey is 0, see `render.signed_colours`."""
        return Image.fromarray(render.signed_colours(self._of(self.gradients, index, k).cpu().numpy()))

    def plot(
        self, photo: Image.Image, *, index: int = 0, k: int = 0, alpha: float = 0.4, truth: str | None = None,
        categories: Sequence[str] | None = None, blend: render.Blend = "add", colormap: str | None = None,
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:  # fmt: skip
        """Photo, map in grey, map with its sign, and the map over the photo (in `hot`), side by side; see `clipped`."""
        photo, shown = to_rgb(photo), self.clipped()
        over = shown.overlay(
            photo, alpha, index=index, k=k, blend=blend, colormap=colormap, geometry=geometry
        )  # fmt: skip
        alone = shown.image(photo, index=index, k=k, colormap=colormap, geometry=geometry)
        signed = self.signed_image(photo, index=index, k=k, geometry=geometry)
        return render.panel(
            [photo, alone, signed, over],
            ["photo", self.method, "for (red) and against (blue)", "overlay"],
            self.headline(index, k, truth, categories),
        )

    def save(self, path: str | Path) -> Path:
        """Write gradients, values, target, logits and method to a `.npz` file. Raises OutputError."""
        arrays = {"gradients": self.gradients, "values": self.values, "target": self.target, "logits": self.logits}
        return files.save_arrays(path, {**arrays, "method": self.method})

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.gradients.shape))
        return f"Saliency({self.method}: {shape}, classes {self.target.tolist()})"


def saliency(
    model: nn.Module, x: Tensor, target: Target = None, *, relu: Rule = "standard", score: Score = "logit",
    channels: Channels = "max", other_activations: OtherActivations = "error",
) -> Saliency:  # fmt: skip
    """The gradient of a class score with respect to the input: which pixels, changed a little, change the score most.

    `x` (B, C, H, W). `target`: None for each image's top class, an int, (B,) or (B, K). Gives `gradients` (B, C, H, W)
    and `values` (B, H, W), their absolute value's maximum or sum over the channels; with K more in front for (B, K),
    from one forward and one batched backward pass. As the textbook does it: `score="cross_entropy", channels="sum"`.

    `relu="guided"` is guided backpropagation, `"deconvnet"` the deconvnet of the score; for both see `relu_rule`, and
    `other_activations` there. Raises TargetError; InputError for a wrong option; ModelError where no gradient comes
    back; LayerError where the rule meets no ReLU, or another activation. Warns (EmptyMapWarning) where all is zero.

    Simonyan et al., arXiv 1312.6034; Springenberg et al., arXiv 1412.6806.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> found = saliency(model, torch.rand(4, 3, 8, 8), target=1)
    >>> found.gradients.shape, found.values.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4, 8, 8]))
    """
    check_options(score, channels)
    rule = relu_rule(relu, other_activations=other_activations)
    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        logits, classes, one, gradients = differentiate(lent, x, target, score, rule)
        name = {"standard": "saliency", "guided": "guided backpropagation", "deconvnet": "deconvnet"}[relu]
        return explained(name, lent, x, gradients, channels, classes, one, logits, score)


def input_x_gradient(
    model: nn.Module, x: Tensor, target: Target = None, *, score: Score = "logit", channels: Channels = "max"
) -> Saliency:
    """The input times the gradient of the score: what each value contributes to the score, to the first order.

    Arguments, shapes and errors as for `saliency`. Shrikumar et al., arXiv 1605.01713.
    """
    check_options(score, channels)
    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        logits, classes, one, gradients = differentiate(lent, x, target, score)
        gradients = gradients * x.detach().float()[:, None]
        return explained("input x gradient", lent, x, gradients, channels, classes, one, logits, score)


def guided_grad_cam(
    model: nn.Module, x: Tensor, layer: str | None = None, target: Target = None, *, score: Score = "logit",
    channels: Channels = "max", interpolation: Literal["bilinear", "nearest"] = "bilinear",
    other_activations: OtherActivations = "error",
) -> Saliency:  # fmt: skip
    """Guided backpropagation times Grad-CAM: fine detail, only where the class is. From a single forward pass.

    `layer`: whose maps Grad-CAM weighs, by default as `grad_cam` chooses it; its map, after ReLU, is enlarged to the
    input. Other arguments, shapes and errors as for `saliency` and `grad_cam`.

    Selvaraju et al., arXiv 1610.02391, section 3.2.
    """
    check_options(score, channels)
    if interpolation not in ("bilinear", "nearest"):
        raise InputError(f"interpolation is 'bilinear' or 'nearest', not {interpolation!r}")
    with untouched(model) as lent:
        x = lend_input(lent, require_images(x))
        rule = relu_rule("guided", other_activations=other_activations)
        leaf = x.detach().requires_grad_()
        with HookManager(lent) as hooks:
            name, maps, output = _with_maps(lent, hooks, leaf, layer, rule)
            rule.require_met(lent)
            logits = class_outputs(output, len(x))
            classes, one = resolve_target(target, logits)
            weights, guided = _under_both_rules(lent, name, score_of(logits, classes, score), maps, leaf, rule)
        with torch.autocast(x.device.type, enabled=False):
            cam = torch.einsum("kbc,bchw->bkhw", weights, maps.detach().float()).relu()
            smooth = {"align_corners": False} if interpolation == "bilinear" else {}
            cam = nn.functional.interpolate(cam, x.shape[2:], mode=interpolation, **smooth)
        gradients = guided * cam[:, :, None]
        return explained("guided Grad-CAM", lent, x, gradients, channels, classes, one, logits, score)


def _with_maps(
    model: nn.Module, hooks: HookManager, leaf: Tensor, layer: str | None, rule: ReluRule
) -> tuple[str, Tensor, Any]:
    """Run a lent model under a rule, to the end: the layer, its maps as part of the graph, and the output."""

    def run() -> Any:
        with rule:
            return hooks.run(leaf.clone(), stop_early=False)

    if layer is None:
        last = LastMap(model)
        hooks.on_forward([f"{name}#*" for name in last.layers], last.follow)
        output = run()
        layer = last.require()
        if last.output is not None and not last.overwritten:
            return layer, require_maps(model, layer, last.output, len(leaf)), output
    kept: dict[str, Tensor] = {}
    hooks.on_forward(layer, keep_maps(model, len(leaf), kept))
    output = run()
    hooks.require_reached()
    return layer, kept[layer], output


def _under_both_rules(
    model: nn.Module, layer: str, scores: Tensor, maps: Tensor, leaf: Tensor, rule: ReluRule
) -> tuple[Tensor, Tensor]:
    """Gradients of scores (B, K) from one graph: the plain ones of a layer's maps, averaged over each, (K, B, c), and the
    guided ones of the input, (B, K, C, H, W)."""
    rule.rule = "standard"
    parts = gradients_at(model, f"layer {layer!r}", scores, maps, keep_graph=True)
    weights = torch.cat([part.float().mean((-2, -1)) for part in parts])
    rule.rule = "guided"
    return weights, _input_gradients(model, scores, leaf)


def differentiate(
    model: nn.Module, x: Tensor, target: Target, score: Score, rule: ReluRule | None = None
) -> tuple[Tensor, Tensor, bool, Tensor]:
    """Logits (B, n), classes (B, K), whether one was asked for, and the scores' gradients (B, K, C, H, W) in float32.

    For a lent model and input. A rule, other than the standard one, that meets no ReLU raises LayerError.
    """
    ruling = rule if rule is not None and rule.rule != "standard" else None
    leaf = x.detach().requires_grad_()
    with HookManager(model) as hooks:
        with ruling or contextlib.nullcontext():
            output = hooks.run(leaf.clone(), stop_early=False)
        if ruling:
            ruling.require_met(model)
        logits = class_outputs(output, len(x))
        classes, one = resolve_target(target, logits)
        return logits.detach(), classes, one, _input_gradients(model, score_of(logits, classes, score), leaf)


def _input_gradients(model: nn.Module, scores: Tensor, leaf: Tensor) -> Tensor:
    parts = [part.detach().float() for part in gradients_at(model, "the input", scores, leaf)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)


def check_options(score: str, channels: str) -> None:
    """Raise InputError for a score or a way to join channels that does not exist."""
    check_score(score)
    if channels not in get_args(Channels):
        raise InputError(f"channels is 'max' or 'sum', not {channels!r}")


def explained(
    method: str, model: nn.Module, x: Tensor, gradients: Tensor, channels: Channels, classes: Tensor, one: bool,
    logits: Tensor, score: Score, completeness_error: Tensor | None = None,
) -> Saliency:  # fmt: skip
    """The result of a method from gradients (B, K, C, H, W); K is left out where one class was asked for."""
    gradients = gradients.contiguous()
    strength = gradients.abs()
    values = strength.amax(2) if channels == "max" else strength.sum(2)
    warn_of_empty(
        ~values.flatten(2).any(2), classes, "no pixel of image {image} matters for class {label}", f"{method} "
    )
    if one:
        gradients, values, classes = gradients[:, 0], values[:, 0], classes[:, 0]
        completeness_error = None if completeness_error is None else completeness_error[:, 0]
    return Saliency(
        gradients=gradients,
        values=values,
        target=classes,
        method=method,
        logits=logits.detach(),
        input_size=(x.shape[2], x.shape[3]),
        preprocess=preprocess_of(model),
        completeness_error=completeness_error,
        score=score,
    )
