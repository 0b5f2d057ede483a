"""EfficientNet-Lite0: EfficientNet (arXiv 1905.11946) without squeeze-and-excitation, with ReLU6, of 4.65 M parameters.

Its layers are `stem`, `blocks.0` to `blocks.15` and `head`; in each block `expand`, `depthwise` and `project`, and in
each of these `conv`, `bn` and, but for `project`, `relu`. Networks run their layers in the order of definition.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-3  # TensorFlow's; PyTorch's is 1e-5
_MOMENTUM = 0.01  # TensorFlow's 0.99, which counts what is kept instead of what is new
_STAGES = (
    *((1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3)),
    *((6, 112, 5, 1, 3), (6, 192, 5, 2, 4), (6, 320, 3, 1, 1)),
)
"""Factor of expansion, channels, kernel, stride of the first block, number of blocks."""


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's 'same' padding: `(B, C, H, W)` to `(B, C', ⌈H/stride⌉, ⌈W/stride⌉)`.

    Of what a side needs, the smaller half comes first: with stride 2 an even side is padded more at its end.
    """

    def forward(self, input: Tensor) -> Tensor:
        padding: list[int] = []
        for axis in (1, 0):
            side, kernel, stride = input.shape[axis - 2], self.kernel_size[axis], self.stride[axis]
            missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(input, padding))


class ConvBN(nn.Sequential):
    """A convolution without bias, its BatchNorm and, unless `linear`, a ReLU6."""

    def __init__(self, channels: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, linear: bool):
        super().__init__()
        if stride == 1:  # where 'same' is the same at both ends
            self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, groups=groups, bias=False)
        else:
            self.conv = Conv2dSame(channels, width, kernel, stride, groups=groups, bias=False)
        nn.init.kaiming_uniform_(self.conv.weight, nonlinearity="relu")  # the default fades to nothing in 50 layers
        self.bn = nn.BatchNorm2d(width, eps=_EPSILON, momentum=_MOMENTUM)
        if not linear:
            self.relu = nn.ReLU6()


class InvertedResidual(nn.Module):
    """1 x 1 to more channels, a convolution per channel, 1 x 1 to few; added to the input where that has its shape."""

    def __init__(self, channels: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.adds = stride == 1 and channels == width
        inner = channels * expansion
        if expansion > 1:
            self.expand = ConvBN(channels, inner, linear=False)
        self.depthwise = ConvBN(inner, inner, kernel, stride, groups=inner, linear=False)
        self.project = ConvBN(inner, width, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for part in self.children():
            out = part(out)
        return out + x if self.adds else out


class EfficientNetLite(nn.Sequential):
    """EfficientNet-Lite0: see `efficientnet_lite0`."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.stem = ConvBN(in_channels, 32, 3, stride=2, linear=False)
        self.blocks, channels = nn.Sequential(), 32
        for expansion, width, kernel, stride, count in _STAGES:
            for index in range(count):
                self.blocks.append(InvertedResidual(channels, width, expansion, kernel, 1 if index else stride))
                channels = width
        self.head = ConvBN(channels, 1280, linear=False)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, num_classes)


def efficientnet_lite0(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> EfficientNetLite:
    """EfficientNet-Lite0, of the networks that Google published in 2020 for small devices, after arXiv 1905.11946.

    Shapes: `(B, 3, H, W)`, 224 x 224 as trained and at least 1 x 1, to `(B, 1000)` logits. Parameters: 4 652 008,
    and 42 016 BatchNorm statistics. It ends in global average pooling and a linear layer: its class activation maps
    are exact (arXiv 1512.04150).

    >>> sum(p.numel() for p in efficientnet_lite0().parameters())
    4652008
    """
    return EfficientNetLite(num_classes, in_channels, dropout)
