"""Convnets of books and papers: two for cats and dogs, one for Fashion-MNIST, and ZFNet (arXiv 1311.2901).

The books' take pictures on a 0..1 scale (the Keras originals' `Rescaling(1/255)` belongs to preprocessing here) or
normalised ones. All return logits.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


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
    """3 x 3 convolutions of these widths, each with its ReLU; behind each of the first `pools` ReLUs a pooling."""
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


class ZFNet(nn.Module):
    """AlexNet with a finer first layer: see `zfnet`."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, lrn: bool = True, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 96, 7, stride=2, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm1 = _normalization(lrn)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm2 = _normalization(lrn)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.relu5 = nn.ReLU()
        self.pool5 = nn.MaxPool2d(3, stride=2)
        # 224 x 224 arrives at 6 x 6 by itself; other sizes are brought to it
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.flatten = nn.Flatten()
        self.dropout6 = nn.Dropout(dropout)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.relu6 = nn.ReLU()
        self.dropout7 = nn.Dropout(dropout)
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7 = nn.ReLU()
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu2(self.conv2(x))))
        x = self.relu4(self.conv4(self.relu3(self.conv3(x))))
        x = self.flatten(self.avgpool(self.pool5(self.relu5(self.conv5(x)))))
        x = self.relu7(self.fc7(self.dropout7(self.relu6(self.fc6(self.dropout6(x))))))
        out: Tensor = self.fc8(x)
        return out


def _normalization(lrn: bool) -> nn.Module:
    """Local response normalisation with AlexNet's constants, or nothing under the same name."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0) if lrn else nn.Identity()


def zfnet(num_classes: int = 1000, in_channels: int = 3, lrn: bool = True, dropout: float = 0.5) -> ZFNet:
    """ZFNet (Zeiler & Fergus 2013, arXiv 1311.2901, figure 3): five convolutions, three overlapping poolings.

    Shapes: `(B, 3, 224, 224)`, normalised, to `(B, 1000)` logits; maps of 110, 55, 26, 13 and 6 pixels as in
    the figure. First layer 7 x 7 with stride 2 (AlexNet: 11 x 11 with stride 4), second 5 x 5 with stride 2.
    Parameters: 62 357 608. `lrn=False` leaves out the local response normalisation after the first two poolings; both
    have the same state_dict.

    >>> sum(p.numel() for p in zfnet().parameters())
    62357608
    """
    return ZFNet(num_classes, in_channels, lrn, dropout)
