"""A forward pass is watched from the explained layer on, and from its beginning where the model needs that."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import torchviz_cnn as tvc
from tests.conftest import unchanged
from tests.networks import images, seeded
from torchviz_cnn.scores.outputs import Ending


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.last = nn.Linear(4, 3)

    def maps(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.maps(x).relu().mean((2, 3))).softmax(1)  # type: ignore[no-any-return]


class Asks(Plain):
    """Asks for the gradient of what stands before the explained layer, as it takes it in training."""

    def maps(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.register_hook(lambda gradient: None)  # type: ignore[no-untyped-call]
        out: Tensor = self.second(x)
        out.retain_grad()
        return out


class WithMode(Plain):
    """Has a mode on around the explained layer, and off behind it."""

    def maps(self, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            return super().maps(x)


@seeded
def built(kind: type[Plain]) -> Plain:
    return kind()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Asks, WithMode])
def test_models_that_need_it_are_watched_all_along(kind: type[Plain], caplog: pytest.LogCaptureFixture) -> None:
    expected = tvc.grad_cam(built(Plain), images(), "second", 1, relu=False)
    caplog.set_level(logging.INFO, "torchviz_cnn")
    model = built(kind)
    with unchanged(model):
        heat = tvc.grad_cam(model, images(), "second", 1, relu=False)
    assert torch.equal(heat.values, expected.values)
    assert heat.activation == expected.activation == "softmax"
    assert "watched from its beginning on" in caplog.text
    assert _get_current_function_mode_stack() == []  # type: ignore[no-untyped-call]


def test_what_comes_before_the_layer_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = []
    plain = Ending.__torch_function__

    def noting(self: Ending, func: object, *args: object) -> object:
        watched.append(getattr(func, "__name__", ""))
        return plain(self, func, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Ending, "__torch_function__", noting)
    tvc.grad_cam(built(Plain), images(), "second", 1, relu=False)
    assert "softmax" in watched
    assert "conv2d" not in watched


def test_an_error_of_the_model_is_not_taken_for_a_wish() -> None:
    class Broken(Plain):
        def maps(self, x: Tensor) -> Tensor:
            raise RuntimeError("a mistake in the model")

    with pytest.raises(RuntimeError, match="a mistake in the model"):
        tvc.grad_cam(built(Broken), images(), "second", 1)
    assert _get_current_function_mode_stack() == []  # type: ignore[no-untyped-call]
