"""Class maps as a notebook shows them: photo and overlay of one, a grid of overlays of several."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image

from torchviz_cnn.media.notebook import pictures

if TYPE_CHECKING:
    from torchviz_cnn.attribution.cam.heatmap import Heatmap
    from torchviz_cnn.attribution.result import ClassMap


def picture_of_maps(maps: ClassMap) -> Image.Image:
    """The maps of a result, over their photos where these are known."""
    if not maps._is_flat:
        return maps.plot()
    places = list(itertools.product(range(len(maps.values)), range(maps.target[0].numel())))
    tiles: list[tuple[str, Image.Image]] = []
    if len(maps.values) == 1 and _knows_photos(maps):
        tiles.append(("photo", pictures.smaller(maps.origin.photo(0))))
    shown = places[: pictures.AT_MOST - len(tiles)]
    if len(places) == 1:
        tiles.append((maps._title(), _drawn(maps, 0, 0)))
        return pictures.titled_grid(tiles, maps.headline())
    tiles += [(maps.headline(index, nth), _drawn(maps, index, nth)) for index, nth in shown]
    note = pictures.left_out(len(shown), len(places), "maps")
    return pictures.titled_grid(tiles, ": ".join(filter(None, [maps._title(), note])))


def picture_of_methods(heatmaps: Mapping[tuple[str, str], Heatmap]) -> Image.Image:
    """The first map of each method and layer."""
    first = next(iter(heatmaps.values()))
    if not first._is_flat:
        return first.plot()
    tiles = [(heat._title(), _drawn(heat, 0, 0)) for heat in itertools.islice(heatmaps.values(), pictures.AT_MOST)]
    several = f"image 1 of {len(first.values)}" * (len(first.values) > 1)
    words = [first.headline(), several, pictures.left_out(len(tiles), len(heatmaps), "heatmaps")]
    return pictures.titled_grid(tiles, "; ".join(filter(None, words)))


def _knows_photos(maps: ClassMap) -> bool:
    """Whether a map can be laid on its photo: where nothing says how that became the input, it is drawn alone."""
    return maps.origin.photos is not None and maps.origin.preprocess is not None


def _drawn(maps: ClassMap, index: int, nth: int) -> Image.Image:
    shown = maps._in_pictures()
    if _knows_photos(maps):
        return shown.overlay(pictures.smaller(maps.origin.photo(index)), index=index, nth=nth)
    return shown.image(index=index, nth=nth)
