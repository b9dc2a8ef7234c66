"""Each operation as it is defined, in loops: what a student's forward is held against.

Slow and obvious. The convolution's stands with its kernel, ``minires.kernels.conv2d_loops``.
"""

from __future__ import annotations

import math

import numpy as np

from minires.kernels.shapes import pair, window_output_size


def batch_norm_loops(x, gamma=None, beta=None, *, eps=1e-5) -> np.ndarray:
    """y[n, c, ...] = gamma[c] (x - mean of channel c) / sqrt(its biased variance + eps) + beta[c]."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = [float(v) for v in x[:, c].ravel()]
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        scale = 1.0 if gamma is None else gamma[c]
        shift = 0.0 if beta is None else beta[c]
        y[:, c] = scale * (x[:, c] - mean) / math.sqrt(var + eps) + shift
    return y


def relu_loops(x) -> np.ndarray:
    """Each value, or 0 where it is negative."""
    y = x.copy()
    for index in np.ndindex(*x.shape):
        y[index] = x[index] if x[index] > 0 else 0.0
    return y


def window_sizes(
    x_shape: tuple[int, ...], kernel_size, stride, padding, dilation, ceil_mode: bool = False
) -> tuple[int, ...]:
    """KH, KW, SH, SW, PH, PW, DH, DW, OH, OW of windows over images of this shape."""
    KH, KW = pair(kernel_size, "windows", "kernel_size", 1)
    SH, SW = pair(kernel_size if stride is None else stride, "windows", "stride", 1)
    PH, PW = pair(padding, "windows", "padding", 0)
    DH, DW = pair(dilation, "windows", "dilation", 1)
    OH = window_output_size(x_shape[2], KH, SH, PH, DH, ceil_mode)
    OW = window_output_size(x_shape[3], KW, SW, PW, DW, ceil_mode)
    return KH, KW, SH, SW, PH, PW, DH, DW, OH, OW


def windows(
    x, kernel_size, stride, padding, dilation=1, ceil_mode=False
) -> tuple[tuple[int, ...], int, list[tuple[tuple[int, ...], list[float]]]]:
    """The windows of a pooling.

    Returns: the output's shape; the cells of a window; and for each output its index (n, c, oh, ow) and those pixels of
    its window that lie inside x.
    """
    N, C, H, W = x.shape
    KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = window_sizes(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    found = []
    for n, c, oh, ow in np.ndindex(N, C, OH, OW):
        pixels = []
        for kh, kw in np.ndindex(KH, KW):
            h, w = oh * SH + kh * DH - PH, ow * SW + kw * DW - PW
            if 0 <= h < H and 0 <= w < W:
                pixels.append(x[n, c, h, w])
        found.append(((n, c, oh, ow), pixels))
    return (N, C, OH, OW), KH * KW, found


def max_pool2d_loops(x, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> np.ndarray:
    """The largest value of each window."""
    shape, _, found = windows(x, kernel_size, stride, padding, dilation, ceil_mode)
    y = np.empty(shape)
    for index, pixels in found:
        y[index] = max(pixels) if pixels else -np.inf
    return y


def avg_pool2d_loops(x, *, kernel_size, stride=None, padding=0, count_include_pad=True) -> np.ndarray:
    """The sum of each window over its number of cells."""
    shape, cells, found = windows(x, kernel_size, stride, padding)
    y = np.empty(shape)
    for index, pixels in found:
        y[index] = sum(pixels) / (cells if count_include_pad else len(pixels))
    return y


def global_avg_pool_loops(x) -> np.ndarray:
    """The mean of each feature map."""
    N, C, H, W = x.shape
    y = np.zeros((N, C, 1, 1))
    for n, c, h, w in np.ndindex(N, C, H, W):
        y[n, c, 0, 0] += x[n, c, h, w] / (H * W)
    return y


def linear_loops(x, w, b=None) -> np.ndarray:
    """y[..., o] = sum over i of x[..., i] w[o, i] + b[o]."""
    out, into = w.shape
    y = np.zeros((*x.shape[:-1], out))
    for index in np.ndindex(*y.shape):
        for i in range(into):
            y[index] += x[index[:-1]][i] * w[index[-1], i]
        if b is not None:
            y[index] += b[index[-1]]
    return y


def residual_loops(x, w1, w2) -> np.ndarray:
    """y[n, d] = max(0, x[n, d] + sum over m of h[n, m] w2[m, d]), h[n, m] = max(0, sum over i of x[n, i] w1[i, m])."""
    N, D = x.shape
    M = w1.shape[1]
    y = np.zeros((N, D))
    for n in range(N):
        h = [max(0.0, sum(x[n, i] * w1[i, m] for i in range(D))) for m in range(M)]
        for d in range(D):
            branch = sum(h[m] * w2[m, d] for m in range(M))
            y[n, d] = max(0.0, x[n, d] + branch)
    return y


def softmax_loops(x, *, axis=-1) -> np.ndarray:
    """y = e^x over the sum of e^x along the axis."""
    y = np.empty_like(x)
    moved, out = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)  # views
    for index in np.ndindex(*moved.shape[:-1]):
        largest = max(moved[index])  # e^x overflows from 710 on
        total = sum(math.exp(v - largest) for v in moved[index])
        for i, v in enumerate(moved[index]):
            out[(*index, i)] = math.exp(v - largest) / total
    return y


def cross_entropy_loops(logits, labels, *, label_smoothing=0.0, ignore_index=-100, reduction="mean") -> np.ndarray:
    """-(1 - s) log softmax[label] - s mean of log softmax, summed or averaged over the samples that count."""
    N, C = logits.shape
    losses, counted = np.zeros(N), 0
    for n in range(N):
        if labels[n] == ignore_index:
            continue
        counted += 1
        largest = max(logits[n])  # e^x overflows from 710 on
        total = math.log(sum(math.exp(v - largest) for v in logits[n]))
        log_p = [v - largest - total for v in logits[n]]
        losses[n] = -(1 - label_smoothing) * log_p[labels[n]] - label_smoothing * sum(log_p) / C
    if reduction == "none":
        return losses
    return losses.sum() / (counted if reduction == "mean" else 1)
