"""Time and peak memory of Grad-CAM and capture on VGG16, as ratios to a plain forward pass, beside the peers'.

    python scripts/benchmark_cam.py [--batch 8] [--rounds 5]

All contenders take turns in one run, and medians are compared: a machine's noise then meets all alike. Needs the
`bench` extra for the peers; those that are missing are left out.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from timing import alternate, peak_bytes
from torchvision.models import vgg16

import torchviz_cnn as tvc

LAYER = "features.29"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = vgg16(weights=None).eval()
    x = torch.randn(args.batch, 3, 224, 224)
    contenders = {"plain forward, no_grad": lambda: plain(model, x), **ours(model, x), **peers(model, x)}
    times = alternate(contenders, args.rounds)
    median = {name: timing.median for name, timing in times.items()}
    memory = {name: peak_bytes(run) for name, run in contenders.items()}
    base = next(iter(contenders))
    print(f"VGG16 at {LAYER}, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':34}{'seconds':>9}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for name in contenders:
        print(
            f"{name:34}{median[name]:9.3f}{median[name] / median[base]:8.3f}"
            f"{memory[name] / 2**20:10.0f}{memory[name] / memory[base]:8.2f}"
        )


def plain(model: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def ours(model: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    ten = torch.arange(10).expand(len(x), 10)
    return {
        "torchviz_cnn grad_cam": lambda: tvc.grad_cam(model, x, LAYER, relu=False),
        "torchviz_cnn grad_cam, 10 classes": lambda: tvc.grad_cam(model, x, LAYER, ten, relu=False),
        "torchviz_cnn capture features.0": lambda: tvc.capture(model, x, "features.0"),
    }


def peers(model: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    result: dict[str, Callable[[], object]] = {}
    layer = model.get_submodule(LAYER)
    try:
        from captum.attr import LayerGradCam

        captum = LayerGradCam(model, layer)
        result["captum LayerGradCam"] = lambda: captum.attribute(x, target=0)
    except ImportError:
        pass
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        targets = [ClassifierOutputTarget(0)] * len(x)

        def grad_cam() -> object:
            with GradCAM(model, [layer]) as cam:
                return cam(x, targets)

        result["grad-cam GradCAM"] = grad_cam
    except ImportError:
        pass
    return result


if __name__ == "__main__":
    main()
