"""Warnings point at the user's own line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchviz_cnn as tvc


def test_a_warning_names_the_line_of_the_caller() -> None:
    linear = nn.Linear(2, 2)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    nn.init.constant_(linear.weight, -1.0)
    with pytest.warns(tvc.EmptyMapWarning) as caught:
        tvc.grad_cam(model, torch.rand(1, 1, 8, 8), target=0)
    assert caught[0].filename == __file__
