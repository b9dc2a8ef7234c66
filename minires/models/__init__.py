"""Residual networks."""

from functools import partial

from minires.models.blocks import BasicBlock, BlockOptions, Bottleneck, ShortcutA
from minires.models.other_blocks import PlainBlock, PreActBlock, PreActBottleneck
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


def __getattr__(name: str) -> object:
    """Every network by its own name too: ``models.resnet18(num_classes=10)``."""
    if name in MODELS:
        return partial(create_model, name)
    raise AttributeError(f"module 'minires.models' has no attribute {name!r}: see list_models()")
