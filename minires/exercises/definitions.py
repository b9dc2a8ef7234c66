"""What each exercise's function should compute, one number at a time: loops over indices, as the formulas are written.

These are references, not solutions: they are slow, and none of them knows a shortcut or a backward.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minires.gradcheck.definitions import window_sizes
from minires.kernels.backend import Array
from minires.kernels.shapes import pair


def add(a: Array, b: Array) -> Array:
    """y[i] = a[i] + b[i], where an axis of size 1, or a missing one, counts for every index."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    y = np.zeros(shape)
    for i in np.ndindex(*shape):
        y[i] = a[broadcast_index(i, a.shape)] + b[broadcast_index(i, b.shape)]
    return y


def broadcast_index(i: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index into an array of this shape that index i of the broadcast result means."""
    last = i[len(i) - len(shape) :]
    return tuple(0 if size == 1 else place for place, size in zip(last, shape, strict=True))


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """total[j] = sum of dy over all indices that meant j."""
    total = np.zeros(shape)
    for i in np.ndindex(*dy.shape):
        total[broadcast_index(i, shape)] += dy[i]
    return total


def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """y = x - log(sum of e^x), for each row along the axis; the largest logit is taken out of the sum first."""
    rows = np.moveaxis(x, axis, -1)
    y = np.zeros(rows.shape)
    for i in np.ndindex(*rows.shape[:-1]):
        largest = max(rows[i])
        total = 0.0
        for logit in rows[i]:
            total += math.exp(logit - largest)
        for c in range(rows.shape[-1]):
            y[(*i, c)] = rows[(*i, c)] - largest - math.log(total)
    return np.moveaxis(y, -1, axis)


def im2col(x: Array, kernel_size: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Array:
    """cols[(n, oh, ow), (c, kh, kw)] = padded x[n, c, oh SH + kh DH - PH, ow SW + kw DW - PW]."""
    N, C, H, W = x.shape
    KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = window_sizes(x.shape, kernel_size, stride, padding, dilation)
    cols = np.zeros((N * OH * OW, C * KH * KW))
    for n, oh, ow, c, kh, kw in np.ndindex(N, OH, OW, C, KH, KW):
        h, w = oh * SH + kh * DH - PH, ow * SW + kw * DW - PW
        if 0 <= h < H and 0 <= w < W:
            cols[(n * OH + oh) * OW + ow, (c * KH + kh) * KW + kw] = x[n, c, h, w]
    return cols


def batch_norm_inference(
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    """y[n, c, ..] = gamma[c] (x[n, c, ..] - mean[c]) / sqrt(var[c] + eps) + beta[c]."""
    y = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        c = i[1]
        x_hat = (x[i] - mean[c]) / math.sqrt(var[c] + eps)
        y[i] = (1.0 if gamma is None else gamma[c]) * x_hat + (0.0 if beta is None else beta[c])
    return y


def residual_add(x: Array, branch: Array, *, inplace: bool = False) -> Array:
    """y[i] = branch[i] + x[i]."""
    y = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        y[i] = branch[i] + x[i]
    return y


def shortcut_a(x: Array, *, out_channels: int, stride: Any = 1) -> Array:
    """y[n, before + c, i, j] = x[n, c, i SH, j SW], and 0 in the channels before and after."""
    N, C, H, W = x.shape
    SH, SW = pair(stride, "shortcut_a", "stride", 1)
    before = (out_channels - C) // 2
    y = np.zeros((N, out_channels, -(-H // SH), -(-W // SW)))
    for n, o, i, j in np.ndindex(*y.shape):
        if before <= o < before + C:
            y[n, o, i, j] = x[n, o - before, i * SH, j * SW]
    return y


def sgd(
    p: Array, grad: Array, v: Array, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov=False
) -> tuple[Array, Array]:
    """The formula, weight by weight."""
    new_p, new_v = np.zeros(p.shape), np.zeros(p.shape)
    for i in np.ndindex(*p.shape):
        g = grad[i] + weight_decay * p[i]
        new_v[i] = momentum * v[i] + g
        new_p[i] = p[i] - lr * (g + momentum * new_v[i] if nesterov else new_v[i])
    return new_p, new_v
