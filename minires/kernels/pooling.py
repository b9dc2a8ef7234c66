"""Max pooling and average pooling.

All of them walk over the taps of the window (kh, kw): tap by tap, every output meets one input pixel, and the inputs
of one tap are a strided slice of x. Where a tap of the outermost windows falls into the padding, ``overlap`` says which
outputs still meet a pixel.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from minires.kernels.backend import Array, array_module, blocks_pay
from minires.kernels.shapes import check_images, pair, window_output_size

#: The bytes of x in a block of channels of max pooling's backward, so that its many steps find them in the cache.
BLOCK = 1 << 21


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


class MaxPool2dCache(NamedTuple):
    x: Array
    y: Array
    size: PoolSize


class AvgPool2dCache(NamedTuple):
    x_shape: tuple[int, int, int, int]
    divisor: Array  # (OH, OW): how many values each average is taken over
    size: PoolSize


class AdaptiveAvgPool2dCache(NamedTuple):
    x_shape: tuple[int, int, int, int]
    output_size: tuple[int, int]


class GlobalAvgPoolCache(NamedTuple):
    x_shape: tuple[int, int, int, int]


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

    Shapes: none. Returns (slice of the outputs, slice of the input).
    Formula: output i meets pixel i stride + tap dilation - padding, if 0 <= that < size.
    Errors: none of its own; both slices are empty where no output meets a pixel.
    Source: the definition of a padded window.
    """
    first = tap * dilation - padding
    i0 = max(0, -(first // stride))
    i1 = min(outputs, (size - 1 - first) // stride + 1)
    if i0 >= i1:
        return slice(0, 0), slice(0, 0)
    return slice(i0, i1), slice(first + i0 * stride, first + (i1 - 1) * stride + 1, stride)


def column_phases(xp: ModuleType, x_rows: Array, SW: int) -> list[Array]:
    """Every SW-th column, from each of the first SW columns on: what a stride picks, in one piece of memory.

    Shapes: x_rows (C, H, W, N) -> SW arrays (C, H, about W/SW, N); x_rows itself for a stride of 1.
    Formula: phases[p][c, h, j, n] = x_rows[c, h, j SW + p, n].
    Errors: none of its own.
    Source: short runs of memory cost NumPy several times the arithmetic on them.
    """
    phases = []
    for p in range(SW):
        phases.append(xp.ascontiguousarray(x_rows[:, :, p::SW]))
    return phases


def max_pool2d_forward(
    x: Array, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False
) -> tuple[Array, MaxPool2dCache]:
    """The largest value of each window.

    Shapes: x (N, C, H, W) -> y (N, C, OH, OW).
    Formula: y[.., oh, ow] = max over kh, kw of x[.., oh SH + kh DH - PH, ow SW + kw DW - PW]; padding is -inf.
    Errors: ValueError for a window larger than the padded input, or padding over half the kernel.
    Source: torch.nn.functional.max_pool2d. NaN wins.
    """
    xp = array_module(x)
    size = pool_size(x, "max_pool2d", kernel_size, stride, padding, dilation, ceil_mode)
    H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = size
    N, C = x.shape[:2]
    # Split the columns of x by what a stride skips: x_phases[p] has the columns p, p + SW, p + 2 SW and so on, and the
    # pixels that neighbouring windows meet at one place are neighbours in it.
    x_phases = column_phases(xp, x.transpose(1, 2, 3, 0), SW)  # (C, H, W/SW, N) each
    # Start from -infinity: any pixel is larger, and padding never wins. The axes are (C, OH, OW, N), images last.
    y = xp.full((C, OH, OW, N), -xp.inf, x.dtype)
    # Walk over the places of the window, kh and kw: at each, all windows at once keep the larger of what they had and
    # the pixel that they meet there. overlap says which windows meet a pixel, not the padding, and which pixels these
    # are.
    for kh in range(KH):
        oh, h = overlap(kh, H, OH, SH, PH, DH)
        for kw in range(KW):
            ow, w = overlap(kw, W, OW, SW, PW, DW)
            j = w.start // SW  # the pixels w.start, w.start + SW, ... are a phase's columns from this one on
            pixel = x_phases[w.start % SW][:, h, j : j + ow.stop - ow.start]
            best = y[:, oh, ow]
            xp.maximum(best, pixel, out=best)
    # Put the images first again.
    y = y.transpose(3, 0, 1, 2)  # (N, C, OH, OW)
    return y, MaxPool2dCache(x, y, size)


def max_pool2d_backward(dy: Array, cache: MaxPool2dCache) -> Array:
    """Gradient of max_pool2d_forward.

    Shapes: dy (N, C, OH, OW) -> dx (N, C, H, W).
    Formula: each dy goes to the pixel that was its window's maximum, to the first in row-major order where they tie.
        An infinite or NaN dy gives NaN to the other pixels of its window, the product with 0. Of several NaNs the first
        is the maximum (in PyTorch the last), and +inf ties with NaN.
    Errors: none of its own.
    Source: torch.nn.functional.max_pool2d.
    """
    xp = array_module(dy)
    H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = cache.size
    N, C = cache.x.shape[:2]
    # Make room for the result, with the images last as in the forward: every entry is written below.
    dx = xp.empty((C, H, W, N), dy.dtype)
    # Take so many channels at a time that they fit into the processor's cache: only speed depends on this number.
    channels = max(1, BLOCK // (H * W * N * dy.itemsize)) if blocks_pay(xp) else C
    # Walk over the places of the window as the forward does, for one block of channels after the other. A window waits
    # until it meets a pixel that is not smaller than its maximum: that pixel gets its dy, and the window waits no more,
    # so that of several equal pixels only the first gets it. The gradients are collected in arrays like x_phases, with
    # the columns of dx split by the stride, and are put in order at the end.
    for start in range(0, C, channels):
        block = slice(start, start + channels)
        x_phases = column_phases(xp, cache.x.transpose(1, 2, 3, 0)[block], SW)  # (c, H, W/SW, N) each
        y_rows = cache.y.transpose(1, 2, 3, 0)[block]  # (c, OH, OW, N)
        y_rows = xp.where(y_rows != y_rows, xp.inf, y_rows)  # then only NaN and inf are not smaller: NaN is found
        dy_rows = dy.transpose(1, 2, 3, 0)[block]  # (c, OH, OW, N)
        dx_phases = column_phases(xp, xp.zeros(dx[block].shape, dy.dtype), SW)
        waiting = xp.ones(y_rows.shape, bool)  # windows whose maximum has not been met yet
        for kh in range(KH):
            oh, h = overlap(kh, H, OH, SH, PH, DH)
            for kw in range(KW):
                ow, w = overlap(kw, W, OW, SW, PW, DW)
                j = w.start // SW
                columns = slice(j, j + ow.stop - ow.start)
                smaller = x_phases[w.start % SW][:, h, columns] < y_rows[:, oh, ow]
                found = waiting[:, oh, ow] > smaller  # waiting, and not smaller
                dx_phases[w.start % SW][:, h, columns] += dy_rows[:, oh, ow] * found
                waiting[:, oh, ow] &= smaller
        for p in range(SW):
            dx[block, :, p::SW] = dx_phases[p]
    return dx.transpose(3, 0, 1, 2)


def avg_pool2d_forward(
    x: Array, *, kernel_size, stride=None, padding=0, ceil_mode: bool = False, count_include_pad: bool = True
) -> tuple[Array, AvgPool2dCache]:
    """The average of each window.

    Shapes: x (N, C, H, W) -> y (N, C, OH, OW).
    Formula: y[.., oh, ow] = sum over the window's pixels / divisor. The divisor counts the window's cells inside the
        padded input, or with count_include_pad=False inside the input.
    Errors: ValueError for a window larger than the padded input, or padding over half the kernel.
    Source: torch.nn.functional.avg_pool2d.
    """
    xp = array_module(x)
    size = pool_size(x, "avg_pool2d", kernel_size, stride, padding, 1, ceil_mode)
    H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = size
    N, C = x.shape[:2]
    margin_h, margin_w = (PH, PW) if count_include_pad else (0, 0)
    top = xp.arange(OH) * SH - PH
    left = xp.arange(OW) * SW - PW
    counts_h = xp.minimum(top + KH, H + margin_h) - xp.maximum(top, -margin_h)  # (OH,)
    counts_w = xp.minimum(left + KW, W + margin_w) - xp.maximum(left, -margin_w)  # (OW,)
    divisor = (counts_h[:, None] * counts_w[None, :]).astype(x.dtype)  # (OH, OW)
    x_rows = x.transpose(1, 2, 3, 0)  # (C, H, W, N)
    y = xp.zeros((C, OH, OW, N), x.dtype)
    for kh in range(KH):
        oh, h = overlap(kh, H, OH, SH, PH, 1)
        for kw in range(KW):
            ow, w = overlap(kw, W, OW, SW, PW, 1)
            y[:, oh, ow] += x_rows[:, h, w]
    y /= divisor[:, :, None]
    return y.transpose(3, 0, 1, 2), AvgPool2dCache(x.shape, divisor, size)


def avg_pool2d_backward(dy: Array, cache: AvgPool2dCache) -> Array:
    """Gradient of avg_pool2d_forward.

    Shapes: dy (N, C, OH, OW) -> dx (N, C, H, W).
    Formula: each window hands dy / divisor to every one of its pixels.
    Errors: none of its own.
    Source: torch.nn.functional.avg_pool2d.
    """
    xp = array_module(dy)
    H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = cache.size
    N, C = cache.x_shape[:2]
    share = dy.transpose(1, 2, 3, 0) / cache.divisor[:, :, None]  # (C, OH, OW, N)
    dx = xp.zeros((C, H, W, N), dy.dtype)
    for kh in range(KH):
        oh, h = overlap(kh, H, OH, SH, PH, 1)
        for kw in range(KW):
            ow, w = overlap(kw, W, OW, SW, PW, 1)
            dx[:, h, w] += share[:, oh, ow]
    return dx.transpose(3, 0, 1, 2)


def global_avg_pool_forward(x: Array) -> tuple[Array, GlobalAvgPoolCache]:
    """The average of each feature map.

    Shapes: x (N, C, H, W) -> y (N, C, 1, 1).
    Formula: y[n, c] = mean of x[n, c] over h, w.
    Errors: ValueError for an empty input or another number of axes.
    Source: Lin et al. 2013; torch.nn.functional.adaptive_avg_pool2d(x, 1).
    """
    check_images(x, "global_avg_pool")
    y = x.mean(axis=(2, 3), keepdims=True)
    return y, GlobalAvgPoolCache(x.shape)


def global_avg_pool_backward(dy: Array, cache: GlobalAvgPoolCache) -> Array:
    """Gradient of global_avg_pool_forward.

    Shapes: dy (N, C, 1, 1) -> dx (N, C, H, W).
    Formula: dx = dy / (H W), the same for every pixel.
    Errors: none of its own.
    Source: torch.nn.functional.adaptive_avg_pool2d(x, 1).
    """
    xp = array_module(dy)
    N, C, H, W = cache.x_shape
    dx = xp.empty((C, H, W, N), dy.dtype)
    dx[...] = (dy / (H * W)).transpose(1, 2, 3, 0)  # (C, H, W, N)
    return dx.transpose(3, 0, 1, 2)


def adaptive_avg_pool2d_forward(x: Array, *, output_size: tuple[int, int]) -> tuple[Array, AdaptiveAvgPool2dCache]:
    """Averages over a grid of windows that always gives the wished output size.

    Shapes: x (N, C, H, W) -> y (N, C, OH, OW) with (OH, OW) = output_size, larger than (H, W) too.
    Formula: y[.., i, j] = mean of rows floor(i H / OH) to ceil((i + 1) H / OH), columns alike.
    Errors: ValueError for an output size below 1.
    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    xp = array_module(x)
    check_images(x, "adaptive_avg_pool2d")
    OH, OW = pair(output_size, "adaptive_avg_pool2d", "output_size", 1)
    N, C, H, W = x.shape
    y = xp.empty((N, C, OH, OW), x.dtype)
    for i in range(OH):
        rows = slice(i * H // OH, -(-(i + 1) * H // OH))
        for j in range(OW):
            columns = slice(j * W // OW, -(-(j + 1) * W // OW))
            y[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    return y, AdaptiveAvgPool2dCache(x.shape, (OH, OW))


def adaptive_avg_pool2d_backward(dy: Array, cache: AdaptiveAvgPool2dCache) -> Array:
    """Gradient of adaptive_avg_pool2d_forward.

    Shapes: dy (N, C, OH, OW) -> dx (N, C, H, W).
    Formula: each window hands dy / (its number of pixels) to every one of its pixels.
    Errors: none of its own.
    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    xp = array_module(dy)
    N, C, H, W = cache.x_shape
    OH, OW = cache.output_size
    dx = xp.zeros((N, C, H, W), dy.dtype)
    for i in range(OH):
        rows = slice(i * H // OH, -(-(i + 1) * H // OH))
        for j in range(OW):
            columns = slice(j * W // OW, -(-(j + 1) * W // OW))
            count = (rows.stop - rows.start) * (columns.stop - columns.start)
            dx[:, :, rows, columns] += dy[:, :, i, j, None, None] / count
    return dx
