"""Methods of other libraries as functions (model, x, target=...) -> maps (B, h, w), so that `trust` judges them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import torchviz_cnn as tvc

Method = Callable[..., Tensor]


def peers(net: tvc.Network, layer: str) -> dict[str, Method]:
    """Grad-CAM of pytorch-grad-cam, torchcam and captum at a layer, and captum's saliency and guided backpropagation."""
    module = net.model
    at = module.get_submodule(layer)

    def of_grad_cam(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with GradCAM(module, [at]) as cam:
            return torch.from_numpy(cam(x, [ClassifierOutputTarget(int(c)) for c in target]))

    def of_torchcam(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from torchcam.methods import GradCAM

        with GradCAM(module, target_layer=at) as cam, torch.enable_grad():
            return cam(target.tolist(), module(x.clone().requires_grad_()))[0].detach()

    def of_captum(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from captum.attr import LayerGradCam

        return LayerGradCam(module, at).attribute(x, target, relu_attributions=True)[:, 0].detach()

    def captum_saliency(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from captum.attr import Saliency

        return Saliency(module).attribute(x.clone().requires_grad_(), target).amax(1)

    def captum_guided(model: Any, x: Tensor, target: Tensor) -> Tensor:
        from captum.attr import GuidedBackprop

        return GuidedBackprop(module).attribute(x.clone().requires_grad_(), target).abs().amax(1)

    return {
        "pytorch-grad-cam: Grad-CAM": of_grad_cam,
        "torchcam: Grad-CAM": of_torchcam,
        "captum: Grad-CAM": of_captum,
        "captum: saliency": captum_saliency,
        "captum: guided backprop": captum_guided,
    }
