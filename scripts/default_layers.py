"""Which layer class heatmaps explain by default in torchvision's networks, with random weights.

python scripts/default_layers.py                   all of them, and the table in docs/layers.md
python scripts/default_layers.py vit_b_16 swin_t   these alone, without the table
"""

from __future__ import annotations

import argparse
import gc
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision import models
from usage import tell_mistakes

import torchviz_cnn as tvc

PAGE = Path(__file__).parents[1] / "docs" / "layers.md"
BEGIN, END = "<!-- default layers: begin -->", "<!-- default layers: end -->"
CLIPS = {"mvit_v1_b": (16, 224, 224), "mvit_v2_s": (16, 224, 224), "s3d": (16, 224, 224)}
"""Sizes of clips for video networks that do not run on 8 frames of 96 x 96."""


@dataclass(frozen=True)
class Choice:
    """What is explained of one network."""

    network: str
    size: tuple[int, ...]
    layer: str
    values: Tensor
    """The Grad-CAM of one random input, without its ReLU: (*S)."""

    @property
    def row(self) -> tuple[str, str]:
        """What networks of one row of the table share."""
        return self.network.partition("/")[0] if "/" in self.network else "", self.layer


def names() -> list[str]:
    """All classifiers of torchvision: `resnet18`, `video/r3d_18`."""
    return [*models.list_models(models), *(f"video/{name}" for name in models.list_models(models.video))]


def choice(name: str) -> Choice:
    """Build a network, and explain a random input at its default layer, at the smallest usual size that it takes."""
    short = name.rpartition("/")[2]
    sizes = [CLIPS.get(short, (8, 96, 96))] if "/" in name else [(side, side) for side in (96, 128, 224)]
    torch.manual_seed(0)
    options = {"init_weights": True} if short in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(short, weights=None, **options).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not bool(layer.weight.any()):  # the head of a ViT, on which nothing depends
            nn.init.normal_(layer.weight, std=0.02)
    for size in sizes:
        x = torch.randn(1, 3, *size)
        try:
            with torch.no_grad():
                model(x)
        except (AssertionError, RuntimeError):
            if size == sizes[-1]:
                raise
        else:
            break
    heat = tvc.grad_cam(model, x, target=0, relu=False)
    return Choice(name, size, heat.layer, heat.values[0])


def choices(names: list[str]) -> Iterator[Choice]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            yield choice(name)
            gc.collect()


def table(chosen: list[Choice]) -> str:
    """The choices as a table in Markdown; networks that follow each other with the same layer share a row."""
    rows = [
        f"Of {len(chosen)} networks, with torchvision {torchvision.__version__.partition('+')[0]}:",
        "",
        "| networks | default layer | map, for an input |",
        "|---|---|---|",
    ]
    for (_, layer), group in itertools.groupby(chosen, lambda one: one.row):
        several = list(group)
        shapes = {(_sides(one.values.shape), _sides(one.size)): None for one in several}
        maps = ", ".join(f"{places} for {size}" for places, size in shapes)
        rows.append(f"| {', '.join(one.network for one in several)} | `{layer}` | {maps} |")
    return "\n".join(rows)


def _sides(sides: tuple[int, ...]) -> str:
    return " × ".join(map(str, sides))


def write(chosen: list[Choice]) -> None:
    """Put the table between its marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(chosen)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", help="by default all, and the table is written")
    asked = parser.parse_args().networks
    chosen = []
    for one in choices(asked or names()):
        spread = float(one.values.max() - one.values.min())
        print(
            f"{one.network}: {one.layer}, {_sides(one.values.shape)} for {_sides(one.size)}, {spread:.1e}", flush=True
        )
        chosen.append(one)
    if not asked:
        write(chosen)


if __name__ == "__main__":
    tell_mistakes()
    main()
