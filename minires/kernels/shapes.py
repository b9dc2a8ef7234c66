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
    return int(both[0]), int(both[1])  # NumPy's unsigned ints would wrap below zero


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


class WindowSize(NamedTuple):
    """What im2col needs to know, by the letters of the alphabet."""

    N: int
    C: int
    H: int
    W: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int
    DH: int
    DW: int
    OH: int
    OW: int


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


def im2col_size(array: Array, x_shape: tuple[int, int, int, int], kernel_size, stride, padding, dilation) -> WindowSize:
    """Check the arguments of im2col, whose array is x, or of col2im, whose array is cols, and name all sizes.

    Errors: ValueError or TypeError that names the argument, what was expected and what came.
    """
    operation = "col2im" if array.ndim == 2 else "im2col"
    if operation == "im2col":
        check_images(array, operation)
    N, C, H, W = x_shape
    KH, KW = pair(kernel_size, operation, "kernel_size", 1)
    SH, SW = pair(stride, operation, "stride", 1)
    PH, PW = pair(padding, operation, "padding", 0)
    DH, DW = pair(dilation, operation, "dilation", 1)
    OH = window_output_size(H, KH, SH, PH, DH)
    OW = window_output_size(W, KW, SW, PW, DW)
    if OH < 1 or OW < 1:
        padded = (H + 2 * PH, W + 2 * PW)
        raise ValueError(f"{operation}: kernel_size {(KH, KW)} does not fit the padded input {padded}")
    if operation == "col2im" and array.shape != (N * OH * OW, C * KH * KW):
        raise ValueError(f"col2im: cols must have shape {(N * OH * OW, C * KH * KW)}, got {array.shape}")
    return WindowSize(N, C, H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW)


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
        pairs.extend(pair(value, "conv2d", name, least))
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


class PoolSize(NamedTuple):
    """The sizes of a pooling, by their letters in the alphabet of shapes.py."""

    H: int
    W: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int
    DH: int
    DW: int
    OH: int
    OW: int


def pool_size(x: Array, operation: str, kernel_size, stride, padding, dilation=1, ceil_mode: bool = False) -> PoolSize:
    """Check a pooling's arguments and name all sizes; stride None means the kernel size.

    Shapes: x (N, C, H, W).
    Formula: window_output_size for each axis.
    Errors: ValueError or TypeError that names the operation and the argument.
    Source: torch.nn.MaxPool2d, torch.nn.AvgPool2d.
    """
    check_images(x, operation)
    KH, KW = pair(kernel_size, operation, "kernel_size", 1)
    SH, SW = (KH, KW) if stride is None else pair(stride, operation, "stride", 1)
    PH, PW = pair(padding, operation, "padding", 0)
    DH, DW = pair(dilation, operation, "dilation", 1)
    if 2 * PH > KH or 2 * PW > KW:
        raise ValueError(
            f"{operation}: padding must be at most half of the kernel, got padding {(PH, PW)} for kernel {(KH, KW)}"
        )
    H, W = x.shape[2:]
    OH = window_output_size(H, KH, SH, PH, DH, ceil_mode)
    OW = window_output_size(W, KW, SW, PW, DW, ceil_mode)
    if OH < 1 or OW < 1:
        raise ValueError(
            f"{operation}: the window {(KH, KW)} with dilation {(DH, DW)} is larger than "
            f"the padded input {(H + 2 * PH, W + 2 * PW)}"
        )
    return PoolSize(H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW)


def overlap(tap: int, size: int, outputs: int, stride: int, padding: int, dilation: int) -> tuple[slice, slice]:
    """Which outputs meet a pixel at this tap, and which pixels those are, along one axis.

    Returns (slice of the outputs, slice of the input).
    Formula: output i meets pixel i stride + tap dilation - padding, if 0 <= that < size.
    Both slices are empty where no output meets a pixel.
    Source: the definition of a padded window.
    """
    first = tap * dilation - padding
    i0 = max(0, -(first // stride))
    i1 = min(outputs, (size - 1 - first) // stride + 1)
    if i0 >= i1:
        return slice(0, 0), slice(0, 0)
    return slice(i0, i1), slice(first + i0 * stride, first + (i1 - 1) * stride + 1, stride)


def channel_axes(x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes over which a channel's statistics are taken, and the shape of one value a channel beside x."""
    if x.ndim == 4:
        return (0, 2, 3), (1, x.shape[1], 1, 1)
    return (0,), (1, x.shape[1])


def check_batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    var: Array | None,
    training: bool,
    workers: bool = False,
) -> None:
    """Refuse an input that cannot be normalised, or per-channel arrays that do not fit it.

    Shapes: x (N, C, H, W) or (N, C); the others (C,) or None.
    Errors: ValueError or TypeError that names the argument.
    Source: torch.nn.functional.batch_norm.
    """
    if x.ndim not in (2, 4):
        raise ValueError(f"batch_norm: x must be (N, C, H, W) or (N, C), got {x.ndim} axes with shape {x.shape}")
    if x.dtype not in FLOATS:
        raise TypeError(f"batch_norm: x must be float32 or float64, got {x.dtype}: convert it with .float()")
    if x.size == 0:
        raise ValueError(f"batch_norm: x is empty, shape {x.shape}")
    if (mean is None) != (var is None):
        raise ValueError("batch_norm: running_mean and running_var must both be given, or neither")
    if mean is None and not training:
        raise ValueError("batch_norm: evaluation needs running_mean and running_var, or pass training=True")
    for name, array in (("gamma", gamma), ("beta", beta), ("running_mean", mean), ("running_var", var)):
        if array is not None and array.shape != (x.shape[1],):
            raise ValueError(
                f"batch_norm: {name} must have shape ({x.shape[1]},), one value a channel, got {array.shape}"
            )
        if array is not None and array.dtype != x.dtype:
            raise TypeError(f"batch_norm: x and {name} must have one dtype, got {x.dtype} and {array.dtype}")
    if training and not workers:  # of several workers, who may have more values together
        check_values(x.size // x.shape[1], x, "batch_norm")


def check_values(values: float, x: Array, operation: str) -> None:
    """Errors: ValueError for one value a channel: its variance is 0, and the output does not depend on x."""
    if values == 1:
        raise ValueError(f"{operation}: training needs more than one value a channel, got x of shape {x.shape}")


def check_momentum(momentum: float | None) -> None:
    """Errors: ValueError for None, which means an average over all batches to BatchNorm2d alone."""
    if momentum is None:
        raise ValueError("batch_norm: momentum must be a number, got None (BatchNorm2d knows how to average)")
