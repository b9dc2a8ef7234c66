"""Residual networks."""

from minires.models.blocks import BasicBlock, Bottleneck, ShortcutA
from minires.models.resnet import ResNet
from minires.models.zoo import CIFAR, IMAGENET, cifar_resnet, create_model, imagenet_resnet, list_models

__all__ = [
    "CIFAR",
    "IMAGENET",
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "ShortcutA",
    "cifar_resnet",
    "create_model",
    "imagenet_resnet",
    "list_models",
]
