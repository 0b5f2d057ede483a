"""Accuracy and confusion counts of a bundled network, or of what train.py wrote, on a folder of pictures.

    python scripts/evaluate.py cats_and_dogs DIR/test
    python scripts/evaluate.py runs/convnet/model.safetensors DIR/validation

Pictures are prepared as the network is used: shorter side to its input size, centre crop.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from pictures import MEAN, STD, normalize, read_folder, resize
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from train import MODELS

from torchviz_cnn.models.bundled import BUNDLED, bundled, bundled_path


def network(name: str) -> tuple[nn.Module, tuple[str, ...], int, bool]:
    """The model, its categories, its input size and whether it wants grey pictures."""
    if name in BUNDLED:
        entry = bundled(name)
        if (entry.mean, entry.std, entry.resize) != (MEAN, STD, entry.input_size[0]):
            raise SystemExit(f"{name} is prepared otherwise than this script prepares pictures")
        model, path = entry.factory(), bundled_path(name)
        categories, size, grey = entry.categories, entry.input_size[0], False
    else:
        path = Path(name)
        if not path.is_file():
            raise SystemExit(f"{name!r} is no file and no bundled network ({', '.join(BUNDLED)})")
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        if "model" not in about:
            raise SystemExit(f"{path} was not written by train.py: its metadata names no model")
        categories, size = tuple(json.loads(about["categories"])), int(about["input_size"])
        grey = about["in_channels"] == "1"
        fixed = {"input_size": size} if about["model"] == "convnet_2017" else {}
        model = MODELS[about["model"]](num_classes=len(categories), in_channels=int(about["in_channels"]), **fixed)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return model, categories, size, grey


@torch.no_grad()
def confusion(model: nn.Module, images: Tensor, labels: Tensor, classes: int, device: torch.device) -> Tensor:
    """`(classes, classes)` counts, rows the truth and columns the answer."""
    model.eval()
    answers = torch.cat([model(normalize(batch.to(device))).argmax(1).cpu() for batch in torch.split(images, 128)])
    return torch.bincount(labels * classes + answers, minlength=classes * classes).view(classes, classes)


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help=f"a bundled name ({', '.join(BUNDLED)}) or a file that train.py wrote")
    parser.add_argument("folder", type=Path, help="DIR/CLASS/*.jpg")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)

    model, categories, size, grey = network(args.network)
    model.to(device)
    pictures = read_folder(args.folder, 8, grey)  # the thumbnails are not used: only the list of files
    if pictures.categories != categories:
        raise SystemExit(f"{args.folder} has classes {pictures.categories}, the network {categories}")
    images = resize(pictures, size)
    counts = confusion(model, images, pictures.labels, len(categories), device)
    right, count = int(counts.diagonal().sum()), len(images)
    print(f"{args.network} on {args.folder}: accuracy {right / count:.4f} ({right} of {count})")
    width = max(map(len, categories))
    for truth, row in zip(categories, counts.tolist(), strict=True):
        said = ", ".join(f"{n} called {name}" for name, n in zip(categories, row, strict=True))
        print(f"  {truth:{width}}: {said}")
    return right / count


if __name__ == "__main__":
    main()
