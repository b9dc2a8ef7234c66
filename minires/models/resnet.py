"""The residual network: a stem, stages of blocks, an average over the image, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minires.engine.tensor import Tensor
from minires.models.blocks import BasicBlock, Bottleneck
from minires.models.options import BlockOptions, check_network, stages_dilated
from minires.models.other_blocks import PlainBlock, PreActBlock, PreActBottleneck
from minires.nn import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Linear, MaxPool2d, Module, ReLU, Sequential, init

Block = type[BasicBlock | Bottleneck | PlainBlock | PreActBlock | PreActBottleneck]


class ResNet(Module):
    """A residual network with one block after the other in stages; each stage but the first halves the image.

    Args: block, one of the classes of blocks.py and other_blocks.py; layers, how many blocks a stage; widths, the
        channels of each stage's 3x3 convolutions; num_classes; in_channels; stem, "imagenet" (7x7 stride 2 and max
        pool) or "cifar" (3x3); shortcut, option "A", "B" or "C"; zero_init_residual, start every F(x) at 0 (a block's
        last gamma, or with pre-activation its last kernel, is 0); groups and width_per_group, of a Bottleneck
        (ResNeXt, wide ResNet); stride_in, the convolution of a Bottleneck that has the stride, "3x3" (v1.5) or "1x1"
        (v1); replace_stride_with_dilation, for each stage but the first, whether to dilate instead of halving the image
        (Bottleneck); include_top, False for the last stage's feature maps instead of logits; final_norm, batch norm and
        ReLU after the last block (He et al. 2016 have them, the published counts of pre-activation networks do not);
        generator, for the initial weights.
    Shapes: (N, in_channels, H, W) -> logits (N, num_classes), or feature maps (N, C, OH, OW).
    Errors: ValueError for an option with another value than these, or layers and widths of different lengths.
    Source: He et al. 2015; torchvision.models.ResNet, with its parameter names and order.
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        shortcut: str = "B",
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in: str = "3x3",
        replace_stride_with_dilation: Sequence[bool] | None = None,
        include_top: bool = True,
        final_norm: bool = False,
        generator: np.random.Generator | None = None,
    ):
        check_network(layers, widths, stem, shortcut, zero_init_residual, plain=block is PlainBlock)
        dilated = stages_dilated(replace_stride_with_dilation, len(layers))
        options = BlockOptions(shortcut, groups, width_per_group, stride_in, generator)
        preactivation = block in (PreActBlock, PreActBottleneck)
        channels = widths[0]
        if stem == "imagenet":
            self.conv1 = Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False, generator=generator)
        else:
            self.conv1 = Conv2d(in_channels, channels, 3, padding=1, bias=False, generator=generator)
        self.bn1 = None if preactivation else BatchNorm2d(channels)
        self.relu = ReLU()
        self.maxpool = MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        self.stages = len(layers)
        dilation = 1
        for i in range(self.stages):
            stride, first_dilation = (1 if i == 0 else 2), dilation
            if dilated[i]:
                stride, dilation = 1, 2 * dilation
            stage = Sequential(block(channels, widths[i], stride, options, first_dilation))
            channels = widths[i] * block.expansion
            for _ in range(layers[i] - 1):
                stage.append(block(channels, widths[i], 1, options, dilation))
            self.add_module(f"layer{i + 1}", stage)
        self.norm = BatchNorm2d(channels) if final_norm else None
        self.avgpool = AdaptiveAvgPool2d(1) if include_top else None
        self.fc = Linear(channels, num_classes, generator=generator) if include_top else None
        self.initialise(zero_init_residual, generator)

    def initialise(self, zero_init_residual: bool, generator: np.random.Generator | None) -> None:
        """Kaiming-normal convolutions (fan_out, torchvision's choice); zeros where F(x) is to begin at 0."""
        for module in self.modules():
            if isinstance(module, Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        for module in self.modules():
            if zero_init_residual and hasattr(module, "branch_ends_with"):
                init.zeros_(getattr(module, module.branch_ends_with).weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.bn1(x)
            x = self.relu(x)
        if self.maxpool is not None:
            x = self.maxpool(x)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        if self.norm is not None:
            x = self.norm(x)
            x = self.relu(x)
        if self.fc is None:
            return x
        x = self.avgpool(x)
        x = x.flatten(1)
        return self.fc(x)
