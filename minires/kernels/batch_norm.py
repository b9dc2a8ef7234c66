"""Batch normalisation as a textbook prints it: in training by the batch's own statistics, in evaluation by stored ones.

The backward is the chain rule line by line, from the last line of the forward to the first; what was broadcast on the
way there is summed on the way back. ``fast/batch_norm.py`` has the same pairs as they run by default, proven equal.
"""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module, one_launch
from minires.kernels.shapes import channel_axes, check_batch_norm, check_momentum


class BatchNormCache(NamedTuple):
    centred: Array  # as x, the input without its mean
    x_hat: Array  # as x, the normalised input
    inv_std: Array  # (1, C, 1, 1), 1 / sqrt(var + eps)
    gamma: Array | None  # (C,)
    has_beta: bool
    mean: Array  # (C,), of the batch
    var: Array  # (C,), of the batch, biased (divided by M)


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
    Source: Ioffe & Szegedy 2015, algorithm 1; torch.nn.functional.batch_norm(training=True).
    """
    xp = array_module(x)
    check_batch_norm(x, gamma, beta, running_mean, running_var, training=True)
    axes, per_channel = channel_axes(x)  # (0, 2, 3) and (1, C, 1, 1)
    mean = x.mean(axis=axes, keepdims=True)  # (1, C, 1, 1)
    centred = x - mean  # (N, C, H, W)
    var = (centred * centred).mean(axis=axes, keepdims=True)  # (1, C, 1, 1)
    inv_std = 1 / xp.sqrt(var + eps)  # (1, C, 1, 1)
    x_hat = centred * inv_std  # (N, C, H, W)
    y = x_hat
    if gamma is not None:
        y = y * gamma.reshape(per_channel)
    if beta is not None:
        y = y + beta.reshape(per_channel)
    batch_mean, batch_var = mean.reshape(-1), var.reshape(-1)  # (C,)
    move_running(running_mean, running_var, batch_mean, batch_var, x.size // mean.size, momentum)
    return y, BatchNormCache(centred, x_hat, inv_std, gamma, beta is not None, batch_mean, batch_var)


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array | None, Array | None]:
    """The chain rule, from the last line of the forward to the first.

    Shapes: dy (as x) -> dx (as x), dgamma (C,) or None, dbeta (C,) or None.
    Source: Ioffe & Szegedy 2015, section 3. fast/batch_norm.py has what comes out when all is put together.
    """
    centred, x_hat, inv_std, gamma, has_beta, _, _ = cache
    axes, per_channel = channel_axes(dy)  # (0, 2, 3) and (1, C, 1, 1)
    M = dy.size // inv_std.size  # values a channel
    # y = gamma x_hat + beta
    dbeta = dy.sum(axis=axes)  # (C,)
    dgamma = (dy * x_hat).sum(axis=axes)  # (C,)
    dx_hat = dy if gamma is None else dy * gamma.reshape(per_channel)  # (N, C, H, W)
    # x_hat = centred inv_std
    dcentred = dx_hat * inv_std  # (N, C, H, W)
    dinv_std = (dx_hat * centred).sum(axis=axes, keepdims=True)  # (1, C, 1, 1)
    # inv_std = (var + eps)^(-1/2)
    dvar = dinv_std * -0.5 * inv_std**3  # (1, C, 1, 1)
    # var = sum(centred^2) / M
    dcentred = dcentred + dvar * 2 * centred / M  # (N, C, H, W)
    # centred = x - mean, and mean = sum(x) / M
    dmean = -dcentred.sum(axis=axes, keepdims=True)  # (1, C, 1, 1)
    dx = dcentred + dmean / M  # (N, C, H, W)
    return dx, None if gamma is None else dgamma, dbeta if has_beta else None


def move_running(
    running_mean: Array | None, running_var: Array | None, mean: Array, var: Array, M: float, momentum: float
) -> None:
    """Move the running statistics towards the batch's, in place; the running variance is the unbiased one."""
    check_momentum(momentum)
    if running_mean is not None:
        one_launch(move_towards, mean)(running_mean, mean, momentum, 1.0)
    if running_var is not None:
        one_launch(move_towards, var)(running_var, var, momentum, M / (M - 1))


def move_towards(running: Array, batch: Array, momentum: float, factor: float) -> None:
    """A running statistic a step towards factor * the batch's, in place."""
    running += momentum * (factor * batch - running)


class BatchNormInferenceCache(NamedTuple):
    x_hat: Array  # as x, the normalised input
    inv_std: Array  # (1, C, 1, 1)
    gamma: Array | None  # (C,)
    has_beta: bool


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
    axes, per_channel = channel_axes(x)  # (0, 2, 3) and (1, C, 1, 1)
    inv_std = 1 / xp.sqrt(var + eps).reshape(per_channel)  # (1, C, 1, 1)
    x_hat = (x - mean.reshape(per_channel)) * inv_std  # (N, C, H, W)
    y = x_hat
    if gamma is not None:
        y = y * gamma.reshape(per_channel)
    if beta is not None:
        y = y + beta.reshape(per_channel)
    return y, BatchNormInferenceCache(x_hat, inv_std, gamma, beta is not None)


def batch_norm_inference_backward(
    dy: Array, cache: BatchNormInferenceCache
) -> tuple[Array, Array | None, Array | None]:
    """The statistics are constants, so dx is a scaled dy.

    Shapes: dy (as x) -> dx (as x), dgamma (C,) or None, dbeta (C,) or None.
    Formula: dx = gamma inv_std dy, dgamma = sum(dy x_hat), dbeta = sum(dy).
    """
    x_hat, inv_std, gamma, has_beta = cache
    axes, per_channel = channel_axes(dy)  # (0, 2, 3) and (1, C, 1, 1)
    dbeta = dy.sum(axis=axes) if has_beta else None  # (C,)
    dgamma = None if gamma is None else (dy * x_hat).sum(axis=axes)  # (C,)
    dx_hat = dy if gamma is None else dy * gamma.reshape(per_channel)  # (N, C, H, W)
    dx = dx_hat * inv_std  # (N, C, H, W)
    return dx, dgamma, dbeta
