"""What the code of a model says of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from tests import networks
from torchviz_cnn.hooks.calls import asks_for_gradients


def keep(x: Tensor) -> Tensor:
    x.retain_grad()
    return x


def kept_deep(x: Tensor) -> Tensor:
    return keep(x)


this_module = sys.modules[__name__]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


class ByMethod(Plain):
    def saved(self, x: Tensor) -> None:
        for part in [lambda: x.register_hook(print)]:  # type: ignore[no-untyped-call]
            part()  # type: ignore[no-untyped-call]


class ByFunction(Plain):
    def forward(self, x: Tensor) -> Any:
        return kept_deep(self.conv(x))


class ByModule(Plain):
    def forward(self, x: Tensor) -> Any:
        return this_module.kept_deep(self.conv(x))


class Keeper:
    def keep(self, x: Tensor) -> Tensor:
        return keep(x)


class ByObject(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.keeper = Keeper()

    def forward(self, x: Tensor) -> Any:
        return self.keeper.keep(self.conv(x))


class Decorated(Plain):
    @torch.enable_grad()
    def forward(self, x: Tensor) -> Any:
        return keep(self.conv(x))


def patched() -> nn.Module:
    model = Plain()
    model.forward = MethodType(lambda self, x: keep(self.conv(x)), model)  # type: ignore[method-assign]
    return model


def hooked() -> nn.Module:
    model = Plain()
    model.conv.register_forward_hook(partial(lambda _, module, args, output: keep(output), None))
    return model


@pytest.mark.parametrize("build", [ByMethod, ByFunction, ByModule, ByObject, Decorated, patched, hooked])
def test_code_that_asks_for_gradients_is_seen(build: Callable[[], nn.Module]) -> None:
    assert asks_for_gradients(nn.Sequential(nn.ReLU(), build()))


@pytest.mark.parametrize("build", [Plain, resnet18, networks.vgg_like, lambda: nn.Sequential(nn.Conv2d(1, 1, 1))])
def test_other_code_is_not_slowed(build: Callable[[], nn.Module]) -> None:
    assert not asks_for_gradients(build())
