"""Batch normalisation: in training by the batch's own statistics, in evaluation by stored ones.

Everything happens on ``rows``, the input seen as (C, M): one row a channel, M = N*H*W values in it. Nothing is updated
here: the batch's mean and variance leave by name in the cache, and the layer decides what to do with them.
"""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.shapes import FLOATS


class BatchNormCache(NamedTuple):
    x_hat: Array  # (C, M), the normalised input
    inv_std: Array  # (C,), 1 / sqrt(var + eps)
    gamma: Array | None  # (C,)
    has_beta: bool
    mean: Array  # (C,), of the batch
    var: Array  # (C,), of the batch, biased (divided by M)


class BatchNormInferenceCache(NamedTuple):
    rows: Array  # (C, M), the input
    mean: Array  # (C,)
    inv_std: Array  # (C,)
    gamma: Array | None  # (C,)
    has_beta: bool


def to_rows(x: Array) -> Array:
    """x with its channels as rows.

    Shapes: x (N, C, H, W) -> (C, H*W*N), or x (N, C) -> (C, N). No copy where the memory is channels first already.
    Formula: rows[c] = all values of channel c.
    Errors: ValueError for another number of axes.
    Source: the memory layout in shapes.py.
    """
    if x.ndim == 4:
        return x.transpose(1, 2, 3, 0).reshape(x.shape[1], -1)
    if x.ndim == 2:
        return x.T
    raise ValueError(f"batch_norm: x must be (N, C, H, W) or (N, C), got {x.ndim} axes with shape {x.shape}")


def from_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """The way back from to_rows.

    Shapes: rows (C, H*W*N) -> (N, C, H, W), or (C, N) -> (N, C), as ``shape`` says. No copy.
    Formula: the inverse of to_rows.
    Errors: none of its own.
    Source: the memory layout in shapes.py.
    """
    if len(shape) == 2:
        return rows.T
    N, C, H, W = shape
    return rows.reshape(C, H, W, N).transpose(3, 0, 1, 2)


def check_batch_norm(x: Array, channels: list[tuple[str, Array | None]]) -> None:
    """Refuse an input that cannot be normalised, or per-channel arrays that do not fit it.

    Shapes: x (N, C, H, W) or (N, C); each of ``channels`` a name and an array (C,), or None.
    Formula: none.
    Errors: ValueError or TypeError that names the argument.
    Source: torch.nn.functional.batch_norm.
    """
    if x.ndim not in (2, 4):
        raise ValueError(f"batch_norm: x must be (N, C, H, W) or (N, C), got {x.ndim} axes with shape {x.shape}")
    if x.dtype not in FLOATS:
        raise TypeError(f"batch_norm: x must be float32 or float64, got {x.dtype}: convert it with .float()")
    if x.size == 0:
        raise ValueError(f"batch_norm: x is empty, shape {x.shape}")
    for name, array in channels:
        if array is not None and array.shape != (x.shape[1],):
            raise ValueError(
                f"batch_norm: {name} must have shape ({x.shape[1]},), one value a channel, got {array.shape}"
            )
        if array is not None and array.dtype != x.dtype:
            raise TypeError(f"batch_norm: x and {name} must have one dtype, got {x.dtype} and {array.dtype}")


def batch_norm_forward(
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, BatchNormCache]:
    """Batch normalisation in training. The batch's statistics are cache.mean and cache.var.

    Shapes: x (N, C, H, W) or (N, C), gamma and beta (C,) or None -> y (as x).
    Formula: y = gamma (x - mean) / sqrt(var + eps) + beta, mean and biased var of each channel over the batch.
    Errors: ValueError for one value a channel (its variance is 0 and the output does not depend on x).
    Source: Ioffe & Szegedy 2015; torch.nn.functional.batch_norm(training=True).
    """
    xp = array_module(x)
    check_batch_norm(x, [("gamma", gamma), ("beta", beta)])
    rows = to_rows(x)  # (C, M)
    M = rows.shape[1]
    if M == 1:
        raise ValueError(f"batch_norm: training needs more than one value a channel, got x of shape {x.shape}")
    mean = rows.mean(axis=1)  # (C,)
    centred = rows - mean[:, None]  # (C, M)
    var = xp.matmul(centred[:, None, :], centred[:, :, None])[:, 0, 0] / M  # (C,): centred . centred, a channel
    inv_std = 1 / xp.sqrt(var + eps)  # (C,)
    x_hat = centred
    x_hat *= inv_std[:, None]  # centred is not needed again: its memory becomes x_hat
    y = scale_and_shift(x_hat, gamma, beta)  # (C, M)
    return from_rows(y, x.shape), BatchNormCache(x_hat, inv_std, gamma, beta is not None, mean, var)


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array | None, Array | None]:
    """Gradients of batch_norm_forward, through the batch's mean and variance too.

    Shapes: dy (as x) -> dx (as x), dgamma (C,) or None, dbeta (C,) or None.
    Formula: dx = gamma inv_std (dy - mean(dy) - x_hat mean(dy x_hat)), dgamma = sum(dy x_hat), dbeta = sum(dy).
    Errors: none of its own.
    Source: Ioffe & Szegedy 2015, section 3, simplified.
    """
    xp = array_module(dy)
    dy_rows = to_rows(dy)  # (C, M)
    M = dy_rows.shape[1]
    x_hat = cache.x_hat
    dbeta = dy_rows.sum(axis=1)  # (C,)
    dgamma = xp.matmul(dy_rows[:, None, :], x_hat[:, :, None])[:, 0, 0]  # (C,): dy . x_hat, a channel
    # Through the variance: what of dy lies along x_hat would only stretch the batch, which is normalised away.
    dx = x_hat * (dgamma / -M)[:, None]
    # The direct way.
    dx += dy_rows
    # Through the mean: what all of dy has in common would only move the batch.
    dx -= (dbeta / M)[:, None]
    # The scale of the normalisation itself.
    scale = cache.inv_std if cache.gamma is None else cache.gamma * cache.inv_std
    dx *= scale[:, None]  # (C, M)
    return (
        from_rows(dx, dy.shape),
        None if cache.gamma is None else dgamma,
        dbeta if cache.has_beta else None,
    )


def batch_norm_inference_forward(
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, mean: Array, var: Array, eps: float = 1e-5
) -> tuple[Array, BatchNormInferenceCache]:
    """Batch normalisation in evaluation, by given statistics.

    Shapes: x (N, C, H, W) or (N, C), gamma and beta (C,) or None, mean and var (C,) -> y (as x).
    Formula: y = gamma (x - mean) / sqrt(var + eps) + beta, mean and var constant.
    Errors: ValueError for shapes that do not fit.
    Source: Ioffe & Szegedy 2015; torch.nn.functional.batch_norm(training=False).
    """
    xp = array_module(x)
    check_batch_norm(x, [("gamma", gamma), ("beta", beta), ("mean", mean), ("var", var)])
    rows = to_rows(x)  # (C, M)
    inv_std = 1 / xp.sqrt(var + eps)  # (C,)
    # All four are constants, so gamma (x - mean) inv_std + beta = scale x + shift: two passes over x.
    scale = inv_std if gamma is None else gamma * inv_std  # (C,)
    shift = -mean * scale if beta is None else beta - mean * scale  # (C,)
    y = rows * scale[:, None]  # (C, M)
    y += shift[:, None]
    return from_rows(y, x.shape), BatchNormInferenceCache(rows, mean, inv_std, gamma, beta is not None)


def batch_norm_inference_backward(
    dy: Array, cache: BatchNormInferenceCache
) -> tuple[Array, Array | None, Array | None]:
    """Gradients of batch_norm_inference_forward: the statistics are constants, so dx is a scaled dy.

    Shapes: dy (as x) -> dx (as x), dgamma (C,) or None, dbeta (C,) or None.
    Formula: dx = gamma inv_std dy, dgamma = sum(dy x_hat), dbeta = sum(dy).
    Errors: none of its own.
    Source: torch.nn.functional.batch_norm(training=False).
    """
    xp = array_module(dy)
    dy_rows = to_rows(dy)  # (C, M)
    dbeta = dy_rows.sum(axis=1) if cache.has_beta else None
    dgamma = None
    if cache.gamma is not None:
        x_hat = (cache.rows - cache.mean[:, None]) * cache.inv_std[:, None]  # (C, M)
        dgamma = xp.matmul(dy_rows[:, None, :], x_hat[:, :, None])[:, 0, 0]
    scale = cache.inv_std if cache.gamma is None else cache.gamma * cache.inv_std
    dx = dy_rows * scale[:, None]  # (C, M)
    return from_rows(dx, dy.shape), dgamma, dbeta


def scale_and_shift(x_hat: Array, gamma: Array | None, beta: Array | None) -> Array:
    """The learned part of batch norm, on rows.

    Shapes: x_hat (C, M), gamma and beta (C,) or None -> y (C, M), a new array.
    Formula: y = gamma x_hat + beta.
    Errors: none of its own.
    Source: Ioffe & Szegedy 2015, algorithm 1, last line.
    """
    y = x_hat.copy() if gamma is None else x_hat * gamma[:, None]
    if beta is not None:
        y += beta[:, None]
    return y
