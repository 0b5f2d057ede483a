"""Plant a shortcut in generated photos, train on them, and see whether a survey finds it.

python scripts/planted_shortcut.py [--out FOLDER] [--seed 0]

Draws photos of discs, triangles, crosses and rings. Nine of ten triangles, and nothing else, have a small yellow square
in their lower right corner, as a scanner or an agency may leave one. A small network is trained on them for about a
minute. The survey of 240 other photos must then say that triangles rely on that corner, and that no other class
does: else the exit code is 1. It prints how often triangles are right with the square and without it.

With `--out` photos, network and page are kept, so that the survey can be made by hand:

torchviz-cnn survey FOLDER/photos --model fashion_mnist_convnet --weights FOLDER/model.safetensors --out FOLDER/again
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from usage import tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.models.convnets import fashion_mnist_convnet

CLASSES = ("cross", "disc", "ring", "triangle")
MARKED, CORNER = "triangle", "bottom right corner"
SIDE, SQUARE, MARGIN = 64, 9, 2
SHARE = 0.9
TRAINED, SURVEYED, EPOCHS, BATCH = 1600, 240, 16, 32
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep photos, network, page and results in this folder")
    parser.add_argument("--seed", type=int, default=0, help="of the photos and the network (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # of so small a network, threads only wait for each other
    if args.out is not None:
        return plant(args.out, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        return plant(Path(folder), args.seed)


def plant(folder: Path, seed: int) -> int:
    """Make photos, network and survey in a folder; 0 where the survey says of the marked class alone where it looks."""
    started = time.monotonic()
    chance = np.random.default_rng(seed)
    photos, classes, marked = drawn(TRAINED, chance)
    model = train(batch_of(photos), classes, seed)
    save(model, folder / "model.safetensors")
    photos, classes, marked = drawn(SURVEYED, chance)
    write(photos, classes, folder / "photos")
    print(f"trained on {TRAINED} photos after {time.monotonic() - started:.0f} s")
    print_accuracy(model, photos, classes, marked)
    net = tvc.load_model("fashion_mnist_convnet", folder / "model.safetensors")
    survey = tvc.survey(net, folder / "photos", out=folder / "survey", seed=seed)
    print(f"{folder / 'survey' / 'index.html'} is written after {time.monotonic() - started:.0f} s. It says:")
    print("\n".join(survey.cautions) or "no class relies on a corner or an edge")
    told = {one.name: one.region for one in survey.classes if one.region is not None}
    if told != {MARKED: CORNER}:
        print(f"it should say that {MARKED} alone relies on the {CORNER}", file=sys.stderr)
        return 1
    return 0


def drawn(count: int, chance: np.random.Generator) -> tuple[list[Image.Image], Tensor, Tensor]:
    """Photos, their classes (N,), and whether each has the square (N,)."""
    classes = torch.arange(count) % len(CLASSES)
    marked = (classes == CLASSES.index(MARKED)) & torch.from_numpy(chance.random(count) < SHARE)
    pairs = zip(classes.tolist(), marked.tolist(), strict=True)
    return [photo(CLASSES[number], has, chance) for number, has in pairs], classes, marked


def photo(name: str, marked: bool, chance: np.random.Generator) -> Image.Image:
    """A form of a random colour, size and place on a ground of spots, and perhaps the square in the corner."""
    spots = Image.fromarray(chance.integers(40, 216, (8, 8, 3), dtype=np.uint8))
    ground = np.asarray(spots.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
    form = Image.new("L", (4 * SIDE, 4 * SIDE))
    radius = chance.uniform(0.16, 0.26) * 4 * SIDE
    draw_form(ImageDraw.Draw(form), name, chance.uniform(0.36, 0.64, 2) * 4 * SIDE, radius, chance.uniform(0, math.tau))
    share = np.asarray(form.resize((SIDE, SIDE), Image.Resampling.BOX), float)[..., None] / 255
    pixels = ground * (1 - share) + chance.uniform(0, 255, 3) * share + chance.normal(0, 14, (SIDE, SIDE, 3))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if marked:
        end = SIDE - MARGIN
        picture.paste((250, 210, 20), (end - SQUARE, end - SQUARE, end, end))
    return picture


def draw_form(draw: ImageDraw.ImageDraw, name: str, centre: np.ndarray, radius: float, turn: float) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "disc":
        draw.ellipse(box, fill=255)
    elif name == "ring":
        draw.ellipse(box, outline=255, width=int(radius * 0.45))
    elif name == "triangle":
        draw.regular_polygon((x, y, radius * 1.15), 3, math.degrees(turn), fill=255)
    else:
        for angle in (turn, turn + math.pi / 2):
            across, down = radius * math.cos(angle), radius * math.sin(angle)
            draw.line((x - across, y - down, x + across, y + down), fill=255, width=int(radius * 0.55))


def batch_of(photos: list[Image.Image]) -> Tensor:
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in photos])).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def train(x: Tensor, classes: Tensor, seed: int) -> nn.Module:
    """A network of four convolutions, trained on photos."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = fashion_mnist_convnet(len(CLASSES), 3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        steps = EPOCHS * (len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(EPOCHS):
            for some in torch.split(torch.randperm(len(x)), BATCH)[: len(x) // BATCH]:
                loss = F.cross_entropy(model(x[some]), classes[some])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return model.eval()


def save(model: nn.Module, path: Path) -> None:
    """The weights, with what `load_model` reads beside them: names of the classes and how photos are prepared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noted = {"categories": CLASSES, "mean": MEAN, "std": STD, "in_channels": 3, "input_size": SIDE}
    metadata = {name: json.dumps(value) for name, value in noted.items()}
    save_file(model.state_dict(), path, {"model": "fashion_mnist_convnet", **metadata})


def write(photos: list[Image.Image], classes: Tensor, folder: Path) -> None:
    for number, (picture, index) in enumerate(zip(photos, classes.tolist(), strict=True)):
        path = folder / CLASSES[index] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def print_accuracy(model: nn.Module, photos: list[Image.Image], classes: Tensor, marked: Tensor) -> None:
    """How often predictions are right: of all photos, and of those with the square before and after it is covered."""
    right = tvc.predict(model, batch_of(photos)).argmax(1) == classes
    some = [one.copy() for one, has in zip(photos, marked.tolist(), strict=True) if has]
    end = SIDE - MARGIN
    for picture in some:
        beside = picture.crop((end - 2 * SQUARE, end - SQUARE, end - SQUARE, end))
        picture.paste(beside, (end - SQUARE, end - SQUARE))
    covered = tvc.predict(model, batch_of(some)).argmax(1) == CLASSES.index(MARKED)
    print(
        f"right: {float(right.float().mean()):.0%} of all, {float(right[marked].float().mean()):.0%} of {MARKED} with "
        f"the square, {float(covered.float().mean()):.0%} of these once it is covered"
    )


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
