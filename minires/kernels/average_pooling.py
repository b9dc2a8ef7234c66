"""Averages over windows: avg_pool2d, and adaptive_avg_pool2d, whose windows give the wished output size.

``overlap`` says, place by place of the window, which outputs meet a pixel there and which pixels those are.
"""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.shapes import PoolSize, check_images, overlap, pair, pool_size


class AvgPool2dCache(NamedTuple):
    x_shape: tuple[int, int, int, int]
    divisor: Array  # (OH, OW): how many values each average is taken over
    size: PoolSize


class AdaptiveAvgPool2dCache(NamedTuple):
    x_shape: tuple[int, int, int, int]
    output_size: tuple[int, int]


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
