"""Time the saliency family beside captum's, as ratios: above 1 is faster than captum.

    python scripts/benchmark_saliency.py [--batch 2] [--rounds 5] [--only "vgg16: guided"]

Each pair takes turns in one run, and medians are compared: a machine's noise then meets both alike. Needs the `bench`
extra. captum gets a copy of the network without in-place ReLUs, which its backward hooks do not allow.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator

import captum.attr as captum
import torch
from timing import Run, alternate
from torch import Tensor, nn
from torchvision.models import get_model

import torchviz_cnn as tvc

LAYERS = {"vgg16": "features.29", "resnet18": "layer4", "squeezenet1_0": "features.12"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="only lines that begin so")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print(f"batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':46}{'ours, s':>10}{'captum, s':>11}{'ratio':>8}")
    for name, layer in LAYERS.items():
        model = get_model(name, weights=None).eval()
        for what, ours, theirs in pairs(model, layer, torch.randn(args.batch, 3, 224, 224), args.batch):
            if f"{name}: {what}".startswith(args.only):
                report(f"{name}: {what}", ours, theirs, args.rounds)
    model, x = get_model("squeezenet1_0", weights=None).eval(), torch.randn(8, 3, 224, 224)
    slide = {"target": 5, "sliding_window_shapes": (3, 56, 56), "strides": (3, 42, 42)}
    reference = captum.Occlusion(model)
    what = "squeezenet1_0: occlusion, batch 8, 25 patches"
    if what.startswith(args.only):
        report(
            what,
            lambda: tvc.occlusion(model, x, 5, patch=56, stride=42),
            lambda: reference.attribute(x, **slide),
            args.rounds,
        )


def pairs(model: nn.Module, layer: str, x: Tensor, batch: int) -> Iterator[tuple[str, Run, Run]]:
    functional = copy.deepcopy(model)
    for module in functional.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    plain, times, guided = (
        captum.Saliency(functional),
        captum.InputXGradient(functional),
        captum.GuidedBackprop(functional),
    )
    back, cam = captum.Deconvolution(functional), captum.GuidedGradCam(functional, functional.get_submodule(layer))
    path, noise = captum.IntegratedGradients(functional), captum.NoiseTunnel(captum.Saliency(functional))
    yield "saliency", lambda: tvc.saliency(model, x, 5), lambda: plain.attribute(x, target=5)
    yield "input x gradient", lambda: tvc.input_x_gradient(model, x, 5), lambda: times.attribute(x, target=5)
    yield "guided", lambda: tvc.saliency(model, x, 5, relu="guided"), lambda: guided.attribute(x, target=5)
    yield "deconvnet", lambda: tvc.saliency(model, x, 5, relu="deconvnet"), lambda: back.attribute(x, target=5)
    yield "guided Grad-CAM", lambda: tvc.guided_grad_cam(model, x, layer, 5), lambda: cam.attribute(x, target=5)
    if layer != LAYERS["vgg16"]:
        many = {"nt_samples": 8, "stdevs": 0.5, "target": 5}
        yield "SmoothGrad, 8", lambda: tvc.smooth_grad(model, x, 5, samples=8), lambda: noise.attribute(x, **many)
        yield (
            "integrated gradients, 16",
            lambda: tvc.integrated_gradients(model, x, 5, steps=16),
            lambda: path.attribute(x, target=5, n_steps=16),
        )


def report(what: str, ours: Run, theirs: Run, rounds: int) -> None:
    times = alternate({"ours": ours, "theirs": theirs}, rounds)
    a, b = times["ours"].median, times["theirs"].median
    print(f"{what:46}{a:10.3f}{b:11.3f}{b / a:8.2f}", flush=True)


if __name__ == "__main__":
    main()
