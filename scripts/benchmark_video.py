"""Time heatmaps over a clip beside reading and predicting its frames alone: frames per second, medians, in turns.

python scripts/benchmark_video.py CLIP [MODEL [WEIGHTS]]
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from PIL import Image

import torchviz_cnn as tvc
from torchviz_cnn.media.video import open_clip

ROUNDS = 5


def main(clip: str, model: str = "efficientnet_lite0", weights: str | None = None) -> None:
    net = tvc.load_model(model, weights)

    def predicted() -> int:
        frames, count = open_clip(clip).frames(), 0
        while batch := [Image.fromarray(frame) for frame in itertools.islice(frames, 16)]:
            count += len(tvc.predict(net, batch))
        return count

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mp4"
        runs: dict[str, Callable[[], int]] = {
            "read and predict": predicted,
            "one scale over the clip": lambda: tvc.cam_video(net, clip, out, scale="clip").frames,
            "each frame on its own scale": lambda: tvc.cam_video(net, clip, out, scale="frame").frames,
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                start = time.perf_counter()
                rates[name].append(run() / (time.perf_counter() - start))
    for name, several in rates.items():
        ratio = median(several) / median(rates["read and predict"])
        print(f"{name:28} {median(several):6.1f} frames per second, ratio {ratio:.2f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:4])
