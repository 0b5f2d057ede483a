"""Measure Grad-CAM and competitive CAM on photos of one thing: insertion minus deletion, and energy in the mask.

python scripts/single_photos.py MODEL [WEIGHTS] [--photos PHOTOS] [--pets PETS] [--count 40]

PHOTOS holds files that begin with the number of their class, as 963_pizza.jpg; those are taken that the network
recognises with a probability above 0.8, one of each class. See `tvc.metrics.insertion` and `deletion`, here in 16
steps. PETS holds `images/NAME.jpg` and `trimaps/NAME.png` (1 animal, 2 background, 3 border), and energy in the mask
(`tvc.metrics.energy_in_mask`) is the share of a map's positive values that lies on the animal, for the likeliest class.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from mosaics import class_number
from usage import files_in, tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.attribution.methods import METHODS
from torchviz_cnn.core.errors import counted

STEPS = 16
NAMES = ("grad_cam", "competitive_cam")


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
        known = recognised(net, files_in(args.photos, "*.jpg"))
        classes = random.Random(0).sample(sorted(known), min(args.count, len(known)))
        print(f"{args.model}: {counted(len(classes), 'photo')}")
        photos, target = [known[number] for number in classes], torch.tensor(classes)
        for name in NAMES:
            inserted = tvc.metrics.insertion(net, photos, name, target, steps=STEPS).mean
            deleted = tvc.metrics.deletion(net, photos, name, target, steps=STEPS).mean
            title = METHODS[name].title
            print(f"{title:16} insertion {inserted:.3f} - deletion {deleted:.3f} = {inserted - deleted:.3f}")
    if args.pets:
        masks = files_in(args.pets / "trimaps", "*.png")
        pets = [args.pets / "images" / f"{mask.stem}.jpg" for mask in masks]
        print(f"{args.model}: {counted(len(pets), 'pet')}")
        for name in NAMES:
            share = tvc.metrics.energy_in_mask(net, pets, name, masks, mask_values=(1,)).mean
            print(f"{METHODS[name].title:16} energy in the mask {share:.3f}")


def recognised(net: tvc.Network, photos: list[Path]) -> dict[int, Path]:
    """The first photo of each class that a network recognises with a probability above 0.8."""
    known: dict[int, Path] = {}
    for photo in photos:
        number = class_number(photo)
        if number not in known and float(tvc.predict(net, photo)[0, number]) > 0.8:
            known[number] = photo
    return known


if __name__ == "__main__":
    tell_mistakes()
    main()
