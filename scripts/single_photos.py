"""Measure Grad-CAM and competitive CAM on photos of one thing: insertion minus deletion, and energy in the mask.

python scripts/single_photos.py MODEL [WEIGHTS] [--photos PHOTOS] [--pets PETS] [--count 40]

PHOTOS holds files that begin with the number of their class, as 963_pizza.jpg; those are taken that the network
recognises with a probability above 0.8, one of each class. In the order of the map the pixels of a photo are replaced
by the mean of the photos (deletion), and those of the blurred photo by its own (insertion): a good map makes the
probability fall early and rise early (Petsiuk et al., arXiv 1806.07421). PETS holds `images/NAME.jpg` and
`trimaps/NAME.png` (1 animal, 2 background, 3 border), and energy in the mask is the share of a map's positive values
that lies on the animal, for the likeliest class.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mosaics import recognised
from PIL import Image
from torch import Tensor

import torchviz_cnn as tvc
from torchviz_cnn.media import render

STEPS = 16
METHODS: dict[str, Callable[..., tvc.Heatmap]] = {"Grad-CAM": tvc.grad_cam, "Competitive CAM": tvc.competitive_cam}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--photos", type=Path, help="a folder of photos named by their class")
    parser.add_argument("--pets", type=Path, help="a folder of photos with masks")
    parser.add_argument("--count", type=int, default=40, help="how many photos of PHOTOS (%(default)s)")
    for option in ("--mean", "--std"):
        parser.add_argument(option, type=float, nargs="+")
    args = parser.parse_args(argv)
    net = tvc.load_model(args.model, args.weights, mean=args.mean, std=args.std)
    if args.photos:
        known = recognised(net, sorted(args.photos.glob("*.jpg")))
        classes = random.Random(0).sample(sorted(known), min(args.count, len(known)))
        print(f"{args.model}: {len(classes)} photos")
        for name, method in METHODS.items():
            areas = [insertion_and_deletion(net, known[number], number, method) for number in classes]
            inserted, deleted = (sum(parts) / len(areas) for parts in zip(*areas, strict=True))
            print(f"{name:16} insertion {inserted:.3f} - deletion {deleted:.3f} = {inserted - deleted:.3f}")
    if args.pets:
        masks = sorted((args.pets / "trimaps").glob("*.png"))
        print(f"{args.model}: {len(masks)} pets")
        for name, method in METHODS.items():
            shares = [energy_in_mask(net, args.pets / "images" / f"{mask.stem}.jpg", mask, method) for mask in masks]
            print(f"{name:16} energy in the mask {sum(shares) / len(shares):.3f}")


def insertion_and_deletion(
    net: tvc.Network, x: Tensor, number: int, method: Callable[..., tvc.Heatmap]
) -> tuple[float, float]:
    """The areas under both curves of the class's probability, of an input (3, H, W); 0 is the mean of photos."""
    values = method(net.model, x[None], target=number).values[None]
    order = F.interpolate(values, x.shape[1:], mode="bilinear").flatten().argsort(descending=True, stable=True)
    return area(net, blurred(x), x, order, number), area(net, x, torch.zeros_like(x), order, number)


def area(net: tvc.Network, start: Tensor, end: Tensor, order: Tensor, number: int) -> float:
    """The area under the probability of a class while one input becomes another, a share of the pixels at a time."""
    steps = []
    for step in range(STEPS + 1):
        changed = torch.zeros(order.numel(), dtype=torch.bool)
        changed[order[: round(step * order.numel() / STEPS)]] = True
        steps.append(torch.where(changed.view(start.shape[1:]), end, start))
    curve = tvc.predict(net.model, torch.stack(steps))[:, number]
    return float(torch.trapezoid(curve, dx=1 / STEPS))


def blurred(x: Tensor) -> Tensor:
    """An input (3, H, W) blurred by 51 pixels of a standard deviation of 50 at a side of 224, and in proportion."""
    scale = min(x.shape[1:]) / 224
    side = round(25 * scale) * 2 + 1
    return torch.from_numpy(cv2.GaussianBlur(x.permute(1, 2, 0).numpy(), (side, side), 50 * scale)).permute(2, 0, 1)


def energy_in_mask(net: tvc.Network, photo: Path, trimap: Path, method: Callable[..., tvc.Heatmap]) -> float:
    """The share of the positive values for the likeliest class on the animal, in the part that the network sees."""
    picture = tvc.read_image(photo)
    width, height = picture.size
    animal = np.asarray(Image.open(trimap).resize((width, height), Image.Resampling.NEAREST)) == 1
    box = net.preprocess.seen_box(width, height)
    left, top, right, bottom = (max(round(edge), 0) for edge in box)
    values = render.resample(method(net, picture).values[0].numpy(), box, width, height)
    seen, inside = (part[top:bottom, left:right] for part in (values, values * animal))
    return float(inside.sum() / max(seen.sum(), 1e-12))


if __name__ == "__main__":
    main()
