"""The command `occlusion`."""

from torchviz_cnn.cli.class_maps import class_map_command

COMMAND = class_map_command(
    "occlusion", "Slide a grey square over photos and draw where the score of a class falls.", progress=True
)
