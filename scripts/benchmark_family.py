"""Time of the CAM family on VGG16, beside grad-cam's, and of `explain`, as a ratio to one plain forward pass.

    python scripts/benchmark_family.py [--rounds 5] [--slow-rounds 1] [--only quick] [--channels 64]

All contenders take turns in one run, and medians are compared. In grad-cam, Ablation-CAM and Score-CAM run hundreds of
forward passes, minutes each: these have rounds of their own. `--channels` leaves the layer fewer than its 512, each of
which costs a forward pass in Score-CAM. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from collections.abc import Callable
from functools import partial

import torch
from pytorch_grad_cam import AblationCAM, EigenCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timing import Timing, alternate
from torchvision.models import vgg16

import torchviz_cnn as tvc

LAYER, EARLY = "features.29", "features.15"
THREE = {
    "last of blocks 3, 4, 5": ["features.15", "features.22", "features.29"],
    "all of block 5": ["features.25", "features.27", "features.29"],
}
PAIRS: dict[str, tuple[Callable[..., tvc.Heatmap], type]] = {
    "Ablation-CAM": (tvc.ablation_cam, AblationCAM),
    "Score-CAM": (tvc.score_cam, ScoreCAM),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1, help="of Ablation-CAM and Score-CAM")
    parser.add_argument("--only", choices=["quick", "Eigen-CAM of 8", *PAIRS])
    parser.add_argument("--channels", type=int, default=512)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, x = vgg16(weights=None).eval(), torch.randn(1, 3, 224, 224)
    model.features[28] = torch.nn.Conv2d(512, args.channels, 3, padding=1)
    model.classifier[0] = torch.nn.Linear(49 * args.channels, 4096)
    threads = torch.get_num_threads()
    print(f"VGG16 at {LAYER}, {args.channels} channels, batch 1, {threads} threads, torch {torch.__version__}")
    if args.only in (None, "quick"):
        show(alternate(quick(model, x), args.rounds))
    if args.only in (None, "Eigen-CAM of 8"):
        show(alternate(eigen(model, torch.randn(8, 3, 224, 224), EARLY), args.slow_rounds, warmup=0))
    for name, (ours, reference) in PAIRS.items():
        if args.only in (None, name):
            slow: dict[str, Callable[[], object]] = {
                name: partial(ours, model, x, LAYER, 0, relu=False),
                f"grad-cam {reference.__name__}": partial(theirs, reference, model, x),
            }
            show(alternate(slow, args.slow_rounds, warmup=0))


def quick(model: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    contenders: dict[str, Callable[[], object]] = {
        "plain forward": partial(plain, model, x),
        "grad_cam": partial(tvc.grad_cam, model, x, LAYER, 0, relu=False),
    }
    for layer in (LAYER, EARLY):
        contenders |= eigen(model, x, layer)
    classes = torch.arange(5)[None]
    for name, layers in THREE.items():
        contenders[f"explain, 6 methods, 5 classes, {name}"] = partial(
            tvc.explain, model, x, classes, layers, relu=False
        )
    return contenders


def eigen(model: torch.nn.Module, x: torch.Tensor, layer: str) -> dict[str, Callable[[], object]]:
    classes = [0] * len(x)
    return {
        f"eigen_cam at {layer}": partial(tvc.eigen_cam, model, x, layer, classes, relu=False),
        f"grad-cam EigenCAM at {layer}": partial(theirs, EigenCAM, model, x, layer),
    }


def plain(model: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def theirs(method: type, model: torch.nn.Module, x: torch.Tensor, layer: str = LAYER) -> None:
    """One of grad-cam's methods, without the bar that it draws."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        method(model, [model.get_submodule(layer)])(x, [ClassifierOutputTarget(0)] * len(x))


def show(times: dict[str, Timing]) -> None:
    base = next(iter(times.values())).median
    print(f"{'':62}{'seconds':>9}{'ratio':>8}")
    for name, timing in times.items():
        print(f"{name:62}{timing.median:9.3f}{timing.median / base:8.2f}", flush=True)


if __name__ == "__main__":
    main()
