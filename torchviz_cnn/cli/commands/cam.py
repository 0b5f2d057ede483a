"""The command `cam`."""

from torchviz_cnn.cli.class_maps import class_map_command

COMMAND = class_map_command("cam", "Draw class heatmaps over photos, or over the frames of a clip.")
