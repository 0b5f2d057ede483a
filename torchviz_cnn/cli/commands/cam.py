"""The command `cam`."""

from torchviz_cnn.cli.class_map_command import class_map_command

COMMAND = class_map_command(
    "cam",
    "Draw class heatmaps over photos, or over the frames of a clip.",
    "cam coffee.png",
    "cam coffee.png --target espresso 'soup bowl' --out heatmaps",
    "cam photos/ --method competitive-cam --layer blocks.10",
    "cam clip.mp4 --out clip_cam.mp4",
)
