"""Grad-CAM of one class and of many, and the methods of its family."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import Run
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.settings import TINY, Options, Spec, plain
from benchmarks.tasks import FORWARD, OURS, Case, Task


@dataclass(frozen=True)
class Setting:
    """What a case is about."""

    model: nn.Module
    layer: str
    x: Tensor
    classes: list[int]

    @property
    def module(self) -> nn.Module:
        """The layer itself."""
        return self.model.get_submodule(self.layer)

    @property
    def target(self) -> Tensor:
        """The classes (B, K)."""
        return torch.tensor(self.classes).expand(len(self.x), -1)


GRAD_CAM: Task[Setting] = Task()
LARGE = 32
"""The batch from which a round takes long."""


def scaled(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, K, h, w) as grad-cam gives them: what is positive, 0 to 1, enlarged, and once more 0 to 1."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    maps = F.relu(ours).flatten(0, 1).cpu().numpy()
    height, width = theirs.shape[-2:]
    return torch.from_numpy(scale_cam_image(scale_cam_image(maps, (width, height)))).view_as(theirs), theirs


@GRAD_CAM.add(FORWARD, "floor")
def forward(setting: Setting) -> Run:
    return partial(plain, setting.model, setting.x)


@GRAD_CAM.add(OURS, "ours")
def ours(setting: Setting) -> Run:
    return lambda: tvc.grad_cam(setting.model, setting.x, setting.layer, setting.target, relu=False).values


@GRAD_CAM.peer("captum", same=lambda ours, theirs: (ours, theirs.detach()))
def captum(setting: Setting) -> Run:
    from captum.attr import LayerGradCam

    cam = LayerGradCam(setting.model, setting.module)
    return lambda: torch.cat([cam.attribute(setting.x, target=index) for index in setting.classes], 1)


@GRAD_CAM.peer("grad-cam", same=scaled)
def grad_cam(setting: Setting) -> Run:
    return partial(of_grad_cam, "GradCAM", setting)


@GRAD_CAM.peer("torchcam", same=lambda ours, theirs: (F.relu(ours), theirs))
def torchcam(setting: Setting) -> Run:
    from torchcam.methods import GradCAM

    def run() -> Tensor:
        with GradCAM(setting.model, setting.layer) as cam:
            scores = setting.model(setting.x)
            maps = [
                cam([index] * len(setting.x), scores, normalized=False, retain_graph=index != setting.classes[-1])[0]
                for index in setting.classes
            ]
        return torch.stack(maps, 1)

    return run


def of_grad_cam(method: str, setting: Setting) -> Tensor:
    """One of grad-cam's methods, without the bar that it draws: maps (B, K, H, W)."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
        getattr(pytorch_grad_cam, method)(setting.model, [setting.module]) as cam,
    ):
        maps = [cam(setting.x, [ClassifierOutputTarget(index)] * len(setting.x)) for index in setting.classes]
    setting.model.zero_grad()  # it leaves gradients of all parameters behind
    return torch.stack([torch.from_numpy(each) for each in maps], 1)


# --- the family -----------------------------------------------------------------------------------------------------

ABLATION: Task[Setting] = Task()
SCORE: Task[Setting] = Task()
EIGEN: Task[Setting] = Task()
EXPLAIN: Task[Setting] = Task()
FAMILY = {"ablation_cam": (ABLATION, "AblationCAM"), "score_cam": (SCORE, "ScoreCAM"), "eigen_cam": (EIGEN, "EigenCAM")}


def of_ours(method: str, setting: Setting) -> Tensor:
    heat: tvc.Heatmap = getattr(tvc, method)(
        setting.model, setting.x, setting.layer, setting.target, relu=method == "ablation_cam"
    )
    return heat.values


def of_family(method: str, setting: Setting) -> Run:
    return partial(of_ours, method, setting)


def of_theirs(method: str, setting: Setting) -> Run:
    return partial(of_grad_cam, method, setting)


for _name, (_task, _peer) in FAMILY.items():
    _task.add(FORWARD, "floor")(forward)
    _task.add(OURS, "ours")(partial(of_family, _name))
    # grad-cam enlarges Score-CAM's masks from corner to corner, and takes Eigen-CAM's component with either sign
    _task.peer("grad-cam", same=scaled if _name == "ablation_cam" else None)(partial(of_theirs, _peer))


def by_maximum(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of which the largest value is 1: torchcam gives channels that are the same everywhere a weight too."""
    positive = F.relu(ours)
    return positive / positive.amax().clamp(min=1e-12), theirs / theirs.amax().clamp(min=1e-12)


@SCORE.peer("torchcam", same=by_maximum)
def torchcam_score(setting: Setting) -> Run:
    from torchcam.methods import ScoreCAM

    def run() -> Tensor:
        with ScoreCAM(setting.model, setting.layer, input_shape=tuple(setting.x.shape[1:])) as cam:
            with torch.no_grad():
                setting.model(setting.x)
            maps = cam(setting.classes[0], normalized=False)
        return maps[0][:, None]  # type: ignore[no-any-return]

    return run


EXPLAIN.add(FORWARD, "floor")(forward)


@EXPLAIN.add(OURS, "ours")
def explain(setting: Setting) -> Run:
    layers = setting.layer.split()
    return lambda: tvc.explain(setting.model, setting.x, setting.target, layers, relu=False)


# --- the cases ------------------------------------------------------------------------------------------------------


def cases(options: Options) -> Iterator[Case]:
    """Grad-CAM at the last maps."""
    sizes = options.sizes
    for spec in options.specs("vgg16", "resnet50", "efficientnet_lite0"):
        for count, batches in ((1, sizes.batches), (sizes.many_classes, sizes.many_batches)):
            for batch in batches:
                name = f"{spec.name}, batch {batch}, {count} class{'es' if count > 1 else ''}"
                make = partial(of_case, options, spec, batch, count)
                yield Case("grad_cam", name, make, memory=True, large=batch >= LARGE)
    if not options.quick:
        make = partial(of_case, options, TINY, 1, 1)
        yield Case("grad_cam", "three convolutions, 32 pixels: the cost of a call itself", make)


def of_case(options: Options, spec: Spec, batch: int, count: int) -> Iterator[Any]:
    setting = Setting(options.network(spec), spec.layer, options.images(batch, spec.side), list(range(count)))
    return GRAD_CAM.contenders(setting)


def family_cases(options: Options) -> Iterator[Case]:
    """Methods that run the network many times or take more than one layer, on VGG16."""
    (spec,) = options.specs("vgg16")
    count = options.sizes.channels
    for name, task, rounds in (("Ablation-CAM", ABLATION, 2), ("Score-CAM", SCORE, 2)):
        make = partial(narrow_case, options, spec, task)
        yield Case("family", f"{name}, {spec.name} with {count} channels", make, rounds=rounds)
    early = TINY.early if spec is TINY else "features.15"
    for layer, batch in ((spec.layer, 1), (early, 1), (early, options.sizes.eigen_batch)):
        make = partial(eigen_case, options, spec, EIGEN, layer, batch, 1)
        yield Case("family", f"Eigen-CAM, {spec.name} at {layer}, batch {batch}", make, rounds=2)
    late = "features.4 features.7" if spec is TINY else "features.25 features.27 features.29"
    last = "features.1 features.7" if spec is TINY else "features.15 features.22 features.29"
    for text, layers in (("layers of one block", late), ("layers of several blocks", last)):
        make = partial(eigen_case, options, spec, EXPLAIN, layers, 1, 5)
        yield Case("family", f"explain, 6 methods, 5 classes, {text}, {spec.name}", make)


def narrow_case(options: Options, spec: Spec, task: Task[Setting]) -> Iterator[Any]:
    """Fewer channels in the last maps."""
    channels = options.sizes.channels
    model = copy.deepcopy(options.network(spec))
    features: Any = model.get_submodule("features")
    at = int(spec.layer.rpartition(".")[2]) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = features[at]
        features[at] = nn.Conv2d(last.in_channels, channels, 3, padding=1).to(options.device)
        head: Any = model.get_submodule("classifier")
        first = head if isinstance(head, nn.Linear) else head[0]
        other = nn.Linear(first.in_features // last.out_channels * channels, first.out_features).to(options.device)
        if isinstance(head, nn.Linear):
            model.classifier = other
        else:
            head[0] = other
    return task.contenders(Setting(model, spec.layer, options.images(1, spec.side), [0]))


def eigen_case(
    options: Options, spec: Spec, task: Task[Setting], layers: str, batch: int, classes: int
) -> Iterator[Any]:
    setting = Setting(options.network(spec), layers, options.images(batch, spec.side), list(range(classes)))
    return task.contenders(setting)
