"""The command `saliency`."""

from torchviz_cnn.cli.class_maps import class_map_command

COMMAND = class_map_command(
    "saliency", "Draw which pixels a class score depends on: gradients, guided backpropagation, SmoothGrad and others."
)
