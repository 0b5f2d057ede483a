"""Photos to be read: `python photos.py FOLDER COUNT` writes JPEG files of 500 x 375 pixels by all processors.

One in five is a photo of its own, the others are links to it. A process of its own makes them, in which neither PyTorch
nor a device is in use, so that it may fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int) -> None:
    """Write so many files, called by their numbers."""
    own = -(-count // 5)
    with multiprocessing.Pool() as pool:
        pool.starmap(_write, [(folder, number) for number in range(own)])
    for number in range(own, count):
        os.link(folder / f"{number % own:06}.jpg", folder / f"{number:06}.jpg")


def _write(folder: Path, number: int) -> None:
    """Colours that change slowly, and grain."""
    numbers = np.random.default_rng(number)
    coarse = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    colours = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = numbers.normal(0, 6, (375, 500, 1)).astype(np.float32)
    picture = Image.fromarray(np.clip(colours + grain, 0, 255).astype(np.uint8))
    picture.save(folder / f"{number:06}.jpg", quality=85)


if __name__ == "__main__":
    write_photos(Path(sys.argv[1]), int(sys.argv[2]))
