"""How often an ImageNet network is right on photos whose names begin with the number of their class: 386_elephant.jpg.

python scripts/imagenet_accuracy.py DIR [--model NAME] [--weights FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm
from usage import tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import InputError, counted


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="DIR/NNN_name.jpg")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights")
    args = parser.parse_args(argv)
    net = tvc.load_model(args.model, args.weights)
    photos = sorted(args.folder.glob("[0-9][0-9][0-9]_*"))
    if not photos:
        raise InputError(f"{args.folder} has no photos named by their class, as 386_elephant.jpg")
    truth = torch.tensor([int(photo.name[:3]) for photo in photos])
    batches = tqdm(range(0, len(photos), 32), disable=None)
    best = torch.cat([tvc.predict(net, photos[i : i + 32]).topk(5).indices for i in batches])
    right = best == truth[:, None]
    top1, top5 = right[:, 0].float().mean().item(), right.any(1).float().mean().item()
    print(f"{net.name} on {counted(len(photos), 'photo')}: top-1 {top1:.3f}, top-5 {top5:.3f}")
    return top1


if __name__ == "__main__":
    tell_mistakes()
    main()
