"""`Patterns`: the images that gradient ascent made, and how they are shown and saved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image
from torch import Tensor

from torchviz_cnn.ascent.parameters import InputScale
from torchviz_cnn.ascent.recipes import Recipe, as_settings
from torchviz_cnn.core import checks
from torchviz_cnn.media import figures, render
from torchviz_cnn.media.bands import Bands, colour
from torchviz_cnn.media.notebook import pictures
from torchviz_cnn.runs import files

_DEAD = 32
_IN_NOTEBOOKS = 64
"""How many patterns a notebook shows."""


@dataclass(frozen=True, eq=False)
class Patterns:
    """Images that make something in a network strong: filter patterns, or what `maximize` was asked for."""

    values: Tensor
    """On the scale of the model's input: (n, C, H, W), float32."""
    scores: Tensor
    """The objective of each image at the start and after each step: (n, steps + 1)."""
    objective: str
    """What was raised, in words; for filter patterns, the layer's channels."""
    recipe: Recipe
    scale: InputScale = field(default=InputScale(), repr=False)
    layer: str | None = None
    channels: Tensor | None = None
    """The channel of each image of filter patterns: (n,)."""
    dead: tuple[int, ...] = ()
    """Channels (of `maximize`: images) to which no gradient comes back, from several starts: their images are noise."""
    seed: int = 0

    @property
    def raised(self) -> Tensor:
        """Whether each image's objective is higher at the end than at the start: (n,) of bool."""
        return self.scores[:, -1] > self.scores[:, 0]

    def image(self, i: int = 0, bands: Bands | None = None) -> Image.Image:
        """Draw one image as its recipe says: standardised as in the textbook, or as a photo.

        `bands`: the input's channels for red, green and blue, or one; of other than 1 or 3 channels, else their mean.
        """
        return Image.fromarray(self._tile(checks.place("image", i, len(self.values)), bands))

    def grid(
        self,
        columns: int = 8,
        margin: int = 5,
        order: render.Order | None = None,
        bands: Bands | None = None,
        *,
        numbers: bool = False,
    ) -> Image.Image:
        """Draw all images as a grid, black between them, in the recipe's order: by rows, or in 2017's by columns.

        With `numbers`, the number of its channel stands below each. Every pixel is one of the picture.
        """
        tiles = np.stack([self._tile(i, bands) for i in range(len(self.values))])
        if numbers:
            tiles = figures.numbered(tiles, range(len(tiles)) if self.channels is None else self.channels.tolist())
        columns, margin = checks.whole_number("columns", columns), checks.whole_number("margin", margin, 0)
        order = self.recipe.order if order is None else checks.one_of("order", order, get_args(render.Order))
        return Image.fromarray(render.tile_grid(tiles, min(columns, len(tiles)), margin, order))

    def plot(self, columns: int = 8) -> Image.Image:
        """Draw the grid as a figure, with channel numbers, and the objective and the dead channels as its title."""
        dead = f"; no gradient: {', '.join(map(str, self.dead[:8]))}{' ...' * (len(self.dead) > 8)}" * bool(self.dead)
        grid = np.asarray(self.grid(columns, numbers=True))
        return figures.titled(grid, f"{self.objective}{dead}", scale=8 / max(grid.shape[1], 1))

    def save(self, path: str | Path) -> Path:
        """Write values, scores and channels to a `.npz`, or the grid to a picture file. Raises OutputError."""
        if checks.path("path", path).suffix.lower() != ".npz":
            return files.save_image(path, self.grid())
        arrays = {"values": self.values, "scores": self.scores, "dead": np.array(self.dead, dtype=np.int64)}
        if self.channels is not None:
            arrays["channels"] = self.channels
        text = {"objective": self.objective, "seed": self.seed, "settings": json.dumps(as_settings(self.recipe))}
        return files.save_arrays(path, {**arrays, **text})

    def _tile(self, i: int, bands: Bands | None) -> render.Array:
        name = int(self.channels[i]) if self.channels is not None else i
        height, width = self.values.shape[2:]
        rows, columns = (min(round(side * self.recipe.crop), (side - 1) // 2) for side in (height, width))
        if name in self.dead:
            return np.full((height - 2 * rows, width - 2 * columns, 3), _DEAD, np.uint8)
        shown = _shown(self.values[i], self.scale, self.recipe, bands)
        return shown[rows : height - rows, columns : width - columns]

    def _repr_png_(self) -> bytes | None:
        return pictures.png(self._in_notebooks)

    def _in_notebooks(self) -> Image.Image:
        """The first patterns: a few with their numbers, many as a mosaic."""
        count = len(self.values)
        what = "patterns" if self.channels is None else "filters"
        shown = min(count, pictures.AT_MOST if count <= pictures.AT_MOST else _IN_NOTEBOOKS)
        words = f"{self.objective}{f'; {note}' if (note := pictures.left_out(shown, count, what)) else ''}"
        if count > pictures.AT_MOST:
            tiles = np.stack([self._tile(i, None) for i in range(shown)])
            grid = render.tile_grid(tiles, 8, 5, self.recipe.order)
            return figures.titled(grid, words, scale=10 / grid.shape[1])
        names = range(count) if self.channels is None else self.channels.tolist()
        titles = [f"channel {n}" if self.channels is not None else f"image {n}" * (count > 1) for n in names]
        titles = [f"{title}: no gradient" if n in self.dead else title for title, n in zip(titles, names, strict=True)]
        return pictures.titled_grid([(title, self.image(i)) for i, title in enumerate(titles)], words)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        return f"Patterns({self.objective}: {shape}, {self.recipe.name}, dead {list(self.dead)})"


def _shown(values: Tensor, scale: InputScale, recipe: Recipe, bands: Bands | None) -> render.Array:
    """One image (C, H, W) as pixels (H, W, 3) uint8; of other than 1 or 3 channels these bands, or the mean in grey."""
    x = values.detach().cpu().double()
    if recipe.display == "photo":
        pixels = (scale.to_photo(x) * 255).round().numpy()
    elif recipe.display == "standardised":
        pixels = ((x - x.mean()) / (x.std(correction=0) + 1e-12) * 64 + 128).numpy()
    else:
        pixels = (((x - x.mean()) / (x.std(correction=0) + 1e-5) * 0.1 + 0.5).clamp(0, 1) * 255).numpy()
    pixels = np.broadcast_to(colour(pixels, bands), (3, *pixels.shape[1:]))
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))
