"""Mosaics of photos of different classes: whether the evidence for each class lies in the cell of its own photo."""

from torchviz_cnn.attribution.metrics.mosaics.choice import Mosaics
from torchviz_cnn.attribution.metrics.mosaics.disconnected import difull, disconnected
from torchviz_cnn.attribution.metrics.mosaics.game import CellMeasurement, grid_pointing_game, own_cell

__all__ = ["CellMeasurement", "Mosaics", "difull", "disconnected", "grid_pointing_game", "own_cell"]
