"""The networks by name: two tables, and a plain builder for each family."""

from __future__ import annotations

from typing import Any

from minires.models.blocks import BasicBlock, Bottleneck
from minires.models.resnet import ResNet
from minires.names import lookup

#: name: block, blocks in each of the four stages (He et al. 2015, table 1)
IMAGENET = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}

#: name: depth 6n + 2, with n blocks in each of three stages (He et al. 2015, section 4.2; 8 and 14 are ours)
CIFAR = {
    "resnet8": 8,
    "resnet14": 14,
    "resnet20": 20,
    "resnet32": 32,
    "resnet44": 44,
    "resnet56": 56,
    "resnet110": 110,
    "resnet1202": 1202,
}


def imagenet_resnet(name: str, **options: Any) -> ResNet:
    """A network of the ImageNet family: widths 64 to 512, shortcut option B, 1,000 classes unless told otherwise.

    Errors: ValueError for an unknown name; ValueError or TypeError for options that ResNet does not take.
    """
    block, layers = lookup(IMAGENET, name, "ImageNet network")
    return ResNet(block, layers, **options)


def cifar_resnet(depth: int, *, width: int = 16, **options: Any) -> ResNet:
    """A network of the CIFAR family: 3x3 stem, widths 16, 32, 64, option A and ten classes unless told otherwise.

    Args: depth, 6n + 2; width, of the first stage.
    Errors: ValueError for a depth that is not 6n + 2.
    Source: He et al. 2015, section 4.2.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"cifar_resnet: depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110 ...), got {depth}")
    options = {"stem": "cifar", "shortcut": "A", "num_classes": 10, **options}
    return ResNet(BasicBlock, (n, n, n), (width, 2 * width, 4 * width), **options)


def list_models() -> list[str]:
    """The names that create_model knows."""
    return [*CIFAR, *IMAGENET]


def create_model(name: str, **options: Any) -> ResNet:
    """A network by name: ``create_model("resnet20", num_classes=10, in_channels=1)``.

    Errors: ValueError for an unknown name, with the nearest one; TypeError for an unknown option.
    """
    lookup(dict.fromkeys(list_models()), name, "model")
    if name in CIFAR:
        return cifar_resnet(CIFAR[name], **options)
    return imagenet_resnet(name, **options)
