"""Xception (arXiv 1610.02357) and its small relatives, computing what the published Keras networks compute.

Networks that are an `nn.Sequential` run their layers in the order in which these are defined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERAS_EPSILON = 1e-3  # Keras' default; PyTorch's is 1e-5
KERAS_MOMENTUM = 0.01  # Keras' 0.99, which counts what is kept instead of what is new


class MaxPool2dSame(nn.MaxPool2d):
    """3 x 3 max-pooling with stride 2 and TensorFlow's 'same' padding: `(B, C, H, W)` to `(B, C, ⌈H/2⌉, ⌈W/2⌉)`.

    An odd side is padded by one pixel at both ends, an even one only at its end. `nn.MaxPool2d(3, 2, padding=1)` pads
    both the same, which puts every window of an even side one pixel too early.
    """

    def __init__(self) -> None:
        super().__init__(kernel_size=3, stride=2, padding=1, ceil_mode=True)

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        # ceil_mode lets the last window hang over the end of an even side: padding there, without a padded copy.
        return F.max_pool2d(input, 3, 2, padding=(height % 2, width % 2), ceil_mode=True)


class SeparableConv2d(nn.Sequential):
    """A 3 x 3 convolution per channel, then a 1 x 1 across channels; no bias: `(B, C, H, W)` to `(B, C', H, W)`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=KERAS_EPSILON, momentum=KERAS_MOMENTUM)


class PreActivationBlock(nn.Module):
    """Twice BatchNorm, ReLU, separable convolution, then pooling; a strided 1 x 1 convolution goes around it all."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn1 = _batch_norm(in_channels)
        self.relu1 = nn.ReLU()
        self.sepconv1 = SeparableConv2d(in_channels, out_channels)
        self.bn2 = _batch_norm(out_channels)
        self.relu2 = nn.ReLU()
        self.sepconv2 = SeparableConv2d(out_channels, out_channels)
        self.pool = MaxPool2dSame()
        self.residual = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.sepconv1(self.relu1(self.bn1(x)))
        out = self.pool(self.sepconv2(self.relu2(self.bn2(out))))
        return torch.add(out, self.residual(x))


class MiniXception(nn.Sequential):
    """The textbook's small Xception: see `mini_xception`."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 5, bias=False)
        self.block1 = PreActivationBlock(32, 32)
        self.block2 = PreActivationBlock(32, 64)
        self.block3 = PreActivationBlock(64, 128)
        self.block4 = PreActivationBlock(128, 256)
        self.block5 = PreActivationBlock(256, 512)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(512, num_classes)


def mini_xception(num_classes: int = 1, in_channels: int = 3, dropout: float = 0.5) -> MiniXception:
    """The textbook's residual network of separable convolutions, after Xception (arXiv 1610.02357).

    Shapes: `(B, 3, H, W)` on a 0..1 scale, 180 x 180 in the book, to `(B, 1)` logits. Parameters: 718 849
    with one output, and 3 008 BatchNorm statistics. Five blocks, 32 to 512 channels, each halving the map.

    >>> sum(p.numel() for p in mini_xception().parameters())
    718849
    """
    return MiniXception(num_classes, in_channels, dropout)


class PostActivationBlock(nn.Module):
    """Separable convolution, BatchNorm, ReLU, separable convolution, BatchNorm, pooling; around it a strided 1 x 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.sepconv1 = SeparableConv2d(in_channels, out_channels)
        self.bn1 = _batch_norm(out_channels)
        self.relu1 = nn.ReLU()
        self.sepconv2 = SeparableConv2d(out_channels, out_channels)
        self.bn2 = _batch_norm(out_channels)
        self.pool = MaxPool2dSame()
        self.residual = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.residual_bn = _batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.sepconv1(x)))
        out = self.pool(self.bn2(self.sepconv2(out)))
        return torch.add(out, self.residual_bn(self.residual(x)))


class MiniXceptionFER2013(nn.Sequential):
    """The small Xception for facial expressions: see `mini_xception_fer2013`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, bias=False)
        self.bn1 = _batch_norm(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, bias=False)
        self.bn2 = _batch_norm(8)
        self.relu2 = nn.ReLU()
        self.block1 = PostActivationBlock(8, 16)
        self.block2 = PostActivationBlock(16, 32)
        self.block3 = PostActivationBlock(32, 64)
        self.block4 = PostActivationBlock(64, 128)
        self.classifier = nn.Conv2d(128, num_classes, 3, padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()


def mini_xception_fer2013(num_classes: int = 7, in_channels: int = 1) -> MiniXceptionFER2013:
    """The mini-Xception of facial expressions on FER2013 (arXiv 1710.07557), for its published Keras checkpoints.

    Shapes: `(B, 1, 64, 64)` grey faces on a -1..1 scale to `(B, 7)` logits: angry, disgust, fear, happy, sad,
    surprise, neutral. Parameters: 56 951, and 1 472 BatchNorm statistics. Its last convolution has one channel per
    class and is averaged, so that its maps are class activation maps.

    >>> sum(p.numel() for p in mini_xception_fer2013().parameters())
    56951
    """
    return MiniXceptionFER2013(num_classes, in_channels)


class Xception(nn.Module):
    """The full Xception: see `xception`.

    Every layer stands at the top level under its published Keras name; the four strided 1 x 1 convolutions, which have
    none, are `blockN_residual` and `blockN_residual_bn`. Layers are defined in Keras' own order (by depth: a residual
    BatchNorm after the last one of its block), which files without names rely on.
    """

    def __init__(self, num_classes: int, in_channels: int, include_top: bool) -> None:
        super().__init__()
        self._add("block1_conv1", nn.Conv2d(in_channels, 32, 3, stride=2, bias=False), 32, act_after=True)
        self._add("block1_conv2", nn.Conv2d(32, 64, 3, bias=False), 64, act_after=True)
        self._add_block(2, (64, 128, 128), first_act=False, residual=True)
        self._add_block(3, (128, 256, 256), residual=True)
        self._add_block(4, (256, 728, 728), residual=True)
        for block in range(5, 13):
            self._add_block(block, (728, 728, 728, 728))
        self._add_block(13, (728, 728, 1024), residual=True)
        self._add("block14_sepconv1", SeparableConv2d(1024, 1536), 1536, act_after=True)
        self._add("block14_sepconv2", SeparableConv2d(1536, 2048), 2048, act_after=True)
        if include_top:
            self.avg_pool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten()
            self.predictions = nn.Linear(2048, num_classes)

    def _add(self, name: str, layer: nn.Module, width: int, act_after: bool = False) -> None:
        self.add_module(name, layer)
        self.add_module(f"{name}_bn", _batch_norm(width))
        if act_after:
            self.add_module(f"{name}_act", nn.ReLU())

    def _add_block(self, block: int, widths: tuple[int, ...], first_act: bool = True, residual: bool = False) -> None:
        for index in range(1, len(widths)):
            name = f"block{block}_sepconv{index}"
            if index > 1 or first_act:
                self.add_module(f"{name}_act", nn.ReLU())
            self._add(name, SeparableConv2d(widths[index - 1], widths[index]), widths[index])
        if residual:
            self.add_module(f"block{block}_pool", MaxPool2dSame())
            shortcut = nn.Conv2d(widths[0], widths[-1], 1, stride=2, bias=False)
            self._add(f"block{block}_residual", shortcut, widths[-1])

    def _run(self, x: Tensor, *names: str) -> Tensor:
        """`x` through those of the named layers that this network has."""
        for name in names:
            layer = self._modules.get(name)
            x = x if layer is None else layer(x)
        return x

    def _run_block(self, block: int, x: Tensor) -> Tensor:
        out = x
        for index in (1, 2, 3):
            name = f"block{block}_sepconv{index}"
            out = self._run(out, f"{name}_act", name, f"{name}_bn")
        out = self._run(out, f"block{block}_pool")
        return torch.add(out, self._run(x, f"block{block}_residual", f"block{block}_residual_bn"))

    def forward(self, x: Tensor) -> Tensor:
        for name in ("block1_conv1", "block1_conv2"):
            x = self._run(x, name, f"{name}_bn", f"{name}_act")
        for block in range(2, 14):
            x = self._run_block(block, x)
        for name in ("block14_sepconv1", "block14_sepconv2"):
            x = self._run(x, name, f"{name}_bn", f"{name}_act")
        return self._run(x, "avg_pool", "flatten", "predictions")


def xception(num_classes: int = 1000, in_channels: int = 3, include_top: bool = True) -> Xception:
    """Xception (Chollet 2016, arXiv 1610.02357), layer for layer the network of `keras.applications`.

    Shapes: `(B, 3, H, W)` on a -1..1 scale, 299 x 299 in the paper and at least 71 x 71, to `(B, 1000)`
    logits; with `include_top=False` to the last map, `(B, 2048, ⌈H/32⌉, ⌈W/32⌉)` or one pixel less. Its
    22 855 952 parameters and 54 528 BatchNorm statistics are together the published 22 910 480. Layer names are the
    published ones: `block3_sepconv1`, `block14_sepconv2_act`.

    >>> sum(p.numel() for p in xception().parameters())
    22855952
    """
    return Xception(num_classes, in_channels, include_top)
