"""Methods of other libraries as functions (model, x, target=...) -> maps (B, h, w), so that `trust` judges them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import torchviz_cnn as tvc

Method = Callable[..., Tensor]


def peers(layer: str) -> dict[str, Method]:
    """pytorch-grad-cam's Grad-CAM at a layer, and captum's saliency and guided backpropagation."""

    def of_grad_cam(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        module = module_of(model)
        with GradCAM(module, [module.get_submodule(layer)]) as cam:
            return torch.from_numpy(cam(leaf(x), [ClassifierOutputTarget(int(c)) for c in target]))

    def captum_saliency(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from captum.attr import Saliency

        gradients: Tensor = Saliency(module_of(model)).attribute(leaf(x), target)
        return gradients.amax(1)

    def captum_guided(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from captum.attr import GuidedBackprop

        gradients: Tensor = GuidedBackprop(module_of(model)).attribute(leaf(x), target)
        return gradients.abs().amax(1)

    return {
        "pytorch-grad-cam: Grad-CAM": of_grad_cam,
        "captum: saliency": captum_saliency,
        "captum: guided backprop": captum_guided,
    }


def module_of(model: nn.Module | tvc.Network) -> nn.Module:
    """The module itself."""
    return model.model if isinstance(model, tvc.Network) else model


def leaf(x: Tensor) -> Tensor:
    """A copy of an input to which gradients go."""
    return x.detach().clone().requires_grad_()
