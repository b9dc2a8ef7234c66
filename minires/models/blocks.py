"""The residual blocks of He et al. 2015, the shortcuts past them, and the same block without one.

A residual block computes relu(F(x) + shortcut(x)). The shortcut is the identity wherever F keeps the shape; else:

    option A    every stride-th pixel, and zeros for the new channels: no parameters
    option B    a 1x1 convolution with batch norm
    option C    as B, and also where the shape stays

Every block takes (in_channels, channels, stride, options): see BlockOptions.
"""

from __future__ import annotations

from minires.engine.tensor import Tensor
from minires.models.options import DEFAULTS, BlockOptions, check_bottleneck, check_shortcut, refuse_bottleneck_options
from minires.nn import BatchNorm2d, Conv2d, Module, ReLU, Sequential
from minires.nn import functional as F


class ShortcutA(Module):
    """Option A as a layer. Shapes: (N, C, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, out_channels: int, stride: int):
        self.out_channels, self.stride = out_channels, stride

    def forward(self, input: Tensor) -> Tensor:
        return F.shortcut_a(input, self.out_channels, self.stride)

    def extra_repr(self) -> str:
        return f"out_channels={self.out_channels}, stride={self.stride}"


def make_shortcut(
    in_channels: int, out_channels: int, stride: int, options: BlockOptions, norm: bool = True
) -> Module | None:
    """The shortcut past a block; None where it is the identity. Errors: ValueError for an option other than A, B, C."""
    check_shortcut(options.shortcut)
    if options.shortcut != "C" and stride == 1 and in_channels == out_channels:
        return None
    if options.shortcut == "A":
        return ShortcutA(out_channels, stride)
    projection = Conv2d(in_channels, out_channels, 1, stride, bias=False, generator=options.generator)
    return Sequential(projection, BatchNorm2d(out_channels)) if norm else Sequential(projection)


def conv3x3(
    in_channels: int, out_channels: int, stride: int, options: BlockOptions, groups: int = 1, dilation: int = 1
) -> Conv2d:
    """A 3x3 convolution without bias, padded so that stride 1 keeps the image's size."""
    padding = dilation
    return Conv2d(
        in_channels, out_channels, 3, stride, padding, dilation, groups, bias=False, generator=options.generator
    )


def conv1x1(in_channels: int, out_channels: int, stride: int, options: BlockOptions) -> Conv2d:
    """A 1x1 convolution without bias."""
    return Conv2d(in_channels, out_channels, 1, stride, bias=False, generator=options.generator)


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18, 34 and the CIFAR networks.

    Shapes: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    Errors: ValueError for options that only a Bottleneck has.
    Source: He et al. 2015, figure 5 left; torchvision.models.resnet.BasicBlock, with its parameter names.
    """

    expansion = 1
    branch_ends_with = "bn2"  # with a weight of 0 there, F(x) is 0: zero_init_residual
    residual_add = staticmethod(F.residual_add)  # in a fused network it writes over the branch

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, options: BlockOptions = DEFAULTS, dilation: int = 1
    ):
        refuse_bottleneck_options("BasicBlock", options, dilation)
        self.conv1 = conv3x3(in_channels, channels, stride, options)
        self.bn1 = BatchNorm2d(channels)
        self.relu = ReLU()
        self.conv2 = conv3x3(channels, channels, 1, options)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = make_shortcut(in_channels, channels, stride, options)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.residual_add(identity, out)
        return self.relu(out)


class Bottleneck(Module):
    """A 1x1 convolution that narrows, a 3x3 one, and a 1x1 one that widens to 4 * channels, and a shortcut.

    Shapes: (N, in_channels, H, W) -> (N, 4 * channels, ceil(H / stride), ceil(W / stride)).
    Errors: ValueError for a stride_in other than "3x3" and "1x1".
    Source: He et al. 2015, figure 5 right; torchvision.models.resnet.Bottleneck, with its parameter names; groups:
        Xie et al. 2017; width_per_group: Zagoruyko & Komodakis 2016.
    """

    expansion = 4
    branch_ends_with = "bn3"
    residual_add = staticmethod(F.residual_add)

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, options: BlockOptions = DEFAULTS, dilation: int = 1
    ):
        width = channels * options.width_per_group // 64 * options.groups
        check_bottleneck(channels, width, options)
        first, second = (1, stride) if options.stride_in == "3x3" else (stride, 1)
        out_channels = channels * self.expansion
        self.conv1 = conv1x1(in_channels, width, first, options)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, second, options, options.groups, dilation)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels, 1, options)
        self.bn3 = BatchNorm2d(out_channels)
        self.relu = ReLU()
        self.downsample = make_shortcut(in_channels, out_channels, stride, options)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv3(out)
        out = self.bn3(out)
        out = self.residual_add(identity, out)
        return self.relu(out)
