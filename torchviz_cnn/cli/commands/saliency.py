"""The command `saliency`."""

from torchviz_cnn.cli.class_map_command import class_map_command

COMMAND = class_map_command(
    "saliency",
    "Draw which pixels a class score depends on: gradients, guided backpropagation, SmoothGrad and others.",
    "saliency coffee.png",
    "saliency coffee.png --method smooth-grad --other-activations plain",
    "saliency photos/ --method integrated-gradients --target espresso",
)
