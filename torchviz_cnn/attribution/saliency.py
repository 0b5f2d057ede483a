"""Which pixels a class score depends on: its gradient with respect to the input, plain, guided or times the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn.attribution.cam.formulas import CAM_METHODS, cam_maps
from torchviz_cnn.attribution.cam.heatmap import Layer
from torchviz_cnn.attribution.result import ClassMap, of_targets, warn_of_empty
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, LayerError
from torchviz_cnn.hooks.inputs import Given, Input, LayoutName, Output, Wrt, prepared
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.hooks.relu_rules import OtherActivations, Rule, relu_rule
from torchviz_cnn.media import render
from torchviz_cnn.media.bands import Bands
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.media.origin import Photo
from torchviz_cnn.runs import files
from torchviz_cnn.scores.targets import Score, Target, Targets, check_score
from torchviz_cnn.scores.trace import INPUT, layer_of, trace

Reduce = Literal["max", "sum"]
"""How the values of a pixel's channels become one: their largest absolute value, or the sum of the absolute values."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Saliency(ClassMap):
    """How much each pixel of the input matters for a class. Raw values; scaled only where drawn (see `ClassMap`).

    `values` (B, H, W) are the absolute values of `gradients`, the channels' maximum or sum.
    """

    palette: ClassVar[str] = "gray"
    photo_palette: ClassVar[str] = "hot"

    gradients: Tensor
    """The gradient or attribution of each input value with its sign: (B, C, H, W), or (B, K, C, H, W), float32."""
    completeness_error: Tensor | None = None
    """Integrated gradients: sum of all attributions minus the difference of the scores they explain, (B,) or (B, K)."""
    score: Score = "logit"
    """The score that was explained."""

    def map(self, index: int = 0, nth: int = 0) -> render.Array:
        """One map (H, W) from its minimum to its maximum as 0..1; a constant one is zeros."""
        values = self._of(self.values, index, nth).double().cpu().numpy()
        return render.unit_range(values - values.min())

    def grey(self, index: int = 0, nth: int = 0) -> render.Array:
        """One map (H, W) as grey pixels, its minimum 0 and its maximum 255: uint8, cut off as the textbook does."""
        return np.asarray(self.map(index, nth) * 255).astype(np.uint8)

    def clipped(self, percentile: float = 99.5) -> Saliency:
        """Cut each map's strongest values down to this percentile, so that a picture shows the others too."""
        if not 0 < percentile <= 100:
            raise InputError(f"a percentile is more than 0 and at most 100, not {percentile}")
        start = self.target.ndim
        level = torch.quantile(self.values.flatten(start), percentile / 100, -1)
        return replace(self, values=torch.minimum(self.values, level.view(*level.shape, *[1] * len(self.input_size))))

    def signed(self, index: int = 0, nth: int = 0, percentile: float = 99.5) -> render.Array:
        """The sum over channels with its sign as 0..1 (H, W): 0.5 is nothing, 0 and 1 this percentile of its strength.

        Above 0.5 is evidence for the class: of a cross-entropy, which rises where the class is lost, the sign is
        turned.
        """
        values = self._of(self.gradients, index, nth).double().sum(0).cpu().numpy()
        values = -values if self.score == "cross_entropy" else values
        return render.signed_range(values, float(np.percentile(np.abs(values), percentile)))

    def signed_image(
        self,
        photo: Photo | None = None,
        *,
        index: int = 0,
        nth: int = 0,
        colormap: str = "seismic",
        interpolation: render.Interpolation = "bilinear",
        geometry: Geometry | Preprocess | None = None,
    ) -> Image.Image:
        """Draw evidence for the class in red, against it in blue, at the photo's size and place, or the input's.

        Args:
            photo, index, nth, interpolation, geometry: as for `overlay`.
            colormap: a name that matplotlib knows (`seismic`).
        """
        return self._drawn(self.signed(index, nth), photo, index, colormap, interpolation, geometry)

    def colour_image(self, index: int = 0, nth: int = 0, bands: Bands | None = None) -> Image.Image:
        """Draw the gradient itself (H, W), as guided backpropagation is shown: 0 is grey.

        `bands`: the input's channels for red, green and blue, or one; of other than 1 or 3 channels, else their mean.
        """
        return Image.fromarray(render.signed_colours(self._of(self.gradients, index, nth).cpu().numpy(), bands=bands))

    def _in_pictures(self) -> Saliency:
        return self.clipped()

    def _comparison(
        self, photo: Image.Image, index: int, nth: int, seed: int, geometry: Geometry | Preprocess | None
    ) -> tuple[str, Image.Image | render.Array]:
        signed = self.signed_image(photo, index=index, nth=nth, geometry=geometry)
        return "for (red) and against (blue)", signed

    def save(self, path: str | Path) -> Path:
        """Write gradients, values, target, logits and method to a `.npz` file. Raises OutputError."""
        arrays = {"gradients": self.gradients, "values": self.values, "target": self.target, "logits": self.logits}
        return files.save_arrays(path, {**arrays, "method": self.method})

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.gradients.shape))
        return f"Saliency({self.method}: {shape}, classes {self.target.tolist()})"


def saliency(
    model: Model,
    x: Input,
    target: Target = None,
    *,
    relu: Rule = "standard",
    score: Score = "logit",
    reduce: Reduce = "max",
    other_activations: OtherActivations = "error",
    output: Output = None,
    wrt: Wrt = None,
) -> Saliency:
    """Differentiate a class score with respect to the input: which pixels, changed a little, change it most.

    All K classes take one forward and one batched backward pass. As the textbook does it:
    `score="cross_entropy", reduce="sum"`.

    Args:
        model: a module or a Network.
        x: a batch (B, C, H, W) on the model's scale or, with a Network, a photo or several; also signals (B, C, L), and
            volumes or videos (B, C, D, H, W), with results of these sides. Of a model of several inputs a tuple, or a
            dict of keyword inputs.
        target: as for `grad_cam`: classes, or a function of the model's output.
        relu: the backward rule of every ReLU: `guided` is guided backpropagation, `deconvnet` the deconvnet of the
            score; see `relu_rule`.
        score: `logit`, `probability`, `log_probability` or `cross_entropy`.
        reduce: how the channels of a pixel become one value: the `max` or the `sum` of their absolute values.
        other_activations: what a rule does about activations that are not ReLUs: see `relu_rule`.
        output: what of the model's output is explained, as for `grad_cam`.
        wrt: of several inputs, the one that the gradient is taken with respect to: an index or a key; by default the
            first batch of images.

    Returns:
        A Saliency with `gradients` (B, C, H, W) and `values` (B, H, W); with K after B where (B, K) was asked for.

    Raises:
        TargetError: for a class that the network does not have.
        InputError: for a wrong option.
        ModelError: where no gradient comes back.
        LayerError: where the rule meets no ReLU, or another activation.

    Warns:
        EmptyMapWarning: where a map is all zeros.

    Simonyan et al., arXiv 1312.6034; Springenberg et al., arXiv 1412.6806.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> sal = saliency(model, torch.rand(4, 3, 8, 8), target=1)
    >>> sal.gradients.shape, sal.values.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4, 8, 8]))
    """
    check_options(score, reduce)
    with prepared(model, x, output=output, wrt=wrt) as given:
        targets, gradients = input_gradients(given, target, score, relu, other_activations)
        title = {"standard": "saliency", "guided": "guided backpropagation", "deconvnet": "deconvnet"}[relu]
        return saliency_of(title, given, targets, gradients, reduce)


def input_x_gradient(
    model: Model,
    x: Input,
    target: Target = None,
    *,
    score: Score = "logit",
    reduce: Reduce = "max",
    output: Output = None,
    wrt: Wrt = None,
) -> Saliency:
    """Multiply the input by the gradient of the score: what each value contributes to it, to the first order.

    Args:
        model, x, target, score, reduce, output, wrt: as for `saliency`.

    Returns:
        A Saliency of the shapes that `saliency` gives.

    Raises:
        TargetError, ModelError, InputError: as for `saliency`.

    Shrikumar et al., arXiv 1605.01713.
    """
    check_options(score, reduce)
    with prepared(model, x, output=output, wrt=wrt) as given:
        targets, gradients = input_gradients(given, target, score)
        return saliency_of("input x gradient", given, targets, gradients * given.x.float()[:, None], reduce)


def guided_grad_cam(
    model: Model,
    x: Input,
    layer: Layer = None,
    target: Target = None,
    *,
    score: Score = "logit",
    reduce: Reduce = "max",
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    other_activations: OtherActivations = "error",
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Saliency:
    """Multiply guided backpropagation by Grad-CAM: fine detail, only where the class is. One forward pass gives both.

    Args:
        model, x, target, score, reduce, other_activations, output, wrt: as for `saliency`.
        layer: whose maps Grad-CAM weighs, by default as in `grad_cam`.
        interpolation: how the heatmap, after its ReLU, is enlarged to the input: `bilinear` (of signals linear, of
            volumes trilinear) or `nearest`.
        layout: as for `grad_cam`.

    Returns:
        A Saliency, as `saliency` gives it.

    Raises:
        InputError, LayerError, ModelError, TargetError: as for `saliency` and `grad_cam`.

    Selvaraju et al., arXiv 1610.02391, section 3.2.
    """
    check_options(score, reduce)
    checks.one_of("interpolation", interpolation, ("bilinear", "nearest"))
    rule = relu_rule("guided", other_activations=other_activations)
    with prepared(model, x, output=output, wrt=wrt, layout=layout) as given:
        name = layer_of(given, layer, target)
        with trace(given, [INPUT, name], target, score, rule) as run:
            rule.rule = "standard"
            (cam,) = cam_maps(run, name, [CAM_METHODS["grad_cam"].formula], keep_graph=True)
            gradients = run.gradient(INPUT, rule="guided")
        cam = enlarged(cam.relu(), given.input_size, interpolation)
        return saliency_of("guided Grad-CAM", given, run.targets, gradients * cam[:, :, None], reduce)


def enlarged(maps: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """Maps (B, K, *S) at the size of the input: `bilinear`, or what that is in other dimensions, or `nearest`.

    Raises LayerError for maps of another number of dimensions.
    """
    if maps.ndim - 2 != len(size):
        raise LayerError(f"maps of {maps.ndim - 2} spatial dimensions are not enlarged to an input of {len(size)}")
    if interpolation == "nearest":
        return nn.functional.interpolate(maps, tuple(size), mode="nearest")
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return nn.functional.interpolate(maps, tuple(size), mode=mode, align_corners=False)


def input_gradients(
    given: Given,
    target: Target | Targets,
    score: Score,
    relu: Rule = "standard",
    other_activations: OtherActivations = "error",
) -> tuple[Targets, Tensor]:
    """What is explained, and its gradients with respect to the input: (B, K, C, *S), float32.

    Raises LayerError for a rule, other than the standard one, that meets no ReLU.
    """
    with trace(given, [INPUT], target, score, relu_rule(relu, other_activations=other_activations)) as run:
        return run.targets, run.gradient(INPUT)


def check_options(score: str, reduce: str) -> None:
    """Raise InputError for a score or a way to join channels that does not exist."""
    check_score(score)
    checks.one_of("reduce", reduce, get_args(Reduce))


def saliency_of(
    method: str,
    given: Given,
    targets: Targets,
    gradients: Tensor,
    reduce: Reduce,
    completeness_error: Tensor | None = None,
) -> Saliency:
    """The result of a method from gradients (B, K, C, *S)."""
    gradients = gradients.contiguous()
    strength = gradients.abs()
    values = strength.amax(2) if reduce == "max" else strength.sum(2)
    why = "no pixel of image {image} matters for {label}"
    warn_of_empty(~values.flatten(2).any(2), targets, why, f"{method} ")
    return Saliency(
        gradients=targets.squeezed(gradients),
        values=targets.squeezed(values),
        method=method,
        completeness_error=None if completeness_error is None else targets.squeezed(completeness_error),
        score=targets.score,
        **of_targets(given, targets),
    )
