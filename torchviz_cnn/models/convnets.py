"""Small textbook convnets: two for cats and dogs, one for Fashion-MNIST.

All take pictures on a 0..1 scale (the Keras originals' `Rescaling(1/255)` belongs to preprocessing here) or normalised
ones, and return logits.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class ConvNet2017(nn.Sequential):
    """The 2017 textbook convnet: see `convnet_2017`."""

    def __init__(self, num_classes: int, in_channels: int, input_size: int, dropout: float) -> None:
        widths = (32, 64, 128, 128)
        side = input_size
        for _ in widths:
            side = (side - 2) // 2
        if side < 1:
            raise ValueError(f"input_size {input_size} leaves nothing after four poolings; the smallest is 46")
        super().__init__(_convolutions(in_channels, widths, pools=4))
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.dense1 = nn.Linear(widths[-1] * side * side, 512)
        self.relu5 = nn.ReLU()
        self.classifier = nn.Linear(512, num_classes)


class ConvNet2025(nn.Sequential):
    """The 2025 textbook convnet: see `convnet_2025`."""

    def __init__(self, num_classes: int, in_channels: int, batch_norm: bool, dropout: float) -> None:
        layers = _convolutions(in_channels, (32, 64, 128, 256, 512), pools=4, batch_norm=batch_norm)
        super().__init__(layers | _global_average_head(512, num_classes, dropout))


class FashionMNISTConvNet(nn.Sequential):
    """The Fashion-MNIST network of class activation maps: see `fashion_mnist_convnet`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        layers = _convolutions(in_channels, (16, 32, 64, 128), pools=3, padding=1)
        super().__init__(layers | _global_average_head(128, num_classes, dropout=0.0))


def _convolutions(
    channels: int, widths: tuple[int, ...], pools: int, padding: int = 0, batch_norm: bool = False
) -> OrderedDict[str, nn.Module]:
    """3 x 3 convolutions of these widths, each with its ReLU; behind the first so many ReLUs a pooling."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, width in enumerate(widths, start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, width, 3, padding=padding, bias=not batch_norm)
        if batch_norm:
            layers[f"bn{index}"] = nn.BatchNorm2d(width)
        layers[f"relu{index}"] = nn.ReLU()
        if index <= pools:
            layers[f"pool{index}"] = nn.MaxPool2d(2)
        channels = width
    return layers


def _global_average_head(channels: int, num_classes: int, dropout: float) -> OrderedDict[str, nn.Module]:
    layers = OrderedDict[str, nn.Module](avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["classifier"] = nn.Linear(channels, num_classes)
    return layers


def convnet_2017(
    num_classes: int = 1, in_channels: int = 3, input_size: int = 150, dropout: float = 0.5
) -> ConvNet2017:
    """The textbook's convnet for cats and dogs, 2017 edition: four convolutions, flatten, two dense layers.

    Shapes: `(B, 3, 150, 150)` on a 0..1 scale to `(B, 1)` logits; the flattened map ties the network to
    `input_size`. Parameters: 3 453 121 with one output (the original's sigmoid is left to the caller).

    Raises `ValueError` where `input_size` is below 46 pixels.

    >>> sum(p.numel() for p in convnet_2017().parameters())
    3453121
    """
    return ConvNet2017(num_classes, in_channels, input_size, dropout)


def convnet_2025(
    num_classes: int = 1, in_channels: int = 3, batch_norm: bool = False, dropout: float = 0.25
) -> ConvNet2025:
    """The textbook's convnet for cats and dogs, 2025 edition: five convolutions, global average pooling, one output.

    Shapes: `(B, 3, H, W)` on a 0..1 scale, 180 x 180 in the book and at least 78 x 78, to `(B, 1)` logits.
    Parameters: 1 569 089 with one output. `batch_norm=True` puts a BatchNorm between each convolution and its
    ReLU, in place of the bias: the bundled `cats_and_dogs` network. Global average pooling and a linear layer make it
    a network with exact class activation maps (arXiv 1512.04150).

    >>> sum(p.numel() for p in convnet_2025().parameters())
    1569089
    """
    return ConvNet2025(num_classes, in_channels, batch_norm, dropout)


def fashion_mnist_convnet(num_classes: int = 10, in_channels: int = 1) -> FashionMNISTConvNet:
    """The class activation map network for Fashion-MNIST (arXiv 1708.07747): four convolutions, average, linear.

    Shapes: `(B, 1, 28, 28)` on a 0..1 scale to `(B, 10)` logits. Parameters: 98 442.

    >>> sum(p.numel() for p in fashion_mnist_convnet().parameters())
    98442
    """
    return FashionMNISTConvNet(num_classes, in_channels)
