"""One forward pass that is watched where its scores are computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import torchviz_cnn as tvc
from tests.networks import images


class _ModeOfItsOwn(nn.Module):
    """Runs a layer within a mode, as `with torch.device(...)` is one, and ends in a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            maps = self.conv(x)
        return F.softmax(self.head(maps.relu().mean((2, 3))), 1)


def test_the_end_of_a_network_is_noticed_wherever_its_layer_runs() -> None:
    """Watching begins at the layer, or with a second run where a mode is on there; the logits are explained."""
    torch.manual_seed(0)
    inside, x = _ModeOfItsOwn().eval(), images(2)
    outside = nn.Sequential(
        inside.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), inside.head, nn.Softmax(1)
    ).eval()
    logits = outside[:-1]
    want = tvc.grad_cam(logits, x, "0", 2, relu=False).values
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    for model, layer in ((inside, "conv"), (outside, "0")):
        assert torch.allclose(tvc.grad_cam(model, x, layer, 2, relu=False).values, want, rtol=1e-4, atol=1e-7)
        assert _get_current_function_mode_stack() == modes  # type: ignore[no-untyped-call]
