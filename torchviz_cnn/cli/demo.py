"""The demo: the bundled network on a photo, all that can be seen, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from torchviz_cnn.core.errors import ImageError
from torchviz_cnn.models import load_model
from torchviz_cnn.page.report import Report, report

MODEL = "cats_and_dogs"
BUDGET = 30.0
"""Seconds after which no further filter pattern is begun."""


def run(out: Path, images: Sequence[Path] = (), *, command: str | None = None, progress: bool = False) -> Report:
    """Write the report of the bundled network for photos, by default a cat, to `index.html` in a folder; gives its path."""
    net = load_model(MODEL)
    photos = list(images) or {"chelsea": _cat()}
    layers = [name for name, _ in net.model.named_children() if name.startswith(("bn", "pool"))]
    return report(net, photos, out / "index.html", layers=layers, budget=BUDGET, command=command, progress=progress)


def _cat() -> Image.Image:
    """Chelsea the cat, a CC0 photo that scikit-image carries."""
    try:
        from skimage import data
    except ImportError:
        raise ImageError(
            "the demo's photo comes with scikit-image: pip install 'torchviz-cnn[demo]', or name a photo"
        ) from None
    return Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]
