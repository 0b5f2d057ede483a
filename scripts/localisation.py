"""How often a network's class heatmap peaks on the animal, over photos with masks as of Oxford-IIIT Pet.

    python scripts/localisation.py DIR [--model cats_and_dogs]

DIR holds `images/NAME.jpg` and `trimaps/NAME.png` (1 animal, 2 background, 3 border); capitalised names are cats. The
share of photos whose strongest pixel lies on the animal is printed beside two baselines: the photo's middle pixel, and
a pixel anywhere in what the network saw.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import torchviz_cnn as tvc

METHODS: dict[str, Callable[..., tvc.Heatmap]] = {"Grad-CAM": tvc.grad_cam, "CAM": tvc.class_activation_map}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="cats_and_dogs")
    parser.add_argument("--weights")
    args = parser.parse_args()
    net = tvc.load_model(args.model, args.weights)
    masks = sorted((args.folder / "trimaps").glob("*.png"))
    if not masks:
        sys.exit(f"no masks in {args.folder / 'trimaps'}")
    hits = dict.fromkeys([*METHODS, "middle pixel", "any pixel"], 0.0)
    right = 0
    for mask_path in tqdm(masks, disable=not sys.stderr.isatty()):
        photo = tvc.read_image(args.folder / "images" / f"{mask_path.stem}.jpg")
        animal = np.asarray(Image.open(mask_path).resize(photo.size, Image.Resampling.NEAREST)) == 1
        target = "cat" if mask_path.stem[0].isupper() else "dog"
        for name, method in METHODS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", tvc.EmptyMapWarning)  # counted as it falls: at the first pixel
                heat = method(net, photo, target=target)
            column, row = heat.peak()
            hits[name] += bool(animal[row, column])
        right += net.category(int(heat.logits.argmax())) == target
        hits["middle pixel"] += bool(animal[photo.height // 2, photo.width // 2])
        left, top, to_right, bottom = (round(edge) for edge in net.preprocess.seen_box(*photo.size))
        hits["any pixel"] += float(animal[max(top, 0) : bottom, max(left, 0) : to_right].mean())
    print(f"{args.model} on {len(masks)} photos: {right / len(masks):.3f} classified right")
    for name, count in hits.items():
        print(f"  {name + ' on the animal':30}{count / len(masks):.3f}")


if __name__ == "__main__":
    main()
