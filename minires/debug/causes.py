"""What usually makes two layers differ, in plain sentences."""

from __future__ import annotations

from typing import Any

#: Options that a layer has in MiniRes and in PyTorch, under one name.
OPTIONS = (
    "stride",
    "padding",
    "kernel_size",
    "dilation",
    "groups",
    "eps",
    "momentum",
    "affine",
    "track_running_stats",
    "ceil_mode",
    "count_include_pad",
    "output_size",
    "p",
    "out_channels",
)

#: By the kind of layer, for the forward.
USUAL = {
    "Conv2d": "the stride in the wrong convolution of a block, the padding, a bias too many, or other weights",
    "BatchNorm2d": "eps, the mode (training or eval), or other running statistics",
    "Linear": "a bias too many or missing, a weight that is transposed, or what is flattened before it",
    "MaxPool2d": "kernel, stride or padding (it is -inf, not 0), or ceil_mode",
    "AvgPool2d": "count_include_pad, ceil_mode, or kernel and stride",
    "AdaptiveAvgPool2d": "the output size, or a mean over the wrong axes",
    "ReLU": "a layer before it: ReLU has no options",
    "Dropout": "the random mask: the two libraries draw other numbers. Compare in eval mode",
    "ShortcutA": "the zeros in the wrong place (half of the new channels before, half behind), or the stride",
}

WITHIN = (
    "every layer in it agrees, so look at what its forward does itself: a ReLU missing or in the wrong place, "
    "the residual addition, the order of the layers"
)

BETWEEN = (
    "what goes into it differs already, though all layers before it agree: look between them, at what is no layer "
    "of its own: usually the residual addition, a missing ReLU, or one too many"
)

FOLLOWS = "a forward that differs does that too, so look there first"

STATISTICS = (
    "usually momentum (PyTorch's weighs the new value), the biased variance where the unbiased is tracked, "
    "or the mode (training or eval)"
)


def options_that_differ(mine: Any, theirs: Any) -> list[str]:
    """The options in which two layers differ, as sentences."""
    found = []
    for option in OPTIONS:
        a, b = getattr(mine, option, None), getattr(theirs, option, None)
        if a is not None and b is not None and as_pair(a) != as_pair(b):
            found.append(f"{option} is {a} here and {b} in the reference")
    for name in ("weight", "bias"):
        a, b = getattr(mine, name, None), getattr(theirs, name, None)
        if (a is None) != (b is None):
            here, there = ("no", "one") if a is None else ("a", "none")
            found.append(f"it has {here} {name} here and {there} in the reference")
    return found


def as_pair(option: Any) -> Any:
    """3 and (3, 3) mean the same to a layer."""
    return (option, option) if isinstance(option, int) and not isinstance(option, bool) else option
