"""Judge maps whose right answer is known, by every metric: is a perfect map the best, and a random one bad?

python scripts/known_answers.py [--pictures 16] [--out PICTURE] [--seed 0]

Trains, in about a minute, a small network on generated pictures: a patch of stripes or squares at any place decides the
class by itself, in any two colours. A disc, as large and more conspicuous, says nothing. Prints what each metric says
of a perfect map (the patch), of the centre, of a random and of an inverted map, and of all methods, and fails (exit
code 1) if a metric does not prefer the perfect map to the random one.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from usage import tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.attribution.methods import METHODS
from torchviz_cnn.attribution.metrics.mosaics import Mosaics, disconnected, own_cell
from torchviz_cnn.attribution.metrics.result import Measurement

SIDE, PATCH = 48, 12
CLASSES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "squares")
STEPS, BATCH = 400, 32
OWN_TITLES = {
    "perfect": "the patch itself",
    "centre": "the centre",
    "random": "random",
    "inverted": "all but the patch",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16, help="how many pictures are judged (%(default)s)")
    parser.add_argument("--out", type=Path, help="draw pictures and their maps to this file")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the network (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # of so small a network, threads only wait for each other
    started = time.monotonic()
    model, accuracy = train(args.seed)
    print(f"{accuracy:.1%} of 1000 new pictures are classified right, after {time.monotonic() - started:.0f} s")
    if accuracy < 0.99:
        print("the network has not learnt what decides: its maps have no known answer", file=sys.stderr)
        return 1
    x, classes, patches = pictures(args.pictures, torch.Generator().manual_seed(args.seed + 2))
    maps = all_maps(model, x, classes, patches, args.seed)
    table = {name: of_maps(model, x, classes, patches, values) for name, values in maps.items()}
    for name, metrics in of_methods(model, x, classes).items():
        table[name] |= metrics
    print_table(table)
    print(f"{time.monotonic() - started:.0f} s in all")
    if args.out is not None:
        draw(x, patches, maps, args.out)
    return report_wrong(table)


def pictures(count: int, chance: torch.Generator, *, complete: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (N, 3, H, W), their classes (N,), and where the patch is that decides: (N, H, W) bool.

    Unless they are `complete`, of some the ground is plain, and of others the patch, or the disc, is missing; without a
    patch the class is -1.
    """

    def some(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=chance) < (0.0 if complete else share)

    ground = torch.randn(count, 3, 8, 8, generator=chance)
    ground = F.interpolate(ground, (SIDE, SIDE), mode="bilinear") * 0.6
    ground = (ground + 0.2 * torch.randn(count, 3, SIDE, SIDE, generator=chance)).masked_fill(some(0.3), 0)
    patches, discs = places(count, chance)
    classes = torch.arange(count) % len(CLASSES)
    one, other = torch.rand(2, count, 3, 1, 1, generator=chance) * 2 - 1
    far = (one - other).abs().amax(1, keepdim=True) > 0.8  # colours that can be told apart
    other = torch.where(far, other, -one.sign())
    texture = torch.where(textures(count, chance)[torch.arange(count), classes][:, None], one, other)
    no_patch, no_disc = some(0.2), some(0.3)
    x = torch.where(patches[:, None] & ~no_patch, texture, ground)
    colour = 2 * torch.nn.functional.one_hot(torch.randint(3, (count,), generator=chance), 3).float()[..., None, None]
    x = torch.where(discs[:, None] & ~no_disc, colour, x)
    return x, classes.masked_fill(no_patch.flatten(), -1), patches


def places(count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square patch and a disc that do not touch, for each picture: (N, H, W) bool each."""
    corners = torch.randint(SIDE - PATCH, (count, 64, 2, 2), generator=chance)
    apart = (corners[:, :, 0] - corners[:, :, 1]).abs().amax(2) > PATCH
    corners = corners[torch.arange(count), apart.int().argmax(1)]
    rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)
    down, across = (rows - corners[..., 0, None, None], columns - corners[..., 1, None, None])
    square = (down >= 0) & (down < PATCH) & (across >= 0) & (across < PATCH)
    middle = (PATCH - 1) / 2
    disc = (down - middle) ** 2 + (across - middle) ** 2 <= (PATCH / 2) ** 2
    return square[:, 0], disc[:, 1]


def textures(count: int, chance: torch.Generator) -> Tensor:
    """The texture of each class, over all of the picture, moved by chance: (N, classes, H, W) bool."""
    down, across = torch.randint(4, (2, count, 1, 1), generator=chance)
    rows, columns = torch.arange(SIDE)[:, None] + down, torch.arange(SIDE) + across
    both = (rows // 2 + columns // 2) % 2 == 0
    parts = (rows // 2 % 2 == 0, columns // 2 % 2 == 0, (rows + columns) // 2 % 2 == 0, both)
    return torch.stack([part.expand(count, SIDE, SIDE) for part in parts], 1)


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after, side, stride in ((3, 16, 4, 2), (16, 32, 3, 1), (32, 48, 4, 2)):
        layers += [nn.Conv2d(before, after, side, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, len(CLASSES)))


def train(seed: int) -> tuple[nn.Module, float]:
    """A network that is trained on pictures, and its share of right answers on 1000 others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, chance = network(), torch.Generator().manual_seed(seed + 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS)
        for _ in range(STEPS):
            x, classes, _ = pictures(BATCH, chance, complete=False)
            wanted = torch.full((BATCH, len(CLASSES)), 1 / len(CLASSES))  # without a patch, no class is likelier
            known = classes >= 0
            wanted[known] = F.one_hot(classes[known], len(CLASSES)).float()
            loss = F.cross_entropy(model(x), wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    x, classes, _ = pictures(1000, torch.Generator().manual_seed(seed + 3))
    right = torch.cat([tvc.predict(model, part).argmax(1) for part in torch.split(x, 100)]) == classes
    return model, float(right.float().mean())


def all_maps(model: nn.Module, x: Tensor, classes: Tensor, patches: Tensor, seed: int) -> dict[str, Tensor]:
    """Maps (N, h, w) whose answer is known, and those of all methods."""
    along = torch.linspace(-1, 1, SIDE)
    centre = torch.exp(-2 * (along[:, None] ** 2 + along**2)).expand_as(patches)
    maps = {
        "perfect": patches.float(),
        "centre": centre,
        "random": torch.rand(patches.shape, generator=torch.Generator().manual_seed(seed)),
        "inverted": 1 - patches.float(),
    }
    for name, method in METHODS.items():
        options = {"patch": 8, "stride": 4} if name == "occlusion" else {}
        maps[name] = torch.cat([method.explain(model, **part, **options).values for part in batches(x, classes)])
    return maps


def batches(x: Tensor, classes: Tensor) -> Any:
    return (
        ({"x": some, "target": own}) for some, own in zip(torch.split(x, 16), torch.split(classes, 16), strict=True)
    )


def of_maps(model: nn.Module, x: Tensor, classes: Tensor, patches: Tensor, maps: Tensor) -> dict[str, Measurement]:
    """What all metrics of maps say of some."""
    given = (model, x, maps)
    return {
        "insertion": tvc.metrics.insertion(*given, target=classes, steps=16),
        "deletion": tvc.metrics.deletion(*given, target=classes, steps=16),
        "average_drop": tvc.metrics.average_drop(*given, target=classes),
        "road": tvc.metrics.road(*given, target=classes),
        "pointing_game": tvc.metrics.pointing_game(*given, patches, target=classes, tolerance=0),
        "energy_in_mask": tvc.metrics.energy_in_mask(*given, patches, target=classes),
    }


def of_methods(model: nn.Module, x: Tensor, classes: Tensor) -> dict[str, dict[str, Measurement]]:
    """What metrics say that take the method itself."""
    mosaics = Mosaics.of(model, x, truth=classes, count=4, threshold=0.5)
    table: dict[str, dict[str, Measurement]] = {}
    warnings.simplefilter("ignore", tvc.TorchvizWarning)  # of Ablation-CAM, where the score of a class is below 0
    for name in METHODS:
        alike = tvc.metrics.randomization(model, x[:8], name, classes[:8], order="all")
        table[name] = {"own_cell": own_cell(model, mosaics, name), "randomization": alike}
        with contextlib.suppress(tvc.LayerError, tvc.ModelError):  # FullGrad and CAM do not run cell by cell
            table[name]["difull"] = disconnected(model, mosaics, name)
    return table


def print_table(table: dict[str, dict[str, Measurement]]) -> None:
    """A row for each map, the mean of each metric over the pictures; a dash where it cannot be measured."""
    metrics = list(dict.fromkeys(metric for row in table.values() for metric in row))
    measured = {metric: next(row[metric] for row in table.values() if metric in row) for metric in metrics}
    width = max(len(metric) for metric in metrics) + 2
    print(f"{'':24}" + "".join(f"{metric:>{width}}" for metric in metrics))
    print(f"{'better':24}" + "".join(f"{measured[metric].better:>{width}}" for metric in metrics))
    for name, row in table.items():
        means = (row[metric].mean if metric in row else math.nan for metric in metrics)
        cells = ("-" if math.isnan(mean) else f"{mean:.3f}" for mean in means)
        print(f"{title_of(name):24}" + "".join(f"{cell:>{width}}" for cell in cells))


def report_wrong(table: dict[str, dict[str, Measurement]]) -> int:
    """1 where a metric does not prefer the perfect map to the random one, which is said; else 0."""
    wrong = 0
    for metric, perfect in table["perfect"].items():
        random = table["random"][metric]
        sign = 1 if perfect.better == "higher" else -1
        if not sign * perfect.mean > sign * random.mean:  # also where one is NaN
            print(f"{metric} prefers {random.mean:.3f}, random, to {perfect.mean:.3f}, perfect", file=sys.stderr)
            wrong = 1
    return wrong


def title_of(name: str) -> str:
    return OWN_TITLES[name] if name in OWN_TITLES else METHODS[name].title


def draw(x: Tensor, patches: Tensor, maps: dict[str, Tensor], path: Path) -> None:
    """Some pictures, with the patch outlined, and below them their maps, in two columns of rows."""
    from matplotlib.figure import Figure

    shown = 5
    rows = [("the picture", x[:shown].permute(0, 2, 3, 1) / 4 + 0.5)]
    rows += [(title_of(name), values[:shown].relu()) for name, values in maps.items()]
    half = math.ceil(len(rows) / 2)
    figure = Figure(figsize=(13, 0.95 * half), dpi=100)
    for place, (title, values) in enumerate(rows):
        for column in range(shown):
            axes = figure.add_axes(spot(place, column, half, shown))
            axes.imshow(values[column].clamp(0, 1) if place == 0 else values[column], cmap="inferno", extent=EXTENT)
            axes.contour(patches[column].float(), [0.5], colors="cyan", linewidths=1, extent=EXTENT, origin="upper")
            axes.set_axis_off()
        left, bottom, _, height = spot(place, 0, half, shown)
        figure.text(left - 0.005, bottom + height / 2, title, ha="right", va="center", fontsize=9)
    figure.savefig(path)


EXTENT = (0, SIDE, SIDE, 0)


def spot(place: int, column: int, half: int, shown: int) -> tuple[float, float, float, float]:
    """Where a map stands in the figure: left, bottom, width and height, as shares of it."""
    block, row = divmod(place, half)
    width = 0.36 / shown
    return 0.13 + 0.5 * block + width * column, 1 - (row + 1) / half + 0.1 / half, 0.95 * width, 0.85 / half


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
