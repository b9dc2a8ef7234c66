"""The residual network: a stem, stages of blocks, an average over the image, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minires.models.blocks import BasicBlock, Bottleneck
from minires.nn import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Linear, MaxPool2d, Module, ReLU, Sequential, init
from minires.tensor import Tensor


class ResNet(Module):
    """A residual network with one block after the other in stages; each stage but the first halves the image.

    Args: block, BasicBlock or Bottleneck; layers, how many blocks a stage; widths, the channels of each stage's 3x3
        convolutions; num_classes; in_channels; stem, "imagenet" (7x7 stride 2 and max pool) or "cifar" (3x3);
        shortcut, option "A", "B" or "C"; zero_init_residual, start every block as the identity (the last gamma is 0);
        generator, for the initial weights.
    Shapes: (N, in_channels, H, W) -> logits (N, num_classes).
    Errors: ValueError for an unknown stem or shortcut, or layers and widths of different lengths.
    Source: He et al. 2015; torchvision.models.ResNet, with its parameter names and order.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        shortcut: str = "B",
        zero_init_residual: bool = False,
        generator: np.random.Generator | None = None,
    ):
        if len(layers) != len(widths) or min(layers) < 1:
            raise ValueError(f"ResNet: expected a positive number of blocks a width, got {layers} for {widths}")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f'ResNet: stem must be "imagenet" or "cifar", got {stem!r}')
        channels = widths[0]
        if stem == "imagenet":
            self.conv1 = Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False, generator=generator)
        else:
            self.conv1 = Conv2d(in_channels, channels, 3, padding=1, bias=False, generator=generator)
        self.bn1 = BatchNorm2d(channels)
        self.relu = ReLU()
        self.maxpool = MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        self.stages = len(layers)
        for i in range(self.stages):
            stage = Sequential()
            for j in range(layers[i]):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(block(channels, widths[i], stride, shortcut, generator))
                channels = widths[i] * block.expansion
            self.add_module(f"layer{i + 1}", stage)
        self.avgpool = AdaptiveAvgPool2d(1)
        self.fc = Linear(channels, num_classes, generator=generator)
        self.initialise(zero_init_residual, generator)

    def initialise(self, zero_init_residual: bool, generator: np.random.Generator | None) -> None:
        """Kaiming-normal convolutions (fan_out), as He et al. 2015 and torchvision."""
        for module in self.modules():
            if isinstance(module, Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif zero_init_residual and isinstance(module, BasicBlock):
                init.zeros_(module.bn2.weight)
            elif zero_init_residual and isinstance(module, Bottleneck):
                init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        if self.maxpool is not None:
            x = self.maxpool(x)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        x = self.avgpool(x)
        x = x.flatten(1)
        return self.fc(x)
