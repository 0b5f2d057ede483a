"""Memory does not grow with the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.surveys.generated import CLASSES

pytest.importorskip("psutil")
ROOT = Path(__file__).parents[2]
CODE = """
import sys, psutil, torch
import torchviz_cnn as tvc
from tests.surveys.generated import network
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    result = tvc.survey(network(), folder, batch_size=50, workers=0, k=3, out=folder + "_out")
    print(len(result), psutil.Process().memory_info().rss)
"""


@pytest.mark.slow
def test_ten_times_the_photos_take_no_more_memory(tmp_path: Path) -> None:
    """400 photos and then 4,000, in one process, whose memory grows by less than a twentieth."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for number in range(4_000):
        for folder, count in (("few", 400), ("many", 4_000)):
            if number < count:
                place = tmp_path / folder / CLASSES[number % 3].lower().replace(" ", "_")
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.roll(pixels, number, 0) + np.uint8(number % 7)).save(place / f"{number}.bmp")
    command = [sys.executable, "-c", CODE, str(tmp_path / "few"), str(tmp_path / "many")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (few, before), (many, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (400, 4_000)
    assert after < 1.05 * before, (before, after)
