"""ZFNet, the network of "Visualizing and Understanding Convolutional Networks" (arXiv 1311.2901)."""

from __future__ import annotations

from torch import nn


class ZFNet(nn.Sequential):
    """AlexNet with a finer first layer: see `zfnet`. The layers run in this order."""

    def __init__(self, num_classes: int, in_channels: int, lrn: bool, dropout: float) -> None:
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
