"""The two residual blocks of He et al. 2015, and the shortcuts past them.

Both compute relu(F(x) + shortcut(x)). A shortcut is the identity wherever F keeps the shape. Where F changes it:

    option A    every stride-th pixel, and zeros for the new channels: no parameters
    option B    a 1x1 convolution with batch norm
    option C    as B, and also where the shape stays
"""

from __future__ import annotations

import numpy as np

from minires import functional as F
from minires.nn import BatchNorm2d, Conv2d, Module, ReLU, Sequential
from minires.tensor import Tensor


class ShortcutA(Module):
    """Option A as a layer. Shapes: (N, C, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, out_channels: int, stride: int):
        self.out_channels = out_channels
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return F.shortcut_a(input, self.out_channels, self.stride)

    def extra_repr(self) -> str:
        return f"out_channels={self.out_channels}, stride={self.stride}"


def make_shortcut(
    option: str, in_channels: int, out_channels: int, stride: int, generator: np.random.Generator | None
) -> Module | None:
    """The shortcut past a block: None where it is the identity.

    Errors: ValueError for another option than A, B or C.
    """
    if option not in ("A", "B", "C"):
        raise ValueError(f'shortcut must be "A", "B" or "C", got {option!r}')
    if option != "C" and stride == 1 and in_channels == out_channels:
        return None
    if option == "A":
        return ShortcutA(out_channels, stride)
    return Sequential(
        Conv2d(in_channels, out_channels, 1, stride, bias=False, generator=generator),
        BatchNorm2d(out_channels),
    )


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18, 34 and the CIFAR networks.

    Shapes: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    Source: He et al. 2015, figure 5 left; torchvision.models.resnet.BasicBlock, with its parameter names.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        shortcut: str = "B",
        generator: np.random.Generator | None = None,
    ):
        self.conv1 = Conv2d(in_channels, channels, 3, stride, padding=1, bias=False, generator=generator)
        self.bn1 = BatchNorm2d(channels)
        self.relu = ReLU()
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False, generator=generator)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = make_shortcut(shortcut, in_channels, channels, stride, generator)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = F.residual_add(identity, out)
        return self.relu(out)


class Bottleneck(Module):
    """A 1x1 convolution that narrows, a 3x3 one, and a 1x1 one that widens fourfold, with a shortcut.

    The stride is in the 3x3 convolution ("v1.5", as torchvision's published weights have it).
    Shapes: (N, in_channels, H, W) -> (N, 4 channels, ceil(H / stride), ceil(W / stride)).
    Source: He et al. 2015, figure 5 right; torchvision.models.resnet.Bottleneck, with its parameter names.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        shortcut: str = "B",
        generator: np.random.Generator | None = None,
    ):
        out_channels = channels * self.expansion
        self.conv1 = Conv2d(in_channels, channels, 1, bias=False, generator=generator)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, stride, padding=1, bias=False, generator=generator)
        self.bn2 = BatchNorm2d(channels)
        self.conv3 = Conv2d(channels, out_channels, 1, bias=False, generator=generator)
        self.bn3 = BatchNorm2d(out_channels)
        self.relu = ReLU()
        self.downsample = make_shortcut(shortcut, in_channels, out_channels, stride, generator)

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
        out = F.residual_add(identity, out)
        return self.relu(out)
