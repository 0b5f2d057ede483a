"""Accuracy and confusion counts of a bundled network, or of what train.py wrote, on a folder of pictures.

    python scripts/evaluate.py cats_and_dogs DIR/test
    python scripts/evaluate.py runs/convnet/model.safetensors DIR/validation

Pictures are prepared as the network is used: shorter side to its input size, centre crop.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pictures import MEAN, STD, normalize, read_folder, resize
from torch import Tensor, nn
from usage import tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.models.catalogue import BUNDLED
from torchviz_cnn.models.checkpoints.reading import read_metadata


def network(name: str) -> tvc.Network:
    """A bundled network, or the one in a file that train.py wrote."""
    if name in BUNDLED:
        return tvc.load_model(name)
    if not Path(name).is_file():
        raise InputError(f"{name!r} is no file and no bundled network ({', '.join(BUNDLED)})")
    about = read_metadata(name)
    if not about:
        raise InputError(f"{name} was not written by train.py: its metadata names no model")
    return tvc.load_model(about["model"], name)


@torch.no_grad()
def confusion(model: nn.Module, images: Tensor, labels: Tensor, classes: int, device: torch.device) -> Tensor:
    """`(classes, classes)` counts, rows the truth and columns the prediction."""
    model.eval()
    predicted = torch.cat([model(normalize(batch.to(device))).argmax(1).cpu() for batch in torch.split(images, 128)])
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help=f"a bundled name ({', '.join(BUNDLED)}) or a file that train.py wrote")
    parser.add_argument("folder", type=Path, help="DIR/CLASS/*.jpg")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)

    net = network(args.network)
    (size, _), categories, grey = net.input_size, net.categories or (), len(net.preprocess.mean) == 1
    if (net.preprocess.mean, net.preprocess.std) != (MEAN[: 1 if grey else 3], STD[: 1 if grey else 3]):
        raise InputError(f"{args.network} is prepared otherwise than this script prepares pictures")
    pictures = read_folder(args.folder, 8, grey)  # the thumbnails are not used: only the list of files
    if pictures.categories != categories:
        raise InputError(f"{args.folder} has classes {pictures.categories}, the network {categories}")
    counts = confusion(net.model.to(device), resize(pictures, size), pictures.labels, len(categories), device)
    right, count = int(counts.diagonal().sum()), len(pictures)
    print(f"{args.network} on {args.folder}: accuracy {right / count:.4f} ({right} of {count})")
    width = max(map(len, categories))
    for truth, row in zip(categories, counts.tolist(), strict=True):
        called = ", ".join(f"{n} called {name}" for name, n in zip(categories, row, strict=True))
        print(f"  {truth:{width}}: {called}")
    return right / count


if __name__ == "__main__":
    tell_mistakes()
    main()
