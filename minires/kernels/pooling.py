"""Max pooling as a textbook prints it, window by window, and the average of a whole feature map.

``fast/pooling.py`` has max pooling as it runs by default, proven equal (but where NaN meets infinity in one window);
averages over windows are in ``average_pooling.py``.
"""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.shapes import PoolSize, check_images, pool_size


class MaxPool2dCache(NamedTuple):
    x: Array
    size: PoolSize


class GlobalAvgPoolCache(NamedTuple):
    x_shape: tuple[int, int, int, int]


def window(o: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> slice:
    """The pixels of window number o along one axis: those of its cells that lie inside the image."""
    first = o * stride - padding
    outside = max(0, -(first // dilation))  # how many cells lie before the first pixel
    return slice(first + outside * dilation, min(size, first + (kernel - 1) * dilation + 1), dilation)


def max_pool2d_forward(
    x: Array, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False
) -> tuple[Array, MaxPool2dCache]:
    """The largest value of each window.

    Shapes: x (N, C, H, W) -> y (N, C, OH, OW).
    Formula: y[.., oh, ow] = max over kh, kw of x[.., oh SH + kh DH - PH, ow SW + kw DW - PW]; padding never wins.
    Errors: ValueError for a window larger than the padded input, or padding over half the kernel.
    Source: torch.nn.functional.max_pool2d. NaN wins.
    """
    xp = array_module(x)
    size = pool_size(x, "max_pool2d", kernel_size, stride, padding, dilation, ceil_mode)
    H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = size
    N, C = x.shape[:2]
    y = xp.empty((N, C, OH, OW), x.dtype)
    for oh in range(OH):
        rows = window(oh, H, KH, SH, PH, DH)
        for ow in range(OW):
            columns = window(ow, W, KW, SW, PW, DW)
            y[:, :, oh, ow] = x[:, :, rows, columns].max(axis=(2, 3))  # (N, C)
    return y, MaxPool2dCache(x, size)


def max_pool2d_backward(dy: Array, cache: MaxPool2dCache) -> Array:
    """Each dy goes to the pixel that was its window's maximum: to the first in row-major order where they tie.

    Shapes: dy (N, C, OH, OW) -> dx (N, C, H, W).
    Source: torch.nn.functional.max_pool2d.
    """
    xp = array_module(dy)
    x = cache.x
    H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = cache.size
    N, C = x.shape[:2]
    dx = xp.zeros((N, C, H, W), dy.dtype)
    n, c = xp.arange(N)[:, None], xp.arange(C)[None, :]  # (N, 1) and (1, C)
    for oh in range(OH):
        rows = window(oh, H, KH, SH, PH, DH)
        for ow in range(OW):
            columns = window(ow, W, KW, SW, PW, DW)
            pixels = x[:, :, rows, columns]  # (N, C, kh, kw)
            first = pixels.reshape(N, C, -1).argmax(axis=2)  # (N, C): argmax takes the first of equals
            h = rows.start + first // pixels.shape[3] * DH  # (N, C): where in x that is
            w = columns.start + first % pixels.shape[3] * DW  # (N, C)
            dx[n, c, h, w] += dy[:, :, oh, ow]
    return dx


def global_avg_pool_forward(x: Array) -> tuple[Array, GlobalAvgPoolCache]:
    """The average of each feature map.

    Shapes: x (N, C, H, W) -> y (N, C, 1, 1).
    Formula: y[n, c] = mean of x[n, c] over h, w.
    Errors: ValueError for an empty input or another number of axes.
    Source: Lin et al. 2013; torch.nn.functional.adaptive_avg_pool2d(x, 1).
    """
    check_images(x, "global_avg_pool")
    y = x.mean(axis=(2, 3), keepdims=True)  # (N, C, 1, 1)
    return y, GlobalAvgPoolCache(x.shape)


def global_avg_pool_backward(dy: Array, cache: GlobalAvgPoolCache) -> Array:
    """Gradient of global_avg_pool_forward.

    Shapes: dy (N, C, 1, 1) -> dx (N, C, H, W).
    Formula: dx = dy / (H W), the same for every pixel.
    Source: torch.nn.functional.adaptive_avg_pool2d(x, 1).
    """
    xp = array_module(dy)
    N, C, H, W = cache.x_shape
    dx = xp.empty((N, C, H, W), dy.dtype)
    dx[...] = dy / (H * W)
    return dx
