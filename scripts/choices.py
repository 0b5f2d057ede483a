"""Write what options of the command line can be, from the tables and types that the library itself reads.

python scripts/choices.py [FILE]

The help of the command line reads the file, so that it does not wait for PyTorch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

from torchviz_cnn.ascent.atlas import Rectify
from torchviz_cnn.ascent.loop import Precision
from torchviz_cnn.ascent.recipes import RECIPES, Normalize, Optimizer, Parameters, Quality
from torchviz_cnn.attribution.methods import METHODS, SUITS
from torchviz_cnn.attribution.saliency import Reduce
from torchviz_cnn.attribution.video import Scale
from torchviz_cnn.cli.choices import FILE
from torchviz_cnn.hooks.relu_rules import OtherActivations
from torchviz_cnn.media.decoding import Decode
from torchviz_cnn.media.images import Geometry
from torchviz_cnn.media.render import Blend, Preset
from torchviz_cnn.models.catalogue import BUNDLED, INSTALLED
from torchviz_cnn.models.checkpoints.fitting import Head
from torchviz_cnn.scores.projection import Projection
from torchviz_cnn.scores.targets import Score
from torchviz_cnn.topk.result import By

TYPES: dict[str, Any] = {
    "blend": Blend,
    "by": By,
    "decode": Decode,
    "geometry": Geometry,
    "head": Head,
    "normalize": Normalize,
    "optimizer": Optimizer,
    "other_activations": OtherActivations,
    "parameters": Parameters,
    "precision": Precision,
    "preset_of_overlays": Preset,
    "projection": Projection,
    "quality": Quality,
    "rectify": Rectify,
    "reduce": Reduce,
    "scale": Scale,
    "score": Score,
}


def choices() -> dict[str, Any]:
    """All choices: of each option a list, of methods the rows of their table, without the functions."""
    lists: dict[str, Any] = {name: list(get_args(kind)) for name, kind in TYPES.items()}
    lists |= {"preset_of_patterns": list(RECIPES), "network_with_weights": [*INSTALLED, *BUNDLED], "suits": SUITS}
    rows = {
        name: {"kind": row.kind, "options": list(row.options), "shows": row.shows, "paper": row.paper, "slow": row.slow}
        for name, row in METHODS.items()
    }
    return {**lists, "methods": rows}


def written() -> str:
    return json.dumps(choices(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else FILE).write_text(written(), encoding="utf-8")
