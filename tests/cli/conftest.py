"""A folder for the command line to work in: photos, labels, and networks beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

FACTORY = """
import warnings
import torch
import torchviz_cnn
from torch import nn
def net(bands=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(bands, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
def four():
    return net(4)
def own():
    from torchvision import transforms as of
    how = of.Compose([of.Resize(37), of.CenterCrop(32), of.ToTensor()])
    return torchviz_cnn.Network(net(), how, ("a", "b", "c"), "own")
def volumes():
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU())
def maps():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
def gelu():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
def vgg():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 3))
def dark():
    made = net()
    nn.init.constant_(made[-1].weight, -1.0)
    return made
def stops():
    raise SystemExit(3)
def interrupts():
    raise KeyboardInterrupt
class pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x):
        return {"heads": [self.net(x)], "maps": x.repeat(1, 2, 1, 1)}
def second(output):
    return output[:, 1] - output[:, 0]
def two(output):
    return output[:, 1:]
corner = torchviz_cnn.targets.region(torch.ones(4, 4), 2)
number = 3
class raises(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1)
    def forward(self, x):
        raise AssertionError("forward says no")
class warns(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 32)
    def forward(self, x):
        warnings.warn("something of another library")
        return super().forward(x).flatten(1)
"""
MEAN, STD = ("0.485", "0.456", "0.406"), ("0.229", "0.224", "0.225")
PREPARED = ["--input-size", "32", "--geometry", "crop", "--mean", *MEAN, "--std", *STD]
NET = ["--model", "clinet:net", "--labels", "labels.txt", *PREPARED]


@pytest.fixture(autouse=True)
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in a third of their size, and as they come: to lay them out takes as long as to draw them.

    What they look like is tested in tests/media/test_figures.py.
    """
    begin = Figure.__init__

    def smaller(figure: Figure, *args: Any, **options: Any) -> None:
        begin(figure, *args, **options | {"dpi": 30})

    monkeypatch.setattr(Figure, "__init__", smaller)
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda engine, figure: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: two photos of the same name, a broken one, networks and labels."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("clinet", None)
    (tmp_path / "clinet.py").write_text(FACTORY)
    (tmp_path / "labels.txt").write_text("African elephant\ntusker\n<b>zebra</b>\n")
    (tmp_path / "other").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise[0]).save("photo.png")
    Image.fromarray(noise[1]).save("other/photo.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "photo.png").read_bytes()[:200])
    return tmp_path


def pictures(folder: Path) -> set[Path]:
    """All that commands write, below a folder."""
    return {path for path in folder.rglob("*") if path.suffix in (".png", ".npz", ".safetensors", ".part")}
