"""The CAM family: each method is its formula, written out place by place in NumPy, and another program's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from tests import networks
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS

Array = np.ndarray[Any, Any]


def grad_cam(a: Array, g: Array) -> Any:
    return np.sum([g[c].mean() * a[c] for c in range(len(a))], axis=0)


def hires_cam(a: Array, g: Array) -> Any:
    return np.sum([g[c] * a[c] for c in range(len(a))], axis=0)


def layer_cam(a: Array, g: Array) -> Any:
    return np.sum([np.maximum(g[c], 0) * a[c] for c in range(len(a))], axis=0)


def grad_cam_plus_plus(a: Array, g: Array) -> Any:
    total = np.zeros(a.shape[1:])
    for c in range(len(a)):
        weight = 0.0
        for place in np.ndindex(*a.shape[1:]):
            if g[c][place] != 0:
                alpha = g[c][place] ** 2 / (2 * g[c][place] ** 2 + a[c].sum() * g[c][place] ** 3)
                weight += alpha * max(g[c][place], 0)
        total += weight * a[c]
    return total


def xgrad_cam(a: Array, g: Array) -> Any:
    weights = [(g[c] * a[c]).sum() / a[c].sum() if a[c].sum() else 0.0 for c in range(len(a))]
    return np.sum([weight * a[c] for c, weight in enumerate(weights)], axis=0)


def eigen_cam(a: Array, g: Array) -> Any:
    places = a.reshape(len(a), -1).T
    centred = places - places.mean(0)
    component = centred @ np.linalg.svd(centred)[2][0]
    return (component * np.sign(component[np.abs(component).argmax()])).reshape(a.shape[1:])


WRITTEN_OUT: dict[str, Callable[[Array, Array], Any]] = {
    function.__name__: function
    for function in (grad_cam, hires_cam, layer_cam, grad_cam_plus_plus, xgrad_cam, eigen_cam)
}


def test_every_method_is_written_out() -> None:
    assert WRITTEN_OUT.keys() == CAM_METHODS.keys()


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("shape", [(6, 4, 5), (30, 3, 4), (4, 7), (3, 2, 3, 4)])
def test_a_method_is_its_formula_written_out(name: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    activations = np.maximum(random.normal(size=(2, *shape)), 0)
    activations[:, 1] = 0  # a channel that is never active
    gradients = random.normal(size=(2, 3, *shape))
    gradients[:, :, 2] = 0  # and one that the score does not depend on
    maps = CAM_METHODS[name].formula(torch.tensor(activations).float(), torch.tensor(gradients).float()).numpy()
    for i in range(2):
        for k in range(3):
            expected = WRITTEN_OUT[name](activations[i], gradients[i, k])
            assert np.abs(maps[i, k] - expected).max() < 1e-5 * np.abs(expected).max()


def test_tiny_gradients_are_weighed_as_large_ones() -> None:
    """Grad-CAM++ divides by a gradient's square, which float32 rounds to 0 where the gradient is below 1e-23."""
    activations, gradients = torch.rand(1, 4, 5, 5), torch.rand(1, 2, 4, 5, 5)
    formula = CAM_METHODS["grad_cam_plus_plus"].formula
    tiny = formula(activations, 1e-30 * gradients)
    assert torch.allclose(tiny / tiny.max(), formula(activations, 1e-5 * gradients) / tiny.max() * 1e-25, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("grad_cam", "GradCAM"),
        ("hires_cam", "HiResCAM"),
        ("layer_cam", "LayerCAM"),
        ("grad_cam_plus_plus", "GradCAMPlusPlus"),
        ("xgrad_cam", "XGradCAM"),
        ("eigen_cam", "EigenCAM"),
    ],
)
@pytest.mark.parametrize("layer", ["features.4", "features.8"])
def test_a_method_equals_grad_cams(name: str, theirs: str, layer: str) -> None:
    """Of networks with large gradients: grad-cam adds 1e-7 to what it divides by, which for small ones is not small."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = networks.vgg_like(inplace=False).eval(), networks.images(3)
    with torch.no_grad():
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(1e4)
    place = model.get_submodule(layer)
    reference = getattr(grad_cam, theirs)(model, [place])
    reference.uses_gradients = True
    reference.activations_and_grads = grad_cam.activations_and_gradients.ActivationsAndGradients(model, [place], None)
    chosen = [targets.ClassifierOutputTarget(1)] * 3
    reference(x.clone(), chosen)
    maps, gradients = (
        kept[0].numpy()
        for kept in (reference.activations_and_grads.activations, reference.activations_and_grads.gradients)
    )
    expected = reference.get_cam_image(x, place, chosen, maps, gradients, False)
    ours = getattr(tvc, name)(model, x, layer, 1, relu=False).values.numpy()
    if name == "eigen_cam":  # its sign is by chance in grad-cam
        expected *= np.sign((expected * ours).sum((1, 2), keepdims=True))
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_eigen_cam_of_maps_that_are_the_same_everywhere_is_empty() -> None:
    """What rounding leaves of them is not stretched to full scale."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    with pytest.warns(tvc.EmptyMapWarning):
        assert not tvc.eigen_cam(model, torch.full((1, 3, 7, 9), 0.3), "0").values.any()
