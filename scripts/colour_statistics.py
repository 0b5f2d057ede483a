"""Measure how the colours of photos vary together, for images written in decorrelated colours.

    python scripts/colour_statistics.py FOLDER

Prints the matrix that `torchviz_cnn/ascent/parameters.py` holds: the square root of the covariance of the colours,
divided by its largest column norm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from usage import files_in, tell_mistakes

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    paths = files_in(parser.parse_args().folder, "**/*.jpg")
    total, products, count = torch.zeros(3).double(), torch.zeros(3, 3).double(), 0
    for path in paths:
        colours = torch.from_numpy(np.asarray(tvc.read_image(path), dtype=np.float64).reshape(-1, 3) / 255)
        total, products, count = total + colours.sum(0), products + colours.T @ colours, count + len(colours)
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.sqrt()).flip(1)
    root = root * root.sum(0).sign()
    root = root / root.norm(dim=0).max()
    print(f"{counted(len(paths), 'photo')}, mean {[round(float(m), 3) for m in mean]}")
    print("\n".join(f"    ({', '.join(f'{v:.3f}' for v in row)})," for row in root.tolist()))


if __name__ == "__main__":
    tell_mistakes()
    main()
