"""Can a map be believed: faithfulness, localisation and sanity checks (`torchviz_cnn.metrics`).

Every function takes the maps of this library, a plain tensor, or the method that makes them, and gives a `Measurement`.
"""

from torchviz_cnn.attribution.metrics.perturbation import average_drop, deletion, insertion
from torchviz_cnn.attribution.metrics.randomization import randomization
from torchviz_cnn.attribution.metrics.sensitivity import sensitivity

__all__ = ["average_drop", "deletion", "insertion", "randomization", "sensitivity"]
