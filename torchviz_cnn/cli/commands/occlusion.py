"""The command `occlusion`."""

from torchviz_cnn.cli.class_map_command import class_map_command

COMMAND = class_map_command(
    "occlusion",
    "Slide a grey square over photos and draw where the score of a class falls.",
    "occlusion coffee.png",
    "occlusion coffee.png --target espresso --patch 48 --stride 24",
)
