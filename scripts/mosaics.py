"""Measure how well heatmaps tell several things apart: mosaics of 2 x 2 photos, a class of each, and its own quarter.

python scripts/mosaics.py PHOTOS MODEL [WEIGHTS] [--mosaics 40]

PHOTOS holds files that begin with the number of their class, as 963_pizza.jpg. Only photos are taken that the network
recognises with a probability above 0.8. Prints the mean share of the positive evidence for a class that lies in the
quarter of its photo, for each method; by chance it is 0.25. (Boehle et al., arXiv 2104.00032, call it the grid
pointing game.)
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import torchviz_cnn as tvc

METHODS: dict[str, Callable[..., tvc.Heatmap]] = {
    "Grad-CAM": tvc.grad_cam,
    "HiResCAM": tvc.hires_cam,
    "LayerCAM": tvc.layer_cam,
    "Grad-CAM++": tvc.grad_cam_plus_plus,
    "XGrad-CAM": tvc.xgrad_cam,
    "Competitive CAM": tvc.competitive_cam,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("model")
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--mosaics", type=int, default=40)
    for option in ("--mean", "--std"):
        parser.add_argument(option, type=float, nargs="+")
    args = parser.parse_args(argv)
    net = tvc.load_model(args.model, args.weights, mean=args.mean, std=args.std)
    drawn = mosaics(recognised(net, sorted(args.photos.glob("*.jpg"))), args.mosaics)
    shares: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    for x, classes in drawn:
        for name, method in METHODS.items():
            values = method(net.model, x, target=classes[None]).values[0].clamp(min=0)
            shares[name].append(own_shares(values))
    print(f"{args.model}: {len(drawn)} mosaics")
    for name, parts in shares.items():
        every = torch.cat(parts)
        print(f"{name:16} mean {float(every.mean()):.3f}  median {float(every.median()):.3f}")


def recognised(net: tvc.Network, photos: list[Path]) -> dict[int, Tensor]:
    """Inputs (3, H, W) of photos that a network recognises with a probability above 0.8: one of each class."""
    inputs: dict[int, Tensor] = {}
    for photo in photos:
        number = int(photo.name.split("_")[0])
        x = net.preprocess(tvc.read_image(photo))
        if number not in inputs and float(tvc.predict(net.model, x[None])[0, number]) > 0.8:
            inputs[number] = x
    return inputs


def mosaics(inputs: dict[int, Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs (1, 3, 2 H, 2 W) of four photos of four classes each, with their classes (4,)."""
    chance = random.Random(0)
    made = []
    for _ in range(count):
        classes = chance.sample(sorted(inputs), 4)
        a, b, c, d = (inputs[number] for number in classes)
        made.append((torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)[None], torch.tensor(classes)))
    return made


def own_shares(values: Tensor) -> Tensor:
    """The share of each of four maps (4, h, w) in its own quarter; what lies across a border counts by its part."""
    large = torch.nn.functional.interpolate(values[None], size=(448, 448), mode="nearest-exact")[0]
    quarters = large.unfold(1, 224, 224).unfold(2, 224, 224).sum((3, 4)).flatten(1)
    return quarters.diagonal() / quarters.sum(1).clamp(min=1e-12)


if __name__ == "__main__":
    main()
