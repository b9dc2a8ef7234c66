"""The networks by name: one table, and a plain builder for each family.

Where a published number of parameters or multiply-adds exists, the tests hold every row to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minires.engine.convert import lookup
from minires.models.blocks import BasicBlock, Bottleneck
from minires.models.other_blocks import PlainBlock, PreActBlock, PreActBottleneck
from minires.models.resnet import Block, ResNet


class Entry(NamedTuple):
    """A row of the table."""

    family: str  # "imagenet", "cifar" or "mnist"
    block: Block
    layers: tuple[int, ...]  # blocks a stage
    options: dict[str, Any] = {}

    def widths(self, width: int | None = None) -> list[int]:
        """The channels of each stage's 3x3 convolutions. Args: width, of the first one; None for the published one."""
        first = width if width is not None else 64 if self.family == "imagenet" else 16
        return [first * 2**i for i in range(len(self.layers))]


def cifar(depth: int, block: Block = BasicBlock, family: str = "cifar") -> Entry:
    """A row of the CIFAR family: depth 6n + 2 is n blocks in each of three stages.

    Errors: ValueError for a depth that is not 6n + 2.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110 ...), got {depth}")
    return Entry(family, block, (n, n, n))


RESNEXT_32X4D = {"groups": 32, "width_per_group": 4}
RESNEXT_32X8D = {"groups": 32, "width_per_group": 8}
RESNEXT_64X4D = {"groups": 64, "width_per_group": 4}
WIDE = {"width_per_group": 128}

MODELS = {
    # He et al. 2015, table 1; torchvision's v1.5
    "resnet18": Entry("imagenet", BasicBlock, (2, 2, 2, 2)),
    "resnet34": Entry("imagenet", BasicBlock, (3, 4, 6, 3)),
    "resnet50": Entry("imagenet", Bottleneck, (3, 4, 6, 3)),
    "resnet101": Entry("imagenet", Bottleneck, (3, 4, 23, 3)),
    "resnet152": Entry("imagenet", Bottleneck, (3, 8, 36, 3)),
    # Xie et al. 2017
    "resnext50_32x4d": Entry("imagenet", Bottleneck, (3, 4, 6, 3), RESNEXT_32X4D),
    "resnext101_32x8d": Entry("imagenet", Bottleneck, (3, 4, 23, 3), RESNEXT_32X8D),
    "resnext101_64x4d": Entry("imagenet", Bottleneck, (3, 4, 23, 3), RESNEXT_64X4D),
    # Zagoruyko & Komodakis 2016
    "wide_resnet50_2": Entry("imagenet", Bottleneck, (3, 4, 6, 3), WIDE),
    "wide_resnet101_2": Entry("imagenet", Bottleneck, (3, 4, 23, 3), WIDE),
    # He et al. 2015, section 4.2 (8 and 14 are for digits)
    "resnet8": cifar(8),
    "resnet14": cifar(14),
    "resnet20": cifar(20),
    "resnet32": cifar(32),
    "resnet44": cifar(44),
    "resnet56": cifar(56),
    "resnet110": cifar(110),
    "resnet1202": cifar(1202),
    "mnist_resnet20": cifar(20, family="mnist"),
    # the same without the skip
    "plain18": Entry("imagenet", PlainBlock, (2, 2, 2, 2)),
    "plain34": Entry("imagenet", PlainBlock, (3, 4, 6, 3)),
    "plain20": cifar(20, PlainBlock),
    "plain56": cifar(56, PlainBlock),
    "plain110": cifar(110, PlainBlock),
    # He et al. 2016
    "preact_resnet18": Entry("imagenet", PreActBlock, (2, 2, 2, 2)),
    "preact_resnet34": Entry("imagenet", PreActBlock, (3, 4, 6, 3)),
    "preact_resnet50": Entry("imagenet", PreActBottleneck, (3, 4, 6, 3)),
    "preact_resnet20": cifar(20, PreActBlock),
    "preact_resnet32": cifar(32, PreActBlock),
    "preact_resnet44": cifar(44, PreActBlock),
    "preact_resnet56": cifar(56, PreActBlock),
    "preact_resnet110": cifar(110, PreActBlock),
    "preact_resnet1202": cifar(1202, PreActBlock),
}

#: The images that a family was made for: channels, height, width.
INPUTS = {"imagenet": (3, 224, 224), "cifar": (3, 32, 32), "mnist": (1, 28, 28)}


def build(entry: Entry, *, width: int | None = None, **options: Any) -> ResNet:
    """The network of a row. ``width`` is that of the first stage; the others follow by doubling.

    Errors: ValueError or TypeError for options that ResNet does not take.
    """
    if entry.family == "imagenet":
        defaults: dict[str, Any] = {"stem": "imagenet", "shortcut": "B", "num_classes": 1000}
    else:
        defaults = {"stem": "cifar", "shortcut": "A", "num_classes": 10}
    defaults["in_channels"] = INPUTS[entry.family][0]
    return ResNet(entry.block, entry.layers, entry.widths(width), **{**defaults, **entry.options, **options})


def cifar_resnet(depth: int, **options: Any) -> ResNet:
    """A network of the CIFAR family: 3x3 stem, widths 16, 32, 64, option A and ten classes unless told otherwise.

    Args: depth, 6n + 2; options, those of ResNet, and width, of the first stage.
    Errors: ValueError for a depth that is not 6n + 2.
    Source: He et al. 2015, section 4.2.
    """
    return build(cifar(depth), **options)


def list_models() -> list[str]:
    """The names that create_model knows."""
    return list(MODELS)


def model_entry(name: str) -> Entry:
    """The row of a name. Errors: ValueError for an unknown name, with the nearest one."""
    return lookup(MODELS, name, "model")


def create_model(name: str, *, weights: str | None = None, **options: Any) -> ResNet:
    """A network by name: ``create_model("resnet20", num_classes=10, in_channels=1)``.

    Args: weights, None for initial ones, "imagenet" or "imagenet-v2" for torchvision's published ones (fetched once);
        options, those of ResNet, and width, of the first stage.
    Errors: ValueError for an unknown name, with the nearest one, or for weights that were not published;
        TypeError for an unknown option; OSError where the weights cannot be fetched, saying which file to put where.
    """
    model = build(model_entry(name), **options)
    if weights is not None:
        from minires.models.pretrained import load_published

        load_published(model, name, weights)
    return model
