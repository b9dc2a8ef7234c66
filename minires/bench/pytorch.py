"""PyTorch's side: the same kernels called bare, the same networks in torch.nn, the same steps.

The only file of MiniRes that imports PyTorch; ``timing.load_pytorch`` imports it where PyTorch is installed.
The networks are torchvision's in structure, names and in-place operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from minires.bench.timing import Work
from minires.models.zoo import model_entry

aten = torch.ops.aten


def tensor(array: np.ndarray) -> torch.Tensor:
    """An array as PyTorch would hold it: NCHW in memory too."""
    return torch.from_numpy(np.array(array, order="C"))


# ---- Kernels: what autograd calls, without autograd -------------------------------------------------------------


def convolution_forward(x: np.ndarray, w: np.ndarray, stride: int, padding: int) -> Work:
    """A convolution without bias."""
    x, w = tensor(x), tensor(w)

    def run() -> list[torch.Tensor]:
        return [nn.functional.conv2d(x, w, None, stride, padding)]

    return run


def convolution_backward(
    x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int, padding: int, needs_dx: bool
) -> Work:
    """The gradients of a convolution: dx where it is wanted, and dw."""
    x, w, dy = tensor(x), tensor(w), tensor(dy)
    strides, paddings, wanted = [stride] * 2, [padding] * 2, [needs_dx, True, False]

    def run() -> list[torch.Tensor]:
        found = aten.convolution_backward(dy, x, w, None, strides, paddings, [1, 1], False, [0, 0], 1, wanted)
        return [gradient for gradient in found if gradient is not None]

    return run


def batch_norm_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float) -> Work:
    """Batch norm by the batch's own statistics."""
    x, gamma, beta = tensor(x), tensor(gamma), tensor(beta)

    def run() -> list[torch.Tensor]:
        return [aten.native_batch_norm(x, gamma, beta, None, None, True, 0.1, eps)[0]]

    return run


def batch_norm_backward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, dy: np.ndarray, eps: float) -> Work:
    """The gradients of batch norm: dx, dgamma, dbeta."""
    x, gamma, beta, dy = tensor(x), tensor(gamma), tensor(beta), tensor(dy)
    _, mean, inv_std = aten.native_batch_norm(x, gamma, beta, None, None, True, 0.1, eps)
    wanted = [True, True, True]

    def run() -> list[torch.Tensor]:
        return list(aten.native_batch_norm_backward(dy, x, gamma, None, None, mean, inv_std, True, eps, wanted))

    return run


def relu_forward(x: np.ndarray) -> Work:
    """ReLU into new memory."""
    x = tensor(x)

    def run() -> list[torch.Tensor]:
        return [torch.relu(x)]

    return run


def relu_backward(x: np.ndarray, dy: np.ndarray) -> Work:
    """The gradient of ReLU."""
    y, dy = torch.relu(tensor(x)), tensor(dy)

    def run() -> list[torch.Tensor]:
        return [aten.threshold_backward(dy, y, 0)]

    return run


def max_pool_forward(x: np.ndarray, kernel: int, stride: int, padding: int) -> Work:
    """Max pooling, with the indices that the backward needs."""
    x = tensor(x)

    def run() -> list[torch.Tensor]:
        return [aten.max_pool2d_with_indices(x, [kernel] * 2, [stride] * 2, [padding] * 2)[0]]

    return run


def max_pool_backward(x: np.ndarray, dy: np.ndarray, kernel: int, stride: int, padding: int) -> Work:
    """The gradient of max pooling."""
    x, dy = tensor(x), tensor(dy)
    sizes = [[kernel] * 2, [stride] * 2, [padding] * 2]
    _, indices = aten.max_pool2d_with_indices(x, *sizes)

    def run() -> list[torch.Tensor]:
        return [aten.max_pool2d_with_indices_backward(dy, x, *sizes, [1, 1], False, indices)]

    return run


# ---- Networks ---------------------------------------------------------------------------------------------------


class ShortcutA(nn.Module):
    """Every second pixel, and channels of zeros on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, self.before, self.after))


def shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """What the skip connection needs where it changes shape: option "A" or "B"; None where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    if option == "A":
        return ShortcutA(in_channels, out_channels, stride)
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the skip."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(option, in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride (v1.5), 1x1 to four times the channels, and the skip."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(option, in_channels, 4 * channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, stages of blocks, an average over the image, one linear layer."""

    def __init__(self, block: Any, layers: tuple[int, ...], imagenet: bool):
        super().__init__()
        channels, option, classes = (64, "B", 1000) if imagenet else (16, "A", 10)
        kernel, stride, padding = (7, 2, 3) if imagenet else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, channels, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        width = channels
        stages = []
        for i in range(len(layers)):
            stage = nn.Sequential()
            for j in range(layers[i]):
                stage.append(block(channels, width, 2 if i > 0 and j == 0 else 1, option))
                channels = width * block.expansion
            self.add_module(f"layer{i + 1}", stage)
            stages.append(stage)
            width = 2 * width
        self.stages = stages  # a plain list: the stages are registered by their names already
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = stage(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


BLOCKS = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}


def build_like(name: str, state: Mapping[str, Any]) -> ResNet:
    """A network of MiniRes's zoo in torch.nn, with the weights of one of MiniRes.

    Errors: ValueError for a network with other blocks than these two; RuntimeError for weights that do not fit.
    """
    entry = model_entry(name)
    if entry.block.__name__ not in BLOCKS or entry.options or entry.family == "mnist":
        raise ValueError(f"bench: {name} has not been written in torch.nn; there are ResNets without groups")
    model = ResNet(BLOCKS[entry.block.__name__], entry.layers, entry.family == "imagenet")
    model.load_state_dict({key: tensor(value.array) for key, value in state.items()})
    return model


def inference(model: nn.Module, images: np.ndarray) -> Work:
    """A function that returns the logits, in the mode that the model is in."""
    x = tensor(images)

    def run() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(x)]

    return run


def training_step(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, lr: float, momentum: float, weight_decay: float
) -> Work:
    """A function that makes one step of SGD and returns logits and loss."""
    x, y = tensor(images), tensor(labels)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)

    def run() -> list[torch.Tensor]:
        optimizer.zero_grad()
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        return [logits, loss]

    return run
