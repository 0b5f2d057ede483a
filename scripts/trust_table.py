"""The tables of docs/trust.md: methods of this library and of others, judged on the same photos in one run.

python scripts/trust_table.py PETS PHOTOS MODEL [WEIGHTS] [--count 300] [--perturbed 24] [--mosaics 24] [--out FOLDER]

PETS holds `images/NAME.jpg` and `trimaps/NAME.png` (1 animal, 2 background, 3 border). PHOTOS holds files that begin
with the number of their ImageNet class, as 963_pizza.jpg, for mosaics. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
from peers import peers
from usage import files_in, tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.attribution.metrics.mosaics import Mosaics, own_cell
from torchviz_cnn.core.errors import counted

METHODS = ("grad_cam", "competitive_cam", "layer_cam", "saliency", "guided", "guided_grad_cam")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pets", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("model")
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--count", type=int, default=300, help="how many pets (%(default)s)")
    parser.add_argument("--perturbed", type=int, default=24, help="how many of them are changed (%(default)s)")
    parser.add_argument("--mosaics", type=int, default=24, help="how many mosaics (%(default)s)")
    parser.add_argument("--out", type=Path, help="keep what is measured here, so that the same command goes on")
    for option in ("--mean", "--std"):
        parser.add_argument(option, type=float, nargs="+")
    args = parser.parse_args(argv)
    begun = time.monotonic()
    warnings.simplefilter("ignore", UserWarning)  # of the peers, about hooks that they set
    net = tvc.load_model(args.model, args.weights, mean=args.mean, std=args.std)
    photos = files_in(args.pets / "images", "*.jpg")[:: max(1, 300 // args.count)]
    layer = tvc.grad_cam(net, photos[0]).layer
    judged = tvc.trust(
        net,
        photos,
        methods=[*METHODS, peers(layer)],
        masks=args.pets / "trimaps",
        mask_values=(1,),
        perturbed=args.perturbed,
        mosaics=0,
        out=args.out,
        progress=True,
    )
    own, about = own_cells(net, judged, args.photos, args.mosaics)
    print(f"\n**{args.model}**: {counted(len(photos), 'pet')}, {args.perturbed} of them perturbed; {about}.\n")
    columns = [column for column in judged.shown if column.name != "grid_pointing_game"]
    print("| method | " + " | ".join(column.title for column in columns) + " | own cell |")
    print("|---|" + "---|" * (len(columns) + 1))
    for row in judged.rows:
        cells = [f"{judged[row.key, column.name].mean:.3f}".replace("nan", "–") for column in columns]
        print(f"| {row.title} | {' | '.join(cells)} | {own.get(row.key, '–')} |")
    for sentence in (*judged.sentences.values(), *judged.verdict):
        print(f"- {sentence}")
    print(
        f"\n{time.monotonic() - begun:.0f} s, {torch.get_num_threads()} threads, torch {torch.__version__}",
        file=sys.stderr,
    )


def own_cells(net: tvc.Network, judged: tvc.Trust, folder: Path, count: int) -> tuple[dict[str, str], str]:
    """The share of the evidence in the own cell by method, and of what mosaics."""
    photos = files_in(folder, "*.jpg")
    try:
        mosaics = Mosaics.of(net, photos, truth=lambda path: int(path.name.split("_")[0]), count=count, progress=True)
    except tvc.InputError as error:
        return {}, f"no mosaics: {error}"
    shares = {}
    for row in judged.rows:
        if row.refused is None:
            shares[row.key] = f"{own_cell(net, mosaics, row.explain).mean:.3f}"
    return shares, f"{counted(len(mosaics), 'mosaic')}"


if __name__ == "__main__":
    tell_mistakes()
    main()
