"""The three networks of the golden file, as MiniRes builds them and as torch_resnet.py does."""

from minires import models


def minires_networks():
    return {
        "basic_block": models.BasicBlock(3, 4, stride=2),
        "bottleneck": models.Bottleneck(4, 4, stride=2),
        "resnet": models.ResNet(
            models.BasicBlock, (1, 1, 1), (4, 6, 9), num_classes=5, in_channels=2, stem="cifar", shortcut="A"
        ),
    }


def torch_networks():
    import torch_resnet as T

    return {
        "basic_block": T.BasicBlock(3, 4, stride=2),
        "bottleneck": T.Bottleneck(4, 4, stride=2),
        "resnet": T.ResNet(T.BasicBlock, (1, 1, 1), (4, 6, 9), num_classes=5, in_channels=2),
    }


INPUTS = {"basic_block": (3, 3, 7, 6), "bottleneck": (3, 4, 9, 7), "resnet": (4, 2, 9, 7)}
