"""The alphabet of shapes, and the arithmetic of sizes that convolution and pooling share.

    N C H W    batch, channels, height, width of the input        O OH OW    channels, height, width of the output
    KH KW      kernel      SH SW  stride      PH PW  padding      DH DW  dilation      G  groups

Arrays are (N, C, H, W) for whoever looks at them. In memory most of them lie as (C, H, W, N): what a convolution's
matrix product gives is channels first, and batch norm's sums over a channel want it that way; with the images last,
every shift of a feature map is a copy of long runs. ``x.transpose(1, 2, 3, 0)`` looks at the memory, and
``rows.transpose(3, 0, 1, 2)`` looks back at (N, C, H, W); neither copies.
"""

from __future__ import annotations

import numpy as np

from minires.backend import Array

#: What counts as a whole number in an argument.
INTEGERS = (int, np.integer)

#: What the kernels of a network compute in: float16 has too few digits for their sums.
FLOATS = (np.dtype("float32"), np.dtype("float64"))


def pair(value: int | tuple[int, int], operation: str, argument: str, least: int) -> tuple[int, int]:
    """An int or a pair of ints as a pair (height, width), each at least ``least``.

    Errors: TypeError for anything else than one or two ints; ValueError for a value below ``least``.
    """
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not isinstance(both[0], INTEGERS) or not isinstance(both[1], INTEGERS):
        raise TypeError(f"{operation}: {argument} must be an int or a pair of ints, got {value!r}")
    if both[0] < least or both[1] < least:
        raise ValueError(f"{operation}: {argument} must be at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


def check_images(x: Array, operation: str) -> None:
    """Refuse what is not a batch of floating-point feature maps (N, C, H, W), or is empty.

    Errors: ValueError for a wrong number of axes or an empty axis; TypeError for integers.
    """
    if x.ndim != 4:
        raise ValueError(f"{operation}: x must have 4 axes (N, C, H, W), got {x.ndim} with shape {x.shape}")
    if 0 in x.shape:
        raise ValueError(f"{operation}: x is empty, shape {x.shape} (N, C, H, W): every axis needs at least one entry")
    if x.dtype not in FLOATS:
        raise TypeError(f"{operation}: x must be float32 or float64, got {x.dtype}: convert it with .float()")


def check_axis(axis: int, ndim: int, operation: str) -> int:
    """An axis counted from the front.

    Errors: IndexError for one that an array with so many axes lacks; TypeError for what is not an int.
    """
    if not isinstance(axis, INTEGERS):
        raise TypeError(f"{operation}: dim must be an int, got {axis!r}")
    if not -ndim <= axis < ndim:
        raise IndexError(f"{operation}: dim must lie between {-ndim} and {ndim - 1}, got {axis}")
    return int(axis) % ndim


def window_output_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False
) -> int:
    """How many windows fit along one axis; 0 or less where the window is larger than the padded input.

    Formula: floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1. With ceil_mode the last window may
    hang over the edge, as long as it starts inside the input or its left padding.
    Source: torch.nn.MaxPool2d, torch.nn.Conv2d.
    """
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    if (count - 1) * stride >= size + padding:
        count -= 1
    return count
