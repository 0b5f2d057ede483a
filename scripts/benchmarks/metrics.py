"""Metrics of maps: deletion and insertion, ROAD, average drop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from timing import Run
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.settings import Options, Spec, smooth
from benchmarks.tasks import FORWARD, OURS, Case, Task
from torchviz_cnn.attribution.metrics.perturbation import ranks
from torchviz_cnn.attribution.metrics.road import filled_in

SHARES = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Setting:
    """What a case is about: images, random smooth maps of them of 0 to 1, and classes."""

    model: nn.Module
    x: Tensor
    maps: Tensor
    target: Tensor
    steps: int
    batch: int

    def count(self) -> float:
        """Times are by image."""
        return float(len(self.x))

    def passes(self, each: int) -> Run:
        """So many forward passes for each image, on inputs that are ready."""
        needed, ready = len(self.x) * each, self.x[:1].repeat(self.batch, 1, 1, 1)

        def run() -> None:
            with torch.no_grad():
                for start in range(0, needed, self.batch):
                    self.model(ready[: needed - start])

        return run


class Given:
    """What torchcam's metrics take for the extractor of maps: maps that are made already."""

    def __init__(self, setting: Setting) -> None:
        self.model, self.maps = setting.model, setting.maps

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        """Those of the only layer."""
        return cams[0]

    def _hooks_off(self) -> AbstractContextManager[None]:
        return nullcontext()


def probabilities(output: Tensor) -> Tensor:
    return output.softmax(-1)


# --- deletion alone, and with insertion -----------------------------------------------------------------------------

DELETION: Task[Setting] = Task()
BOTH: Task[Setting] = Task()
DELETION.add(FORWARD, "floor", units=Setting.count)(lambda s: s.passes(1 + s.steps))
BOTH.add(FORWARD, "floor", units=Setting.count)(lambda s: s.passes(1 + 2 * s.steps))


@DELETION.add(OURS, "ours", units=Setting.count)
def deletion(setting: Setting) -> Run:
    return lambda: tvc.metrics.deletion(
        setting.model, setting.x, setting.maps, setting.target, steps=setting.steps, baseline="mean"
    )


def flipped(setting: Setting) -> int:
    """How many values Quantus flips at a time: they must divide the pixels, and its steps are no more than ours."""
    pixels, values = setting.maps[0].numel(), setting.x[0].numel()
    return next(count for count in range(1, pixels + 1) if pixels % count == 0 and values // count <= setting.steps)


def images_of_quantus(setting: Setting) -> float:
    """Its images, as if it took as many steps as we do."""
    return len(setting.x) * (setting.x[0].numel() // flipped(setting)) / setting.steps


@DELETION.peer("quantus", units=images_of_quantus)
def pixel_flipping(setting: Setting) -> Run:
    """It flips values of one channel, not pixels."""
    import quantus

    flip: Any = quantus
    metric = flip.PixelFlipping(features_in_step=flipped(setting), perturb_baseline=0.0, disable_warnings=True)
    options: dict[str, Any] = {"softmax": True, "batch_size": setting.batch, "device": str(setting.x.device)}
    x, y, maps = setting.x.cpu().numpy(), setting.target.cpu().numpy(), setting.maps[:, None].cpu().numpy()
    return lambda: metric(model=setting.model, x_batch=x, y_batch=y, a_batch=maps, **options)


@BOTH.add(OURS, "ours", units=Setting.count)
def both(setting: Setting) -> Run:
    def run() -> Tensor:
        measured = [
            metric(setting.model, setting.x, setting.maps, setting.target, steps=setting.steps, baseline="mean")
            for metric in (tvc.metrics.deletion, tvc.metrics.insertion)
        ]
        return torch.tensor([one.mean for one in measured])

    return run


@BOTH.peer("torchcam", units=Setting.count, same=lambda ours, theirs: (ours, theirs))
def deletion_insertion(setting: Setting) -> Run:
    from torchcam.metrics import DeletionInsertionMetric

    def run() -> Tensor:
        metric = DeletionInsertionMetric(Given(setting), probabilities, steps=setting.steps, batch_size=setting.batch)
        metric.update(setting.x, setting.target.tolist())
        summary = metric.summary()
        return torch.tensor([summary["deletion_auc"], summary["insertion_auc"]])

    return run


# --- average drop ---------------------------------------------------------------------------------------------------

DROP: Task[Setting] = Task()
DROP.add(FORWARD, "floor", units=Setting.count)(lambda s: s.passes(2))


@DROP.add(OURS, "ours", units=Setting.count)
def average_drop(setting: Setting) -> Run:
    return lambda: tvc.metrics.average_drop(setting.model, setting.x, setting.maps, setting.target)


@DROP.peer("torchcam", units=Setting.count, same=lambda ours, theirs: (torch.tensor([ours.mean]), theirs))
def classification(setting: Setting) -> Run:
    from torchcam.metrics import ClassificationMetric

    def run() -> Tensor:
        metric = ClassificationMetric(Given(setting), probabilities)
        metric.update(setting.x, setting.target.tolist())
        return torch.tensor([metric.summary()["avg_drop"]])

    return run


@DROP.peer("grad-cam", units=Setting.count)
def drop_in_confidence(setting: Setting) -> Run:
    """The loss of probability itself, of which ours and torchcam's are the share."""
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(int(index)) for index in setting.target]
    return lambda: DropInConfidence()(setting.x, setting.maps.cpu().numpy(), targets, setting.model)


# --- ROAD -----------------------------------------------------------------------------------------------------------

ROAD: Task[Setting] = Task()
FILLING: Task[Setting] = Task()
ROAD.add(FORWARD, "floor", units=Setting.count)(lambda s: s.passes(2 * len(SHARES)))


@ROAD.add(OURS, "ours", units=Setting.count)
def road(setting: Setting) -> Run:
    return lambda: tvc.metrics.road(setting.model, setting.x, setting.maps, setting.target, shares=SHARES)


@ROAD.peer("grad-cam", units=Setting.count)
def road_combined(setting: Setting) -> Run:
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(int(index)) for index in setting.target]
    metric = ROADCombined([100 * (1 - share) for share in SHARES])
    return lambda: metric(setting.x, setting.maps.cpu().numpy(), targets, setting.model)


@ROAD.peer("quantus", units=Setting.count)
def quantus_road(setting: Setting) -> Run:
    """Its metric raises an IndexError for three channels: its filling in, in both orders, and the forward passes."""
    filling = [quantus_filling(setting, sign) for sign in (-1, 1)]
    forward = setting.passes(2 * len(SHARES))
    return lambda: ([fill() for fill in filling], forward())


@FILLING.add(OURS, "ours", units=Setting.count)
def fill(setting: Setting) -> Run:
    """Removed pixels filled in, of one order."""
    counts = [round(share * setting.maps[0].numel()) for share in SHARES]
    shape = (-1, 1, *setting.x.shape[2:])
    removed = torch.cat([ranks(setting.maps[:, None], 0) < count for count in counts]).view(shape)
    several, batch = setting.x.repeat(len(SHARES), 1, 1, 1), setting.batch
    starts = range(0, len(several), batch)
    return lambda: [filled_in(several[i : i + batch], removed[i : i + batch]) for i in starts]


FILLING.peer("quantus", units=Setting.count)(lambda setting: quantus_filling(setting, -1))


def quantus_filling(setting: Setting, sign: int) -> Callable[[], list[object]]:
    """Quantus' filling in of the strongest or the weakest pixels."""
    from quantus.functions.perturb_func import noisy_linear_imputation

    order = (sign * setting.maps.flatten(1)).argsort(1).cpu().numpy()
    counts, pictures = [round(share * order.shape[1]) for share in SHARES], setting.x.cpu().numpy()
    pairs = list(product(zip(pictures, order, strict=True), counts))
    return lambda: [noisy_linear_imputation(picture, places[:count]) for (picture, places), count in pairs]


# --- the cases ------------------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[Task[Setting], str, int | None]] = {
    "deletion": (DELETION, "judged", 2),
    "deletion and insertion": (BOTH, "judged", 2),
    "average drop": (DROP, "judged", None),
    "ROAD, both orders": (ROAD, "road", 2),
    "filling in of ROAD, one order": (FILLING, "road", 2),
}


def cases(options: Options) -> Iterator[Case]:
    """The metrics on SqueezeNet, by image."""
    (spec,) = options.specs("squeezenet1_0")
    for name, (_, size, rounds) in TASKS.items():
        count = getattr(options.sizes, size)
        text = f"{name}, {spec.name}, {count} image{'s' if count > 1 else ''}"
        yield Case("metrics", text, partial(of_case, options, spec, name, count), "image", rounds=rounds)


def of_case(options: Options, spec: Spec, name: str, count: int) -> list[Any]:
    side = spec.side // 2 if TASKS[name][1] == "road" else spec.side
    model, x = options.network(spec), options.images(count, side)
    maps = smooth(count, 1, side, max(2, side // 17), seed=1)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = ((maps - low) / (high - low)).to(x.device)
    target = tvc.predict(model, x).argmax(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        return list(TASKS[name][0].contenders(Setting(model, x, maps, target, options.sizes.points, options.batch)))
