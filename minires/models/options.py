"""The options of blocks and networks: what all blocks of a network have in common, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class BlockOptions(NamedTuple):
    """What all blocks of a network have in common."""

    shortcut: str = "B"  # "A", "B" or "C"
    groups: int = 1  # of the 3x3 convolution of a Bottleneck: 32 in ResNeXt
    width_per_group: int = 64  # 64 means as many channels as the stage says: 128 in a wide ResNet
    stride_in: str = "3x3"  # which convolution of a Bottleneck has the stride: "3x3" (v1.5) or "1x1" (the paper's)
    generator: np.random.Generator | None = None  # of the initial weights


DEFAULTS = BlockOptions()


# ---- Blocks ------------------------------------------------------------------------------------------------------


def check_shortcut(shortcut: str) -> None:
    """Errors: ValueError for another option than A, B or C."""
    if shortcut not in ("A", "B", "C"):
        raise ValueError(f'shortcut must be "A", "B" or "C", got {shortcut!r}')


def refuse_bottleneck_options(block: str, options: BlockOptions, dilation: int) -> None:
    """Errors: ValueError for options that only a Bottleneck has."""
    if options.groups != 1 or options.width_per_group != 64 or dilation != 1 or options.stride_in != "3x3":
        raise ValueError(f"{block} has no groups, width_per_group, stride_in or dilation: take a Bottleneck network")


def check_bottleneck(channels: int, width: int, options: BlockOptions) -> None:
    """Errors: ValueError for a stride_in other than "3x3" and "1x1", and for groups without a channel."""
    if options.stride_in not in ("3x3", "1x1"):
        raise ValueError(f'stride_in must be "3x3" or "1x1", got {options.stride_in!r}')
    if width < options.groups:
        raise ValueError(
            f"width {channels} is too small for groups={options.groups}, width_per_group={options.width_per_group}"
        )


# ---- Networks ----------------------------------------------------------------------------------------------------


def check_network(
    layers: Sequence[int], widths: Sequence[int], stem: str, shortcut: str, zero_init_residual: bool, plain: bool
) -> None:
    """The options of ResNet; plain, whether its blocks have no shortcut.

    Errors: ValueError for one with another value than ResNet names, or layers and widths of different lengths.
    """
    if len(layers) != len(widths) or min(layers) < 1:
        raise ValueError(f"ResNet: expected a positive number of blocks a width, got {layers} for {widths}")
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f'ResNet: stem must be "imagenet" or "cifar", got {stem!r}')
    check_shortcut(shortcut)
    if zero_init_residual and plain:
        raise ValueError("zero_init_residual: a plain network has no residual")


def stages_dilated(replace_stride_with_dilation: Sequence[bool] | None, stages: int) -> list[bool]:
    """For each stage, whether it dilates instead of halving the image: the first never does.

    Errors: ValueError for what is not one bool for each stage but the first, or None.
    """
    if isinstance(replace_stride_with_dilation, bool):
        raise ValueError("replace_stride_with_dilation needs one bool for each stage but the first, got one bool")
    dilated = replace_stride_with_dilation or (False,) * (stages - 1)
    if len(dilated) != stages - 1:
        raise ValueError(
            f"ResNet: replace_stride_with_dilation needs one bool for each stage but the first, "
            f"{stages - 1}, got {replace_stride_with_dilation}"
        )
    return [False, *dilated]
