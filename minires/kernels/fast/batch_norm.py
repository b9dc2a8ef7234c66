"""Batch normalisation as it runs: on rows, in few passes over memory, and the same over several workers.

Everything happens on ``rows``, the input seen as (C, M): one row a channel, M = N*H*W values in it. The backward is
that of ``kernels/batch_norm.py`` put together: what its lines give for dmean and dvar, inserted and sorted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.batch_norm import move_running
from minires.kernels.shapes import check_batch_norm, check_values


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
    Source: the memory layout in shapes.py.
    """
    if len(shape) == 2:
        return rows.T
    N, C, H, W = shape
    return rows.reshape(C, H, W, N).transpose(3, 0, 1, 2)


def batch_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> tuple[Array, BatchNormCache]:
    """Batch normalisation in training. The running statistics, where given, move a step towards the batch's.

    Shapes: x (N, C, H, W) or (N, C), all others (C,) or None -> y (as x).
    Formula: y = gamma (x - mean) / sqrt(var + eps) + beta, mean and biased var of each channel over the batch.
    Errors: ValueError for one value a channel (its variance is 0 and the output does not depend on x).
    Source: Ioffe & Szegedy 2015; torch.nn.functional.batch_norm(training=True).
    """
    xp = array_module(x)
    check_batch_norm(x, gamma, beta, running_mean, running_var, training=True)
    rows = to_rows(x)  # (C, M)
    M = rows.shape[1]
    mean = rows.mean(axis=1)  # (C,)
    centred = rows - mean[:, None]  # (C, M)
    var = xp.matmul(centred[:, None, :], centred[:, :, None])[:, 0, 0] / M  # (C,): centred . centred, a channel
    inv_std = 1 / xp.sqrt(var + eps)  # (C,)
    x_hat = centred
    x_hat *= inv_std[:, None]  # centred is not needed again: its memory becomes x_hat
    y = scale_and_shift(x_hat, gamma, beta)  # (C, M)
    move_running(running_mean, running_var, mean, var, M, momentum)
    return from_rows(y, x.shape), BatchNormCache(x_hat, inv_std, gamma, beta is not None, mean, var)


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array | None, Array | None]:
    """Gradients of batch_norm_forward, through the batch's mean and variance too.

    Shapes: dy (as x) -> dx (as x), dgamma (C,) or None, dbeta (C,) or None.
    Formula: dx = gamma inv_std (dy - mean(dy) - x_hat mean(dy x_hat)), dgamma = sum(dy x_hat), dbeta = sum(dy).
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
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, BatchNormInferenceCache]:
    """Batch normalisation in evaluation, by given statistics.

    Shapes: x (N, C, H, W) or (N, C), gamma and beta (C,) or None, mean and var (C,) -> y (as x).
    Formula: y = gamma (x - mean) / sqrt(var + eps) + beta, mean and var constant.
    Errors: ValueError for shapes that do not fit.
    Source: Ioffe & Szegedy 2015; torch.nn.functional.batch_norm(training=False).
    """
    xp = array_module(x)
    check_batch_norm(x, gamma, beta, mean, var, training=False)
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
    Source: Ioffe & Szegedy 2015, algorithm 1, last line.
    """
    y = x_hat.copy() if gamma is None else x_hat * gamma[:, None]
    if beta is not None:
        y += beta[:, None]
    return y


# ---- Over several workers: the same with ``total`` around each sum --------------------------------------------------


class SyncBatchNormCache(NamedTuple):
    x_hat: Array  # (C, M), this worker's normalised input
    inv_std: Array  # (C,), 1 / sqrt(var + eps)
    gamma: Array | None  # (C,)
    has_beta: bool
    mean: Array  # (C,), of all workers' values
    var: Array  # (C,), of all workers' values, biased
    number: float  # all workers' values a channel
    total: Callable


def sync_batch_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    total: Callable,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> tuple[Array, SyncBatchNormCache]:
    """Batch normalisation in training, by the statistics of all workers' batches together.

    ``total(a)`` gives the sum of an array over all workers.
    Shapes: x (N, C, H, W) or (N, C), all others (C,) or None -> y (as x). N may differ between workers.
    Formula: y = gamma (x - mean) / sqrt(var + eps) + beta, mean and biased var of each channel over all workers.
    Errors: ValueError for one value a channel in all.
    Source: torch.nn.SyncBatchNorm.
    """
    xp = array_module(x)
    check_batch_norm(x, gamma, beta, running_mean, running_var, training=True, workers=True)
    rows = to_rows(x)  # (C, M)
    C, M = rows.shape
    sums = xp.full(C + 1, M, "float64")  # (C + 1,): a sum for each channel, and the number of values
    sums[:C] = rows.sum(axis=1)
    sums = total(sums)
    number = float(sums[C])
    check_values(number, x, "sync_batch_norm")
    mean = (sums[:C] / number).astype(x.dtype)  # (C,)
    centred = rows - mean[:, None]  # (C, M)
    squares = xp.matmul(centred[:, None, :], centred[:, :, None])[:, 0, 0]  # (C,): centred . centred, a channel
    var = total(squares) / number  # (C,)
    inv_std = 1 / xp.sqrt(var + eps)  # (C,)
    x_hat = centred
    x_hat *= inv_std[:, None]  # centred is not needed again: its memory becomes x_hat
    y = scale_and_shift(x_hat, gamma, beta)  # (C, M)
    move_running(running_mean, running_var, mean, var, number, momentum)
    cache = SyncBatchNormCache(x_hat, inv_std, gamma, beta is not None, mean, var, number, total)
    return from_rows(y, x.shape), cache


def sync_batch_norm_backward(dy: Array, cache: SyncBatchNormCache) -> tuple[Array, Array | None, Array | None]:
    """Gradients of sync_batch_norm_forward: every worker's loss depends on every worker's mean and variance.

    Shapes: dy (as x) -> dx (as x), dgamma (C,) or None, dbeta (C,) or None.
    Formula: dx = gamma inv_std (dy - total(sum(dy)) / number - x_hat total(sum(dy x_hat)) / number);
        dgamma = sum(dy x_hat) and dbeta = sum(dy) are this worker's parts, which the sum of all gradients adds up.
    Source: torch.nn.SyncBatchNorm.
    """
    xp = array_module(dy)
    dy_rows = to_rows(dy)  # (C, M)
    x_hat = cache.x_hat
    dbeta = dy_rows.sum(axis=1)  # (C,)
    dgamma = xp.matmul(dy_rows[:, None, :], x_hat[:, :, None])[:, 0, 0]  # (C,): dy . x_hat, a channel
    sums = cache.total(xp.stack([dbeta, dgamma]))  # (2, C)
    # Through the variance, through the mean, and the scale of the normalisation itself: as in batch_norm_backward.
    dx = x_hat * (sums[1] / -cache.number)[:, None]
    dx += dy_rows
    dx -= (sums[0] / cache.number)[:, None]
    scale = cache.inv_std if cache.gamma is None else cache.gamma * cache.inv_std
    dx *= scale[:, None]  # (C, M)
    return (
        from_rows(dx, dy.shape),
        None if cache.gamma is None else dgamma,
        dbeta if cache.has_beta else None,
    )
