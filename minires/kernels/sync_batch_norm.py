"""Batch normalisation over several workers: batch_norm.py with ``total`` around each sum.

``total(a)`` gives the sum of ``a`` over all workers. The workers may hold different numbers of images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.batch_norm import check_batch_norm, from_rows, scale_and_shift, to_rows


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
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, total: Callable, eps: float = 1e-5
) -> tuple[Array, SyncBatchNormCache]:
    """Batch normalisation in training, by the statistics of all workers' batches together.

    Shapes: x (N, C, H, W) or (N, C), gamma and beta (C,) or None -> y (as x). N may differ between workers.
    Formula: y = gamma (x - mean) / sqrt(var + eps) + beta, mean and biased var of each channel over all workers.
    Errors: ValueError for one value a channel in all.
    Source: torch.nn.SyncBatchNorm.
    """
    xp = array_module(x)
    check_batch_norm(x, [("gamma", gamma), ("beta", beta)])
    rows = to_rows(x)  # (C, M)
    C, M = rows.shape
    sums = xp.full(C + 1, M, "float64")  # (C + 1,): a sum for each channel, and the number of values
    sums[:C] = rows.sum(axis=1)
    sums = total(sums)
    number = float(sums[C])
    if number == 1:
        raise ValueError(f"sync_batch_norm: training needs more than one value a channel, got x of shape {x.shape}")
    mean = (sums[:C] / number).astype(x.dtype)  # (C,)
    centred = rows - mean[:, None]  # (C, M)
    squares = xp.matmul(centred[:, None, :], centred[:, :, None])[:, 0, 0]  # (C,): centred . centred, a channel
    var = total(squares) / number  # (C,)
    inv_std = 1 / xp.sqrt(var + eps)  # (C,)
    x_hat = centred
    x_hat *= inv_std[:, None]  # centred is not needed again: its memory becomes x_hat
    y = scale_and_shift(x_hat, gamma, beta)  # (C, M)
    cache = SyncBatchNormCache(x_hat, inv_std, gamma, beta is not None, mean, var, number, total)
    return from_rows(y, x.shape), cache


def sync_batch_norm_backward(dy: Array, cache: SyncBatchNormCache) -> tuple[Array, Array | None, Array | None]:
    """Gradients of sync_batch_norm_forward: every worker's loss depends on every worker's mean and variance.

    Shapes: dy (as x) -> dx (as x), dgamma (C,) or None, dbeta (C,) or None.
    Formula: dx = gamma inv_std (dy - total(sum(dy)) / number - x_hat total(sum(dy x_hat)) / number);
        dgamma = sum(dy x_hat) and dbeta = sum(dy) are this worker's parts, which the sum of all gradients adds up.
    Errors: none of its own.
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
