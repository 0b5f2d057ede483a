"""Gradients of several scores are those of one after the other, in any number of parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchviz_cnn.core.errors import ModelError
from torchviz_cnn.scores.gradients import require_gradient, score_gradients


class _Unbatched(torch.autograd.Function):
    """A square that cannot be differentiated in a batch: vmap knows no rule for it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.from_numpy((2 * x * gradient).detach().numpy())


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("limit", [1, 150, 10**9])
def test_gradients_in_parts_are_the_gradients(limit: int, batched: bool, caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, generator=generator), torch.randn(3, 7, generator=generator)
    expected = torch.stack([2 * x * weight[:, k] for k in range(7)])
    leaf = x.clone().requires_grad_()
    square = leaf**2 if batched else _Unbatched.apply(leaf)  # type: ignore[no-untyped-call]
    with caplog.at_level("INFO", "torchviz_cnn"):
        parts = [part[0] for part in score_gradients(square @ weight, [leaf], limit=limit)]
    assert len(parts) == {1: 7, 150: 4, 10**9: 1}[limit]
    assert torch.allclose(torch.cat([part for part in parts if part is not None]), expected)
    assert ("classes go back one by one" in caplog.text) == (not batched and limit > 1)


def test_an_input_without_influence_has_no_gradient() -> None:
    leaf, other = torch.ones(2, 3, requires_grad=True), torch.ones(1, requires_grad=True)
    for columns in (1, 3):
        ((first, second),) = score_gradients(leaf[:, :columns] * 2, [leaf, other])
        assert first is not None
        assert second is None


def test_scores_without_a_graph_have_no_gradient() -> None:
    ((gradient,),) = score_gradients(torch.ones(2, 3), [torch.ones(2, 3)])
    assert gradient is None
    with pytest.raises(ModelError, match="no gradient comes back to the input of Linear"):
        require_gradient(gradient, torch.nn.Linear(1, 1), "the input")


def test_a_convolution_goes_back_once_for_all_classes() -> None:
    conv = torch.nn.Conv2d(3, 5, 3).requires_grad_(False)
    leaf = torch.ones(2, 3, 8, 8, requires_grad=True)
    scores = conv(leaf).mean((2, 3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        (part,) = score_gradients(scores, [leaf], keep_graph=True)
    assert sum(event.name == "aten::convolution_backward" for event in profiler.events()) == 1
    assert part[0] is not None
    for k in range(5):
        (alone,) = torch.autograd.grad(scores[:, k].sum(), leaf, retain_graph=True)
        assert torch.allclose(part[0][k], alone, atol=1e-6)
