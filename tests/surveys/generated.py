"""Photos for surveys: generated, in folders by class, and a small network for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc

CLASSES = ("disc", "Great White-shark", "stripes")
PREPARE = tvc.Preprocess((32, 32), "crop", 40)


def network(names: tuple[str, ...] | None = CLASSES) -> tvc.Network:
    """A network of three classes with random weights, which crops the middle of photos."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()]
        last = nn.Linear(12, 3)
        nn.init.normal_(last.weight, std=2.0)
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    return tvc.Network(model.eval(), PREPARE, names, "three")


def photos(folder: Path, count: int, classes: tuple[str, ...] = ("disc", "great_white_shark", "stripes")) -> Path:
    """A folder of small generated photos of several shapes; with classes, in a folder for each."""
    generator = np.random.default_rng(0)
    for number in range(count):
        place = folder / classes[number % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        shape = ((60, 80), (50, 50), (90, 48))[number % 3]
        pixels = generator.integers(0, 256, (*(side // 10 + 1 for side in shape), 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BICUBIC)
        large.save(place / f"{number:03d}.png")
    return folder
