"""Put four pictures of docs/figures into one, the first that a reader of README sees.

python scripts/overview.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

PICTURES = {
    "filters_vgg16_xception.jpg": "What filters respond to: VGG16, and Xception below",
    "two_classes.jpg": "Where each class is: EfficientNet-Lite0",
    "deconvnet.jpg": "What the strongest units react to (deconvnet)",
    "report.jpg": "All of it on one page, and one channel by itself",
}
SIZE, CAPTION, GAP = (690, 340), 34, 20


def main(folder: Path) -> None:
    width, height = SIZE
    both = Image.new("RGB", (2 * width + GAP, 2 * (height + CAPTION) + GAP), "white")
    draw, font = ImageDraw.Draw(both), ImageFont.load_default(18)
    for place, (name, caption) in enumerate(PICTURES.items()):
        x, y = place % 2 * (width + GAP), place // 2 * (height + CAPTION + GAP)
        draw.text((x + width / 2, y + CAPTION / 2), caption, "black", font, "mm")
        both.paste(ImageOps.pad(Image.open(folder / name), SIZE, color="white"), (x, y + CAPTION))
    both.save(folder / "overview.jpg", quality=90, subsampling=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "figures")
