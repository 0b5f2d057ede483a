"""Draw the textbook's filter grids beside clean ones, from real weights of VGG16 and Xception, for docs/filters.md.

python scripts/textbook_filters.py vgg16_features.safetensors kitchenware_xception.keras [FOLDER]

Filters are kept in build/filters, so that a run that was stopped goes on from there. It takes about half an hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from usage import arguments

import torchviz_cnn as tvc
from torchviz_cnn.ascent.recipes import Preset

WORK = Path("build/filters")
SIDE = 560
"""How wide a grid of eight columns is in a figure, in pixels."""
VGG16 = ("features.0", "features.5", "features.10", "features.17")
XCEPTION = ("xception.block2_sepconv1", "xception.block4_sepconv1", "xception.block8_sepconv1")
STRIP = (("vgg16", VGG16[2]), ("vgg16", VGG16[3]), ("xception", XCEPTION[1]), ("xception", XCEPTION[2]))


def main(vgg16: str, xception: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vgg, exception = tvc.load_model("vgg16", vgg16, head="none"), tvc.load_model(xception)
    pairs = {
        "vgg16": (
            atlas(vgg, "vgg16_textbook", VGG16, 64, "dlwp-2017"),
            atlas(vgg, "vgg16_clean", VGG16, 64, "clean", 112),
        ),
        "xception": (
            atlas(exception, "xception_textbook", XCEPTION, 24, "dlwp-2025"),
            atlas(exception, "xception_clean", XCEPTION, 24, "clean", 144),
        ),
    }
    for name, both in pairs.items():
        for layer in both[0].layers:
            grids = [wide(one.patterns(layer).grid(), SIDE) for one in both]
            save(joined(grids, 20), folder / f"filters_{name}_{layer.rpartition('.')[2]}.jpg")
    rows = [row(pairs[name][1].patterns(layer)) for name, layer in STRIP]
    save(joined(rows, 4, downwards=True), folder / "filters_vgg16_xception.jpg")


def atlas(
    net: tvc.Network, name: str, layers: Iterable[str], k: int, preset: Preset, size: int | None = None
) -> tvc.Atlas:
    folder = WORK / name
    return tvc.filter_atlas(net, folder, tuple(layers), k, preset=preset, size=size, name=name, progress=True)


def row(patterns: tvc.Patterns, count: int = 8, side: int = 132) -> Image.Image:
    """The patterns whose score grew most, of those that are not dead."""
    grown = (patterns.scores[:, -1] - patterns.scores[:, 0]).argsort(descending=True)[:count].sort().values
    tiles = [patterns.image(int(i)).resize((side, side), Image.Resampling.LANCZOS) for i in grown]
    return joined(tiles, 4)


def wide(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def joined(pictures: list[Image.Image], gap: int, downwards: bool = False) -> Image.Image:
    """Pictures beside each other, or below each other, on white."""
    if downwards:
        size = (pictures[0].width, sum(one.height + gap for one in pictures) - gap)
    else:
        size = (sum(one.width + gap for one in pictures) - gap, max(one.height for one in pictures))
    canvas, place = Image.new("RGB", size, "white"), 0
    for one in pictures:
        canvas.paste(one, (0, place) if downwards else (place, 0))
        place += (one.height if downwards else one.width) + gap
    return canvas


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=90)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    vgg16, xception, *folder = arguments("VGG16_WEIGHTS XCEPTION_FILE [FOLDER]")
    main(vgg16, xception, Path(*folder) if folder else Path(__file__).parents[1] / "docs" / "figures")
