"""How often a network's class heatmap peaks on the animal, over photos with masks as of Oxford-IIIT Pet.

    python scripts/localisation.py DIR [--model cats_and_dogs]

DIR holds `images/NAME.jpg` and `trimaps/NAME.png` (1 animal, 2 background, 3 border); capitalised names are cats. The
share of photos whose strongest pixel lies on the animal (`tvc.metrics.pointing_game` without tolerance; maps without
any evidence are left out, and counted) is printed beside two baselines: the photo's middle, and a pixel anywhere in
what the network saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from usage import files_in, tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import counted

NAMES = {"Grad-CAM": "grad_cam", "CAM": "cam"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="cats_and_dogs")
    parser.add_argument("--weights")
    args = parser.parse_args(argv)
    net = tvc.load_model(args.model, args.weights)
    masks = files_in(args.folder / "trimaps", "*.png")
    photos = [args.folder / "images" / f"{mask.stem}.jpg" for mask in masks]
    target = torch.tensor([net.class_index("cat" if mask.stem[0].isupper() else "dog") for mask in masks])
    right = [int(tvc.predict(net, photo).argmax()) == int(one) for photo, one in zip(photos, target, strict=True)]
    print(f"{args.model} on {counted(len(masks), 'photo')}: {sum(right) / len(masks):.3f} classified right")
    middle = torch.zeros(len(photos), 3, 3)
    middle[:, 1, 1] = 1
    judged: dict[str, str | torch.Tensor] = {**NAMES, "middle pixel": middle}
    for name, maps in judged.items():
        measured = tvc.metrics.pointing_game(net, photos, maps, masks, target=target, tolerance=0, mask_values=(1,))
        of = "" if measured.count == len(photos) else f" (of {counted(measured.count, 'map')} with evidence)"
        print(f"  {name + ' on the animal':30}{measured.mean:.3f}{of}")
    print(f"  {'any pixel on the animal':30}{float(measured.details['area'].nanmean()):.3f}")


if __name__ == "__main__":
    tell_mistakes()
    main()
