"""What the metrics cost beyond the forward passes that they need, and ROAD beside Quantus and grad-cam.

    python scripts/benchmark_metrics.py squeezenet1_0.pth [--images 100] [--road-images 2] [--rounds 3]

The network is SqueezeNet 1.0, the photos and maps are random but smooth. All contenders take turns in one run, and
medians are compared: a machine's noise then meets all alike. Peers that are missing are left out.

ROAD of Quantus 0.6 raises an IndexError for pictures of three channels. Its imputation is timed therefore, with the
forward passes that its metric makes: of the most relevant pixels only, where ours and grad-cam's remove the least
relevant ones too.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from timing import Timing, alternate
from torch import Tensor

import torchviz_cnn as tvc
from torchviz_cnn.attribution.metrics.perturbation import ranks
from torchviz_cnn.attribution.metrics.road import filled_in

STEPS = 32
SHARES = (0.2, 0.4, 0.6, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("weights")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--road-images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="*", default=[8], help="images in a forward pass of the plain loop")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = tvc.load_model("squeezenet1_0", args.weights).model
    print(f"SqueezeNet 1.0, 224 x 224, {torch.get_num_threads()} threads, torch {torch.__version__}")
    faithfulness(model, args.images, args.batch, args.rounds)
    road(model, args.road_images, args.rounds)


def smooth(count: int, channels: int, side: int, seed: int) -> Tensor:
    """Random pictures (count, channels, 224, 224) of so many squares a side, enlarged."""
    squares = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(squares, (224, 224), mode="bilinear", align_corners=False)


def faithfulness(model: torch.nn.Module, images: int, batches: list[int], rounds: int) -> None:
    """Insertion and deletion against a loop of as many forward passes as they need on inputs that are ready."""
    x, maps = smooth(images, 3, 56, 0), smooth(images, 1, 13, 1)[:, 0]
    target = tvc.predict(model, x[:1]).argmax(1).expand(images)
    needed = images * (1 + 2 * STEPS)

    def loop(batch: int) -> None:
        ready = smooth(batch, 3, 56, 2)
        with torch.no_grad():
            for start in range(0, needed, batch):
                model(ready[: min(batch, needed - start)])

    def ours() -> None:
        tvc.metrics.insertion(model, x, maps, target, steps=STEPS)
        tvc.metrics.deletion(model, x, maps, target, steps=STEPS)

    contenders: dict[str, Callable[[], object]] = {"insertion + deletion": ours}
    for batch in batches:
        contenders[f"{needed} forward passes, {batch} at a time"] = partial(loop, batch)
    table(alternate(contenders, rounds), images, f"of {images} images, {STEPS} steps")


def road(model: torch.nn.Module, images: int, rounds: int) -> None:
    """ROAD at four shares: the metric, and the filling in of removed pixels alone."""
    x, maps = smooth(images, 3, 56, 0), smooth(images, 1, 13, 1)[:, 0]
    target = tvc.predict(model, x).argmax(1)
    order = (-maps.flatten(1)).argsort(1)
    counts = [round(share * order.shape[1]) for share in SHARES]
    removed = torch.cat([ranks(maps[:, None], 0) < count for count in counts]).view(-1, 1, 224, 224)
    several = x.repeat(len(SHARES), 1, 1, 1)

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [model(several[i : i + 8]) for i in range(0, len(several), 8)]

    contenders: dict[str, Callable[[], object]] = {
        "torchviz_cnn road (both orders)": lambda: tvc.metrics.road(model, x, maps, target, shares=SHARES),
        "  its forward passes": lambda: (forward(), forward()),
        "torchviz_cnn imputation (one order)": lambda: [
            filled_in(several[i : i + 8], removed[i : i + 8]) for i in range(0, len(several), 8)
        ],
    }
    contenders |= quantus(x, order, counts, forward) | grad_cam(model, x, maps, target)
    table(alternate(contenders, rounds), images, f"of {images} images, shares {SHARES}")


def quantus(
    x: Tensor, order: Tensor, counts: list[int], forward: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    try:
        from quantus.functions.perturb_func import noisy_linear_imputation
    except ImportError:
        return {}
    pictures, places = x.numpy(), order.numpy()

    def imputation() -> list[object]:
        several = product(zip(pictures, places, strict=True), counts)
        return [noisy_linear_imputation(picture, place[:count]) for (picture, place), count in several]

    return {
        "Quantus road (one order)": lambda: (imputation(), forward()),
        "Quantus imputation (one order)": imputation,
    }


def grad_cam(model: torch.nn.Module, x: Tensor, maps: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    try:
        from pytorch_grad_cam.metrics.road import ROADCombined
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
    except ImportError:
        return {}
    targets = [ClassifierOutputSoftmaxTarget(int(index)) for index in target]
    metric = ROADCombined([100 * (1 - share) for share in SHARES])
    return {"grad-cam road (both orders)": lambda: metric(x, maps.numpy(), targets, model)}


def table(times: Mapping[str, Timing], images: int, title: str) -> None:
    """The medians by image, and as ratios to the first."""
    base = next(iter(times.values())).median
    print(f"\n{title:44}{'s an image':>12}{'ratio':>9}")
    for name, timing in times.items():
        print(f"{name:44}{timing.median / images:12.3f}{timing.median / base:9.2f}")


if __name__ == "__main__":
    main()
