"""The alphabet of shapes, and the arithmetic of sizes that convolution and pooling share.

    N C H W    batch, channels, height, width of the input        O OH OW    channels, height, width of the output
    KH KW      kernel      SH SW  stride      PH PW  padding      DH DW  dilation      G  groups

Arrays are (N, C, H, W) for whoever looks at them. In memory most of them lie as (C, H, W, N): what a convolution's
matrix product gives is channels first, and batch norm's sums over a channel want it that way; with the images last,
every shift of a feature map is a copy of long runs. ``x.transpose(1, 2, 3, 0)`` looks at the memory, and
``rows.transpose(3, 0, 1, 2)`` looks back at (N, C, H, W); neither copies.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minires.kernels.backend import Array

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
    if ndim == 0:
        raise IndexError(f"{operation}: a tensor without axes has no dim {axis}")
    if not -ndim <= axis < ndim:
        raise IndexError(f"{operation}: dim must lie between {-ndim} and {ndim - 1}, got {axis}")
    return int(axis) % ndim


def check_fits(value: float, dtype: np.dtype, operation: str) -> None:
    """Refuse a fill value that an integer dtype does not have: NaN, infinity, or one out of its range.

    Errors: ValueError.
    """
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        raise ValueError(f"{operation}: the value {value} does not fit into {dtype}")


def window_output_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False
) -> int:
    """How many windows fit along one axis; 0 or less where not even one fits.

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


class Conv2dSize(NamedTuple):
    """Every size that a convolution needs, by its letter in the alphabet."""

    N: int
    C: int
    H: int
    W: int
    O: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int
    DH: int
    DW: int
    G: int
    OH: int
    OW: int


def conv2d_size(x: Array, w: Array, b: Array | None, stride, padding, dilation, groups: int) -> Conv2dSize:
    """Check a convolution's arguments against each other and name all sizes.

    Shapes: x (N, C, H, W), w (O, C/G, KH, KW), b (O,) or None.
    Formula: OH = floor((H + 2 PH - DH (KH - 1) - 1) / SH) + 1, and OW alike.
    Errors: ValueError or TypeError that names the argument, what was expected and what came.
    Source: torch.nn.functional.conv2d.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"conv2d: x must have shape (N, C, H, W) with no empty axis, got {x.shape}")
    if x.dtype not in FLOATS:
        raise TypeError(f"conv2d: x must be float32 or float64, got {x.dtype}: convert it with .float()")
    if w.ndim != 4 or 0 in w.shape:
        raise ValueError(f"conv2d: w must have shape (O, C/groups, KH, KW) with no empty axis, got {w.shape}")
    if w.dtype != x.dtype or (b is not None and b.dtype != x.dtype):
        came = f"x {x.dtype}, w {w.dtype}" + ("" if b is None else f", b {b.dtype}")
        raise TypeError(f"conv2d: x, w and b must have one dtype, got {came}")
    pairs = []
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        both = value if isinstance(value, (tuple, list)) else (value, value)  # pair(), one frame less on the way
        if len(both) != 2 or not isinstance(both[0], INTEGERS) or not isinstance(both[1], INTEGERS):
            raise TypeError(f"conv2d: {name} must be an int or a pair of ints, got {value!r}")
        if min(both) < least:
            raise ValueError(f"conv2d: {name} must be at least {least}, got {value!r}")
        pairs.extend((int(both[0]), int(both[1])))  # NumPy's unsigned ints would wrap below zero
    SH, SW, PH, PW, DH, DW = pairs
    N, C, H, W = x.shape
    O, C_group, KH, KW = w.shape
    if not isinstance(groups, INTEGERS) or groups < 1:
        raise ValueError(f"conv2d: groups must be a positive int, got {groups!r}")
    if C % groups or O % groups:
        raise ValueError(f"conv2d: groups={groups} must divide the input's {C} channels and the kernel's {O} outputs")
    if C_group * groups != C:
        raise ValueError(
            f"conv2d: x has {C} channels and w {w.shape} with groups={groups} expects {C_group * groups} channels"
        )
    if b is not None and b.shape != (O,):
        raise ValueError(f"conv2d: b must have shape ({O},), one value an output channel, got {b.shape}")
    OH = (H + 2 * PH - DH * (KH - 1) - 1) // SH + 1
    OW = (W + 2 * PW - DW * (KW - 1) - 1) // SW + 1
    if OH < 1 or OW < 1:
        span = f"{DH * (KH - 1) + 1}x{DW * (KW - 1) + 1}"
        raise ValueError(f"conv2d: the kernel spans {span} and the padded input is {H + 2 * PH}x{W + 2 * PW}, smaller")
    return Conv2dSize._make((N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, int(groups), OH, OW))
