"""Residual networks."""

from minires.models.blocks import BasicBlock, BlockOptions, Bottleneck, PlainBlock, ShortcutA
from minires.models.preactivation import PreActBlock, PreActBottleneck
from minires.models.resnet import ResNet
from minires.models.zoo import INPUTS, MODELS, cifar_resnet, create_model, list_models, model_entry

__all__ = [
    "INPUTS",
    "MODELS",
    "BasicBlock",
    "BlockOptions",
    "Bottleneck",
    "PlainBlock",
    "PreActBlock",
    "PreActBottleneck",
    "ResNet",
    "ShortcutA",
    "cifar_resnet",
    "create_model",
    "list_models",
    "model_entry",
]
