"""Linear layers of a few images: the values of PyTorch's own product, and only where it is worth while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import torchviz_cnn as tvc
from tests.conftest import unchanged
from torchviz_cnn.methods import thin_products as module
from torchviz_cnn.methods.thin_products import thin_products

FAST = torch.ops.mkldnn._linear_pointwise.default
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")  # type: ignore[no-untyped-call]


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which operations run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.append(func)
        return func(*args, **(kwargs or {}))


def headed(features: int = 1024, hidden: int = 2048) -> nn.Module:
    """A convolution and a head with a matrix that no cache keeps."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, features // 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 5),
    ).eval()  # fmt: skip


@contextmanager
def counted() -> Iterator[Calls]:
    with Calls() as calls:
        yield calls


@needs_mkldnn
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 128])
@pytest.mark.parametrize("bias", [True, False])
def test_values_are_those_of_the_exact_product(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(1024, 2048, bias=bias)
    x = torch.randn(rows, 1024, requires_grad=True)
    with counted() as calls, thin_products(linear):
        out = linear(x)
        g = torch.randn_like(out)
        (back,) = torch.autograd.grad(out, x, g)
    exact = x.double() @ linear.weight.double().t() + (linear.bias.double() if bias else 0)
    assert calls.found.count(FAST) == (1 if rows == 1 else 2)  # one row goes back as fast as it is
    assert torch.allclose(out.double(), exact, atol=1e-4)
    assert torch.allclose(back.double(), g.double() @ linear.weight.double(), atol=1e-4)


@needs_mkldnn
@pytest.mark.filterwarnings("ignore:TF32")
def test_only_where_it_pays() -> None:
    def runs_it(model: nn.Module, x: Tensor) -> bool:
        with counted() as calls, thin_products(model):
            model(x)
        return FAST in calls.found

    linear = nn.Linear(1024, 2048)
    assert runs_it(linear, torch.randn(2, 1024))
    assert not runs_it(linear, torch.randn(129, 1024))
    assert not runs_it(nn.Linear(1024, 2047), torch.randn(2, 1024))
    assert not runs_it(linear.double(), torch.randn(2, 1024).double())
    assert not runs_it(nn.Linear(1024, 2048, dtype=torch.bfloat16), torch.randn(2, 1024, dtype=torch.bfloat16))
    with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
        assert not runs_it(nn.Linear(1024, 2048), torch.randn(2, 1024))


def test_matrices_of_any_order_and_biases_of_any_shape() -> None:
    torch.manual_seed(0)
    large, rows = torch.randn(2048, 2048), torch.randn(3, 1024)
    with thin_products(nn.Linear(1024, 2048)):
        for matrix in (large[:1024], large[:, :1024].t(), large[::2], large[:1024, ::1].flip(0)):
            assert torch.allclose(rows @ matrix, (rows.double() @ matrix.double()).float(), atol=1e-3)
            for bias in (torch.randn(2048), torch.randn(3, 1), torch.randn(()), torch.randn(3, 2048)):
                found = torch.addmm(bias, rows, matrix)
                assert torch.allclose(found.double(), bias.double() + rows.double() @ matrix.double(), atol=1e-3)
                doubled = torch.addmm(bias, rows, matrix, alpha=2)
                assert torch.allclose(doubled.double(), bias.double() + 2 * rows.double() @ matrix.double(), atol=2e-3)


@needs_mkldnn
@pytest.mark.parametrize("method", ["saliency", "guided", "guided_grad_cam", "grad_cam"])
def test_gradients_of_a_large_head(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    thin = module._thin

    def watched(rows: Tensor, matrix: Tensor) -> bool:
        taken.append(thin(rows, matrix))
        return taken[-1]

    monkeypatch.setattr(module, "_thin", watched)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def run(model: nn.Module, x: Tensor) -> Tensor:
        if method == "grad_cam":
            return tvc.grad_cam(model, x, "1", 3).values
        if method == "guided_grad_cam":
            return tvc.guided_grad_cam(model, x, "1", 3).gradients
        return tvc.saliency(model, x, 3, relu="guided" if method == "guided" else "standard").gradients

    model = headed()
    with unchanged(model):
        found = run(model, x)
    assert taken.count(True) == 2
    exact = run(headed().double(), x.double())
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert not _get_current_dispatch_mode_stack()


def test_nothing_is_left_behind_after_an_error() -> None:
    model = headed()
    with pytest.raises(tvc.TargetError):
        tvc.grad_cam(model, torch.randn(2, 3, 16, 16), "1", 99)
    with pytest.raises(tvc.TargetError):
        tvc.guided_grad_cam(model, torch.randn(2, 3, 16, 16), "1", 99)
    assert not _get_current_dispatch_mode_stack()


def test_a_large_head_in_bfloat16_and_under_autocast() -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    exact = tvc.saliency(headed(), x, 3).gradients
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tvc.saliency(headed(), x, 3).gradients
    assert (cast - exact).norm() < 0.1 * exact.norm()
    half = tvc.saliency(headed().bfloat16(), x, 3).gradients
    assert (half - exact).norm() < 0.1 * exact.norm()


def test_matrices_of_other_kinds_run_as_ever() -> None:
    linear = nn.Linear(2048, 1024)
    sparse = torch.eye(2, 2048).to_sparse_csr()
    with thin_products(linear):
        assert torch.allclose(torch.mm(sparse, linear.weight.t()).to_dense(), linear.weight.t()[:2])
