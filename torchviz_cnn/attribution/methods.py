"""The table of all methods that explain a class: API, command line, page and docs read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torchviz_cnn.attribution.cam.competition import competitive_cam
from torchviz_cnn.attribution.cam.exact import class_activation_map
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS
from torchviz_cnn.attribution.cam.gradient_free import ablation_cam, score_cam
from torchviz_cnn.attribution.full_grad import full_grad
from torchviz_cnn.attribution.occlusion import occlusion
from torchviz_cnn.attribution.result import ClassMap
from torchviz_cnn.attribution.saliency import guided_grad_cam, input_x_gradient, saliency
from torchviz_cnn.attribution.smoothing import integrated_gradients, smooth_grad

Kind = Literal["cam", "saliency", "occlusion"]


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    title: str
    """As papers write it."""
    kind: Kind
    """What it gives, and the command that draws it: a heatmap of a layer, a map of the pixels' gradients, or scores
    under a patch."""
    explain: Callable[..., ClassMap]
    """(model, x, target=..., **options) -> the result."""
    options: tuple[str, ...]
    """The options that it takes besides the target."""
    shows: str
    """What the map shows, in a few words."""
    paper: str
    slow: bool = False
    """Whether it runs the network many times for one photo."""


_CAM = ("layer", "score", "relu")
_GRADIENT = ("score", "reduce")
_RULED = (*_GRADIENT, "other_activations")


def _cam_methods() -> dict[str, Method]:
    """The rows of `CAM_METHODS`, as they are now."""
    return {
        name: Method(cam.title, "cam", cam.function, _CAM, cam.shows, cam.paper) for name, cam in CAM_METHODS.items()
    }


METHODS: dict[str, Method] = {
    **_cam_methods(),
    "score_cam": Method(
        "Score-CAM",
        "cam",
        score_cam,
        (*_CAM, "progress"),
        "regions that hold evidence, by the score of the photo seen through each map; without gradients, slow",
        "Wang et al., arXiv 1910.01279",
        slow=True,
    ),
    "ablation_cam": Method(
        "Ablation-CAM",
        "cam",
        ablation_cam,
        (*_CAM, "progress"),
        "regions that hold evidence, by what the score loses without each map; without gradients",
        "Desai & Ramaswamy, WACV 2020",
        slow=True,
    ),
    "competitive_cam": Method(
        "Competitive CAM",
        "cam",
        competitive_cam,
        ("layer",),
        "where a class is the best explanation, in photos of several things or of classes that are alike",
        "after Gupta & Arora, arXiv 1905.12152",
    ),
    "cam": Method(
        "CAM",
        "cam",
        class_activation_map,
        ("layer",),
        "the exact share of each place in the score, for networks that end in global average pooling",
        "Zhou et al., arXiv 1512.04150",
    ),
    "saliency": Method(
        "Saliency",
        "saliency",
        saliency,
        (*_RULED, "relu"),
        "which pixels, changed a little, change the score most",
        "Simonyan et al., arXiv 1312.6034",
    ),
    "guided": Method(
        "Guided backpropagation",
        "saliency",
        partial(saliency, relu="guided"),
        _RULED,
        "edges and textures that the network reacts to; hardly depends on the class",
        "Springenberg et al., arXiv 1412.6806",
    ),
    "deconvnet": Method(
        "Deconvnet of the score",
        "saliency",
        partial(saliency, relu="deconvnet"),
        _RULED,
        "what the deconvnet projects from the score to the pixels; hardly depends on the class",
        "Zeiler & Fergus, arXiv 1311.2901",
    ),
    "guided_grad_cam": Method(
        "Guided Grad-CAM",
        "saliency",
        guided_grad_cam,
        (*_RULED, "layer"),
        "guided backpropagation where Grad-CAM is strong",
        "Selvaraju et al., arXiv 1610.02391",
    ),
    "smooth_grad": Method(
        "SmoothGrad",
        "saliency",
        smooth_grad,
        (*_RULED, "relu"),
        "the gradient, averaged over noisy copies of the photo",
        "Smilkov et al., arXiv 1706.03825",
        slow=True,
    ),
    "integrated_gradients": Method(
        "Integrated gradients",
        "saliency",
        integrated_gradients,
        _GRADIENT,
        "what each value adds to the score on the way from a baseline to the photo",
        "Sundararajan et al., arXiv 1703.01365",
        slow=True,
    ),
    "input_x_gradient": Method(
        "Input x gradient",
        "saliency",
        input_x_gradient,
        _GRADIENT,
        "what each value contributes to the score, to the first order",
        "Shrikumar et al., arXiv 1605.01713",
    ),
    "full_grad": Method(
        "FullGrad",
        "saliency",
        full_grad,
        ("score",),
        "what the input and the biases of all layers add to the score",
        "Srinivas & Fleuret, arXiv 1905.00780",
    ),
    "occlusion": Method(
        "Occlusion",
        "occlusion",
        occlusion,
        ("score", "patch", "stride"),
        "where the score falls when a grey patch hides a part of the photo",
        "Zeiler & Fergus, arXiv 1311.2901",
        slow=True,
    ),
}

SUITS = {"grad_cam": "one thing in the photo", "competitive_cam": "several things in the photo"}
"""The two heatmaps to begin with, and the photos that each is the better one for: see docs/cam.md."""

MISSES = {
    "grad_cam": "outlines, evidence against the class, one of several things",
    "competitive_cam": "evidence that classes share; the whole object",
    "cam": "other networks, earlier layers",
    "hires_cam": "more than Grad-CAM at the last layer before global average pooling",
    "layer_cam": "evidence against the class, one of several things",
    "grad_cam_plus_plus": "evidence against the class, one of several things",
    "xgrad_cam": "which places of a map count",
    "eigen_cam": "the class",
    "ablation_cam": "channels that can replace each other",
    "score_cam": "what happens on real photos",
    "saliency": "where the evidence is",
    "smooth_grad": "the gradient of this very photo",
    "integrated_gradients": "pixels that are like the baseline",
    "input_x_gradient": "pixels of the mean colour",
    "full_grad": "which layer says what",
    "occlusion": "parts that can replace each other",
    "guided_grad_cam": "which of the lines count",
    "guided": "the class, and what the network has learned",
    "deconvnet": "the class",
}
"""What the map of a method does not show, in a few words: the column of docs/choosing.md."""


def all_methods() -> dict[str, Method]:
    """All methods by name, with those that a user registered with `cam_method`."""
    return {**METHODS, **_cam_methods()}


def methods_of(kind: Kind) -> dict[str, Method]:
    """The methods of one kind, by name."""
    return {name: method for name, method in all_methods().items() if method.kind == kind}
