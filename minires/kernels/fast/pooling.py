"""Max pooling as it runs: all windows at once, one place of the window (kh, kw) after the other.

Place by place, every output meets one input pixel, and the pixels of one place are a strided slice of x. Where a place
of the outermost windows falls into the padding, ``overlap`` says which outputs still meet a pixel.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from minires.kernels.backend import Array, array_module, blocks_pay
from minires.kernels.shapes import PoolSize, overlap, pool_size

#: The bytes of x in a block of channels of the backward, so that its many steps find them in the cache.
BLOCK = 1 << 21


class MaxPool2dCache(NamedTuple):
    x: Array
    y: Array
    size: PoolSize


def column_phases(xp: ModuleType, x_rows: Array, SW: int) -> list[Array]:
    """Every SW-th column, from each of the first SW columns on: what a stride picks, in one piece of memory.

    Shapes: x_rows (C, H, W, N) -> SW arrays (C, H, about W/SW, N); x_rows itself for a stride of 1.
    Formula: phases[p][c, h, j, n] = x_rows[c, h, j SW + p, n].
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
