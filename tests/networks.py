"""Tiny seeded networks, one for each way of writing a convnet that a method must cope with. All take (B, 3, 32, 32).

Every one is built under its own seed without touching the global random state, in evaluation mode, with
`CLASSES` outputs, unless its docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

CLASSES = 5
SIZE = 32
P = ParamSpec("P")
Module = TypeVar("Module", bound=nn.Module)


def images(count: int = 2, size: int = SIZE, channels: int = 3, seed: int = 0) -> Tensor:
    """A seeded batch (count, channels, size, size)."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[P, Module]) -> Callable[P, Module]:
    """Build under a fixed seed, in evaluation mode, with normalisations that are not the identity."""

    @wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Module:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1234)
            model = build(*args, **kwargs)
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.2)
                    if module.running_mean is not None and module.running_var is not None:
                        module.running_mean.normal_(std=0.2)
                        module.running_var.uniform_(0.5, 1.5)
        model.eval()
        return model

    return wrapper


class VGGLike(nn.Module):
    """`features` with an in-place ReLU right after each convolution, `classifier` with dropout: as in torchvision."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(inplace),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Linear(48, 16), nn.ReLU(inplace), nn.Dropout(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return out


@seeded
def vgg_like(inplace: bool = True) -> VGGLike:
    """In-place ReLUs (or the same network without); convolutions are `features.0/2/5/7`, the last ReLU `features.8`."""
    return VGGLike(inplace)


class FunctionalReLU(nn.Module):
    """`F.relu`, `torch.relu`, `Tensor.relu_`, `F.relu(inplace=True)` and functional pooling: no module for either."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv4 = nn.Conv2d(8, 10, 3, padding=1)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = torch.relu(self.conv2(x))
        x = F.max_pool2d(self.conv3(x).relu_(), 2)
        x = F.relu(self.conv4(x), inplace=True)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@seeded
def functional_relu() -> FunctionalReLU:
    """Convolutions `conv1..conv4`, every ReLU a function, in and out of place."""
    return FunctionalReLU()


class Reused(nn.Module):
    """One `relu` used three times and one `pool` used twice."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@seeded
def reused(inplace: bool = True) -> Reused:
    """`relu`, `relu#1`, `relu#2`, `pool`, `pool#1`; `conv1..conv3`."""
    return Reused(inplace)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        out = self.relu(out)
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(ResidualBlock(8), ResidualBlock(8))
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 1, stride=2), ResidualBlock(8))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


@seeded
def residual() -> Residual:
    """A little ResNet: `out += x` into a BatchNorm's output, then a shared in-place ReLU."""
    return Residual()


class Dense(nn.Module):
    """Concatenates all maps so far, DenseNet's way: BatchNorm, ReLU, convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 * (i + 1)) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 * (i + 1), 4, 3, padding=1) for i in range(3))
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            maps.append(conv(F.relu(norm(torch.cat(maps, 1)), inplace=True)))
        out = F.relu(self.norm(torch.cat(maps, 1)), inplace=True)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


@seeded
def dense() -> Dense:
    """A little DenseNet; `norm` is the last layer with a map, a functional ReLU behind it."""
    return Dense()


@seeded
def grouped() -> nn.Sequential:
    """Grouped, depthwise and dilated convolutions with hard-swish, MobileNet's way."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Hardswish(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 12, 3, padding=1, groups=4),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


@seeded
def batch_norm() -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, twice; layers `0..9`, the last ReLU `6`."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


class AlwaysDropout(nn.Module):
    """Dropout as a function that is on in evaluation mode too: draws from the global random state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.conv(x)), 0.3, training=True)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@seeded
def always_dropout() -> AlwaysDropout:
    return AlwaysDropout()


class Counting(nn.Module):
    """Keeps statistics in buffers during forward: one is written in place, one replaced by a new tensor."""

    seen: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(6))
        self.register_buffer("scratch", None)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        self.seen += len(x)
        self.average = 0.9 * self.average + 0.1 * x.detach().mean((0, 2, 3))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@seeded
def counting() -> Counting:
    return Counting()


class FrozenNorm(nn.Sequential):
    """Overrides `train` to keep its BatchNorm in evaluation mode, as detection backbones do."""

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self


@seeded
def frozen_norm() -> FrozenNorm:
    return FrozenNorm(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


@seeded
def overlapping_pools() -> nn.Sequential:
    """AlexNet's max-pooling, 3 wide at stride 2; layers `0..9`, poolings `2` and `5`, the last ReLU `7`."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, CLASSES),
    )


class GapLinear(nn.Module):
    """Convolutions, global average pooling, one linear layer: the network that CAM was written for."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.flatten(self.gap(self.features(x)), 1))
        return out


@seeded
def gap_linear() -> GapLinear:
    """`features`, `gap`, `fc`; the exact CAM is `fc.weight` times the output of `features`."""
    return GapLinear()


class SqueezeLike(nn.Module):
    """Ends in 1 x 1 convolution, ReLU, global average pooling: SqueezeNet's way."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(8, 10, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(10, CLASSES, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


@seeded
def squeeze_like() -> SqueezeLike:
    return SqueezeLike()


class Pair(nn.Module):
    """Gives two tensors: not a layer that has one map."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


class TupleOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.pair = Pair()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.pair(F.relu(self.conv(x)))
        out: Tensor = self.fc(torch.cat([left, right], 1).mean((2, 3)))
        return out


@seeded
def tuple_output() -> TupleOutput:
    """`pair` gives a tuple of tensors; `pair.left` and `pair.right` one each."""
    return TupleOutput()


class Checkpointed(nn.Module):
    """The convolutions of `block` run under activation checkpointing: once more in the backward pass."""

    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointing else self.block(x)  # type: ignore[no-untyped-call]
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@seeded
def checkpointed(checkpointing: bool = True) -> Checkpointed:
    """`stem`, `block.0..3`; the same network with `checkpointing=False` computes the same."""
    return Checkpointed(checkpointing)


class Unreached(nn.Module):
    """Has a layer that forward never calls, as an auxiliary head in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.aux = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return out


@seeded
def unreached() -> Unreached:
    return Unreached()


def data_parallel() -> nn.Module:
    """`vgg_like` inside `DataParallel`."""
    return nn.DataParallel(vgg_like())


def averaged() -> nn.Module:
    """`vgg_like` inside `AveragedModel`."""
    return AveragedModel(vgg_like())


def compiled() -> nn.Module:
    """`vgg_like` inside `torch.compile`."""
    model: Any = torch.compile(vgg_like(), backend="eager")
    assert isinstance(model, nn.Module)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build
    for build in (
        vgg_like,
        functional_relu,
        reused,
        residual,
        dense,
        grouped,
        batch_norm,
        always_dropout,
        counting,
        frozen_norm,
        overlapping_pools,
        gap_linear,
        squeeze_like,
        tuple_output,
        checkpointed,
        unreached,
        data_parallel,
        compiled,
    )
}
"""Every network by the name of its function, for tests that hold for all of them."""
