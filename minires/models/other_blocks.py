"""The other blocks: plain ones without a skip, and those of pre-activation networks (He et al. 2016).

In pre-activation blocks batch norm and ReLU come before each convolution, so that nothing stands on the way of the skip
any more: x goes from the first block to the last through additions alone, wherever a block keeps the shape. Where it
changes, the shortcut starts after the block's first batch norm and ReLU.
"""

from __future__ import annotations

from minires.engine.tensor import Tensor
from minires.models.blocks import conv1x1, conv3x3, make_shortcut
from minires.models.options import DEFAULTS, BlockOptions, refuse_bottleneck_options
from minires.nn import BatchNorm2d, Module, ReLU
from minires.nn import functional as F


class PlainBlock(Module):
    """BasicBlock without its shortcut; shapes as there. Source: the plain networks of He et al. 2015, section 3.3."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, options: BlockOptions = DEFAULTS, dilation: int = 1
    ):
        refuse_bottleneck_options("PlainBlock", options, dilation)
        self.conv1 = conv3x3(in_channels, channels, stride, options)
        self.bn1 = BatchNorm2d(channels)
        self.relu = ReLU()
        self.conv2 = conv3x3(channels, channels, 1, options)
        self.bn2 = BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        return self.relu(out)


class PreActBlock(Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, and a shortcut.

    Shapes: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    Errors: ValueError for options that only a Bottleneck has.
    Source: He et al. 2016, figure 1b.
    """

    expansion = 1
    branch_ends_with = "conv2"  # where its weight is 0, the block is the identity
    residual_add = staticmethod(F.residual_add)  # in a fused network it writes over the branch

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, options: BlockOptions = DEFAULTS, dilation: int = 1
    ):
        refuse_bottleneck_options("PreActBlock", options, dilation)
        self.bn1 = BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride, options)
        self.bn2 = BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, 1, options)
        self.relu = ReLU()
        self.downsample = make_shortcut(in_channels, channels, stride, options, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(x)
        out = self.relu(out)
        identity = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv2(out)
        return self.residual_add(identity, out)


class PreActBottleneck(Module):
    """Batch norm, ReLU and a convolution, three times (1x1, 3x3, 1x1), and a shortcut.

    Shapes: (N, in_channels, H, W) -> (N, 4 channels, ceil(H / stride), ceil(W / stride)).
    Source: He et al. 2016, section 4.
    """

    expansion = 4
    branch_ends_with = "conv3"
    residual_add = staticmethod(F.residual_add)

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, options: BlockOptions = DEFAULTS, dilation: int = 1
    ):
        refuse_bottleneck_options("PreActBottleneck", options, dilation)
        out_channels = channels * self.expansion
        self.bn1 = BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, channels, 1, options)
        self.bn2 = BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride, options)
        self.bn3 = BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, out_channels, 1, options)
        self.relu = ReLU()
        self.downsample = make_shortcut(in_channels, out_channels, stride, options, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(x)
        out = self.relu(out)
        identity = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn3(out)
        out = self.relu(out)
        out = self.conv3(out)
        return self.residual_add(identity, out)
