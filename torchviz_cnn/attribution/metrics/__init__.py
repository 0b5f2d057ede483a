"""Can a map be believed: faithfulness, localisation and sanity checks (`torchviz_cnn.metrics`).

Every function takes the maps of this library, a plain tensor, or the method that makes them, and gives a `Measurement`.
The order is model, images, maps, target; those with masks have them before the target, so give `target` by its name.
"""

from torchviz_cnn.attribution.metrics.localisation import energy_in_mask, pointing_game
from torchviz_cnn.attribution.metrics.mosaics import Mosaics, difull, grid_pointing_game
from torchviz_cnn.attribution.metrics.perturbation import average_drop, deletion, insertion
from torchviz_cnn.attribution.metrics.randomization import randomization
from torchviz_cnn.attribution.metrics.road import road
from torchviz_cnn.attribution.metrics.sensitivity import sensitivity

__all__ = [
    "Mosaics",
    "average_drop",
    "deletion",
    "difull",
    "energy_in_mask",
    "grid_pointing_game",
    "insertion",
    "pointing_game",
    "randomization",
    "road",
    "sensitivity",
]
