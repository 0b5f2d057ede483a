"""Measure how well heatmaps tell several things apart: mosaics of 2 x 2 photos, a class of each, and its own quarter.

python scripts/mosaics.py PHOTOS MODEL [WEIGHTS] [--mosaics 40]

PHOTOS holds files that begin with the number of their class, as 963_pizza.jpg. Only photos are taken that the network
recognises with a probability of at least 0.8. Prints the share of the positive evidence for a class that lies in the
quarter of its photo, for each method; by chance it is 0.25: see `tvc.metrics.grid_pointing_game`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from usage import files_in, tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.attribution.methods import METHODS
from torchviz_cnn.attribution.metrics.mosaics import Mosaics, own_cell

NAMES = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus", "xgrad_cam", "competitive_cam")


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
    photos = files_in(args.photos, "*.jpg")
    mosaics = Mosaics.of(net, photos, truth=class_number, count=args.mosaics, threshold=0.8)
    print(f"{args.model}: {mosaics}")
    for name in NAMES:
        measured = own_cell(net, mosaics, name)
        print(f"{METHODS[name].title:16} mean {measured.mean:.3f}  median {measured.median:.3f}")


def class_number(photo: Path) -> int:
    """The class of a photo that is called after its number."""
    return int(photo.name.split("_")[0])


if __name__ == "__main__":
    tell_mistakes()
    main()
