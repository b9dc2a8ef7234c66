"""Layers and the Module that holds them together, under PyTorch's names."""

from minires.nn import functional, init
from minires.nn.container import ModuleList, Sequential
from minires.nn.layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Linear,
    MaxPool2d,
    ReLU,
)
from minires.nn.module import Module, Parameter
from minires.nn.more_layers import AvgPool2d, CrossEntropyLoss, Dropout, Flatten, Identity, Sigmoid, SyncBatchNorm, Tanh

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Identity",
    "Linear",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SyncBatchNorm",
    "Tanh",
    "functional",
    "init",
]
