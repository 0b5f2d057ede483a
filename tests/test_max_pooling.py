"""Max pooling, channels last: the values and gradients of PyTorch's own, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchviz_cnn as tvc
from tests.conftest import unchanged
from torchviz_cnn.methods import max_pooling as module
from torchviz_cnn.methods.max_pooling import FastMaxPooling


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Tiny maps are worth it too; tells which went the fast way."""
    shapes: list[tuple[int, ...]] = []
    fast = module._pooled

    def watched(*args: Any, **kwargs: Any) -> Tensor | None:
        found = fast(*args, **kwargs)
        if found is not None:
            shapes.append(tuple(args[0].shape))
        return found

    monkeypatch.setattr(module, "_pooled", watched)
    monkeypatch.setattr(module, "_LEAST", 1)
    return shapes


def ordinary(options: dict[str, Any], x: Tensor, gradient: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = F.max_pool2d(x, **options)
    return out.detach(), torch.autograd.grad(out, x, torch.ones_like(out) if gradient is None else gradient)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)},
        {"kernel_size": 3, "stride": 1, "dilation": 2},
    ],
)
@pytest.mark.parametrize("values", ["random", "ties", "infinite", "not a number"])
def test_same_bits(taken: list[Any], options: dict[str, Any], values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 19, 13, 14)
    if values == "ties":
        x = x.round()
    elif values != "random":
        x[::2, ::3, ::4] = torch.nan if values == "not a number" else -torch.inf
    monkeypatch.setattr(module, "_CACHED", 2 * 4 * x[0].numel())  # two images at a time, and one left
    expected = ordinary(options, x)
    for call in (F.max_pool2d, torch.max_pool2d, lambda x, **o: nn.MaxPool2d(**o)(x)):
        leaf = x.clone().requires_grad_()
        with FastMaxPooling():
            out = call(leaf, **options)
        (gradient,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
        assert out.is_contiguous()
        assert torch.equal(torch.nan_to_num(out, 7), torch.nan_to_num(expected[0], 7))
        assert torch.equal(gradient, expected[1])
    assert taken == 3 * [tuple(x.shape)]


def test_what_is_not_worth_it_goes_the_usual_way() -> None:
    with FastMaxPooling():
        for x in (
            torch.randn(1, 16, 32, 32), torch.randn(2, 15, 128, 128), torch.randn(16, 96, 96),
            torch.randn(2, 32, 64, 64, dtype=torch.float64), torch.randn(1, 64, 256, 256),
            torch.randn(2, 32, 64, 64).contiguous(memory_format=torch.channels_last), torch.randn(2, 32, 64, 128)[..., ::2],
        ):  # fmt: skip
            assert module._pooled(x, 2) is None
            assert torch.equal(F.max_pool2d(x, 2), torch.max_pool2d(x, 2))
        x = torch.randn(2, 32, 64, 64)
        assert module._pooled(x, 2) is not None
        assert module._pooled(x, 2, return_indices=True) is None
        values, indices = F.max_pool2d(x, 2, return_indices=True)
        assert torch.equal(F.max_unpool2d(values, indices, [2, 2]).amax(), x.amax())


def test_writing_into_the_maps_afterwards_is_an_error_as_ever(taken: list[Any]) -> None:
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    maps = x + 0
    with FastMaxPooling():
        out = F.max_pool2d(maps, 2)
    assert taken
    maps.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out.sum(), x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.body, x, use_reentrant=False)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@pytest.mark.parametrize("rule", ["standard", "guided", "deconvnet"])
@pytest.mark.parametrize("target", [2, torch.tensor([[1, 3], [0, 2]])])
def test_under_checkpointing_rules_and_several_classes(taken: list[Any], rule: Any, target: Any) -> None:
    model = Checkpointed().eval()
    x = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    with unchanged(model):
        found = tvc.saliency(model, x, target, relu=rule).gradients
    assert taken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_pooled", lambda *args, **kwargs: None)
        expected = tvc.saliency(model, x, target, relu=rule).gradients
    assert torch.equal(found, expected)


def test_what_pytorch_alone_can_do_is_left_to_it(taken: list[Any]) -> None:
    x = torch.randn(2, 16, 8, 8)
    with FastMaxPooling():
        assert torch.equal(F.max_pool2d(x, np.int64(2)), torch.max_pool2d(x.double(), 2).float())  # type: ignore[call-overload]
        assert torch.equal(torch.vmap(nn.MaxPool2d(2))(x[None]), torch.max_pool2d(x.double(), 2).float()[None])
        found = torch.func.jvp(nn.MaxPool2d(2), (x,), (x,))
        assert torch.equal(found[0], found[1])
        taken.clear()
        for wrong in ({"kernel_size": (2, 3, 2)}, {"kernel_size": 2, "stride": 0}, {"kernel_size": 2, "padding": 2}):
            with pytest.raises((RuntimeError, TypeError)):
                F.max_pool2d(x, **wrong)  # type: ignore[arg-type]
    assert not taken
