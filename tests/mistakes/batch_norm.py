"""Batch normalisation in training, gone wrong."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind


class Cache(NamedTuple):
    x: np.ndarray
    centred: np.ndarray
    x_hat: np.ndarray
    y: np.ndarray
    gamma: np.ndarray  # as mean, var and inv_std: one value a channel, with axes to broadcast
    mean: np.ndarray
    var: np.ndarray
    inv_std: np.ndarray
    eps: float


# ---- the right pieces -----------------------------------------------------------------------------------------------


def batch_axes(v):
    """All axes but the channels'."""
    return (0, *range(2, v.ndim))


def mean(v):
    return v.mean(axis=batch_axes(v), keepdims=True)


def total(v):
    return v.sum(axis=batch_axes(v), keepdims=True)


def spread(v, like):
    """(C,) -> (1, C, 1, 1)"""
    return v.reshape(1, -1, *[1] * (like.ndim - 2))


def batch_norm_forward(x, gamma, beta, *, eps=1e-5):
    centred = x - mean(x)
    var = mean(centred**2)
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = centred * inv_std
    y = spread(gamma, x) * x_hat + spread(beta, x)
    return y, Cache(x, centred, x_hat, y, spread(gamma, x), mean(x), var, inv_std, eps)


def batch_norm_backward(dy, cache):
    x_hat = cache.x_hat
    dx = cache.gamma * cache.inv_std * (dy - mean(dy) - x_hat * mean(dy * x_hat))
    return dx, total(dy * x_hat).ravel(), total(dy).ravel()


def input_gradient(dy, cache):
    return batch_norm_backward(dy, cache)[0]


batch_norm = Kind("batch_norm", batch_norm_forward, batch_norm_backward)


# ---- terms of dx ----------------------------------------------------------------------------------------------------


@batch_norm.wrong("dx", "bn-stats-constant")
def statistics_forgotten(dy, cache):
    """Forgets that mean and variance depend on x."""
    return dy * cache.gamma * cache.inv_std


@batch_norm.wrong("dx", "bn-mean-constant")
def mean_forgotten(dy, cache):
    """Goes back through the variance but not through the mean."""
    dx_hat = dy * cache.gamma
    dvar = -0.5 * total(dx_hat * cache.centred) * cache.inv_std**3
    return dx_hat * cache.inv_std + dvar * 2 * cache.centred / (dy.size / dy.shape[1])


@batch_norm.wrong("dx", "bn-var-constant")
def variance_forgotten(dy, cache):
    """Goes back through the mean but not through the variance."""
    dx_hat = dy * cache.gamma
    dmean = -total(dx_hat * cache.inv_std)
    return dx_hat * cache.inv_std + dmean / (dy.size / dy.shape[1])


@batch_norm.wrong("dx", "bn-bessel")
def unbiased_variance_in_backward(dy, cache):
    """Differentiates the unbiased variance, with M - 1, though the forward used the biased one."""
    M = dy.size / dy.shape[1]
    dx_hat = dy * cache.gamma
    dvar = -0.5 * total(dx_hat * cache.centred) * cache.inv_std**3
    dmean = -total(dx_hat * cache.inv_std)
    return dx_hat * cache.inv_std + dvar * 2 * cache.centred / (M - 1) + dmean / M


@batch_norm.wrong("dx", "bn-sum-for-mean")
def sums_for_means(dy, cache):
    """Never divides the two sums by M."""
    x_hat = cache.x_hat
    return cache.gamma * cache.inv_std * (dy - total(dy) - x_hat * total(dy * x_hat))


@batch_norm.wrong("dx", "bn-sum-for-mean")
def sum_in_the_mean_term(dy, cache):
    """Divides the variance's term by M, but not the mean's."""
    x_hat = cache.x_hat
    return cache.gamma * cache.inv_std * (dy - total(dy) - x_hat * mean(dy * x_hat))


@batch_norm.wrong("dx", "bn-sum-for-mean")
def sum_in_the_variance_term(dy, cache):
    """Takes dgamma for the variance's term, where dgamma / M belongs."""
    dgamma = total(dy * cache.x_hat)
    return cache.gamma * cache.inv_std * (dy - mean(dy) - cache.x_hat * dgamma)


@batch_norm.wrong("dx", "bn-var-sign")
def plus_in_the_variance_term(dy, cache):
    """Adds the variance's term."""
    x_hat = cache.x_hat
    return cache.gamma * cache.inv_std * (dy - mean(dy) + x_hat * mean(dy * x_hat))


@batch_norm.wrong("dx", "bn-var-sign")
def minus_of_the_root_lost(dy, cache):
    """Derives var^(-1/2) as +1/2 var^(-3/2)."""
    M = dy.size / dy.shape[1]
    dx_hat = dy * cache.gamma
    dvar = 0.5 * total(dx_hat * cache.centred) * cache.inv_std**3
    dmean = -total(dx_hat * cache.inv_std)
    return dx_hat * cache.inv_std + dvar * 2 * cache.centred / M + dmean / M


@batch_norm.wrong("dx", "unexplained")
def half_of_the_root_lost(dy, cache):
    """Derives var^(-1/2) as -var^(-3/2), without the 1/2."""
    M = dy.size / dy.shape[1]
    dx_hat = dy * cache.gamma
    dvar = -total(dx_hat * cache.centred) * cache.inv_std**3
    dmean = -total(dx_hat * cache.inv_std)
    return dx_hat * cache.inv_std + dvar * 2 * cache.centred / M + dmean / M


def running_inv_std(dy, cache):
    """Of the running variance after one batch: it began at 1 and weighs the new, unbiased one with 0.1."""
    M = dy.size / dy.shape[1]
    return 1 / np.sqrt(0.9 + 0.1 * cache.var * M / (M - 1) + cache.eps)


@batch_norm.wrong("dx", "bn-running-stats")
def backward_of_evaluation(dy, cache):
    """Uses evaluation's backward: the running variance, and no statistics of the batch."""
    return dy * cache.gamma * running_inv_std(dy, cache)


@batch_norm.wrong("dx", "bn-running-stats")
def running_variance_in_front(dy, cache):
    """Has all terms right, but scales them by the running variance."""
    x_hat = cache.x_hat
    return cache.gamma * running_inv_std(dy, cache) * (dy - mean(dy) - x_hat * mean(dy * x_hat))


@batch_norm.wrong("dx", "bn-batch-axis-only")
def means_over_the_batch_axis(dy, cache):
    """Takes both means over axis 0 only, as for a linear layer."""
    x_hat = cache.x_hat
    means = dy.mean(axis=0) + x_hat * (dy * x_hat).mean(axis=0)
    return cache.gamma * cache.inv_std * (dy - means)


@batch_norm.wrong("dx", "bn-batch-axis-only", also={"bn-sum-for-mean"})
def divided_by_n(dy, cache):
    """Sums over N, H and W and divides by N, not by N*H*W."""
    N, x_hat = len(dy), cache.x_hat
    return cache.gamma * cache.inv_std * (dy - total(dy) / N - x_hat * total(dy * x_hat) / N)


# ---- factors of dx --------------------------------------------------------------------------------------------------


@batch_norm.wrong("dx", "bn-missing-gamma")
def gamma_forgotten(dy, cache):
    """Starts from dy where dx_hat = dy gamma belongs."""
    x_hat = cache.x_hat
    return cache.inv_std * (dy - mean(dy) - x_hat * mean(dy * x_hat))


@batch_norm.wrong("dx", "bn-missing-inv-std")
def not_divided_by_std(dy, cache):
    """Stops at the gradient of the centred input and never divides by the standard deviation."""
    x_hat = cache.x_hat
    return cache.gamma * (dy - mean(dy) - x_hat * mean(dy * x_hat))


@batch_norm.wrong("dx", "bn-inv-std-squared")
def divided_by_the_variance(dy, cache):
    """Divides by the variance, not by its root."""
    x_hat = cache.x_hat
    return cache.gamma / (cache.var + cache.eps) * (dy - mean(dy) - x_hat * mean(dy * x_hat))


@batch_norm.wrong("dx", "bn-centred-for-xhat")
def centred_twice(dy, cache):
    """Keeps x - mean in the cache and takes it for x_hat."""
    centred = cache.centred
    return cache.gamma * cache.inv_std * (dy - mean(dy) - centred * mean(dy * centred))


@batch_norm.wrong("dx", "bn-centred-for-xhat")
def centred_once(dy, cache):
    """Takes x - mean for x_hat in front of the variance's term."""
    return cache.gamma * cache.inv_std * (dy - mean(dy) - cache.centred * mean(dy * cache.x_hat))


@batch_norm.wrong("dx", "sign")
def order_of_the_difference(dy, cache):
    """Writes the means first and subtracts dy from them."""
    x_hat = cache.x_hat
    return cache.gamma * cache.inv_std * (mean(dy) + x_hat * mean(dy * x_hat) - dy)


@batch_norm.wrong("dx", "scale-by-NHW")
def divided_once_more(dy, cache):
    """Takes the formula in sums, 1/M (M dy - ...), and divides by M twice."""
    M, x_hat = dy.size / dy.shape[1], cache.x_hat
    return cache.gamma * cache.inv_std / M**2 * (M * dy - total(dy) - x_hat * total(dy * x_hat))


# ---- dgamma, dbeta --------------------------------------------------------------------------------------------------


@batch_norm.wrong("dgamma", "bn-dgamma-uses-x")
def gamma_from_x(dy, cache):
    """Multiplies by x, not by x_hat."""
    return total(dy * cache.x).ravel()


@batch_norm.wrong("dgamma", "bn-dgamma-uses-y")
def gamma_from_y(dy, cache):
    """Multiplies by the output, not by x_hat."""
    return total(dy * cache.y).ravel()


@batch_norm.wrong("dgamma", "bn-centred-for-xhat")
def gamma_from_centred(dy, cache):
    """Multiplies by x - mean, not by x_hat."""
    return total(dy * cache.centred).ravel()


@batch_norm.wrong("dgamma dbeta", "bn-dgamma-dbeta-swapped")
def returned_in_the_wrong_order(dy, cache):
    """Returns dx, dbeta, dgamma."""
    return total(dy).ravel(), total(dy * cache.x_hat).ravel()


@batch_norm.wrong("dgamma", "scale-by-NHW")
def gamma_averaged(dy, cache):
    """Takes the mean of dy x_hat for its sum."""
    return mean(dy * cache.x_hat).ravel()


@batch_norm.wrong("dgamma", "missing-sum")
def gamma_of_a_linear_layer(dy, cache):
    """Sums over the batch only, so that dgamma is (C, H, W)."""
    return (dy * cache.x_hat).sum(axis=0)


@batch_norm.wrong("dgamma", "zero")
def gamma_not_trained(dy, cache):
    """Leaves dgamma as it was allocated."""
    return np.zeros(dy.shape[1])


@batch_norm.wrong("dgamma", "upstream-ignored")
def gamma_without_dy(dy, cache):
    """Sums x_hat squared, having mistaken dy for x_hat."""
    return total(cache.x_hat**2).ravel()


@batch_norm.wrong("dbeta", "scale-by-N")
def beta_averaged_over_the_batch(dy, cache):
    """Divides the sum by the batch size."""
    return total(dy).ravel() / len(dy)


@batch_norm.wrong("dbeta", "scale-by-HW")
def beta_averaged_over_the_pixels(dy, cache):
    """Averages each feature map before it sums over the batch."""
    return dy.reshape(*dy.shape[:2], -1).mean(axis=2).sum(axis=0)


@batch_norm.wrong("dbeta", "last-sample-only")
def beta_of_the_last_sample(dy, cache):
    """Types dbeta = for dbeta += in the loop over the batch."""
    for dy_n in dy:
        dbeta = dy_n.reshape(dy.shape[1], -1).sum(axis=1)
    return dbeta


@batch_norm.wrong("dbeta", "wrong-shape")
def beta_keeps_its_axes(dy, cache):
    """Leaves keepdims=True on, so that dbeta is (1, C, 1, 1)."""
    return total(dy)


# ---- the forward ----------------------------------------------------------------------------------------------------


@batch_norm.wrong_forward()
def unbiased_variance(x, gamma, beta, *, eps=1e-5):
    """Normalises with the unbiased variance, which is meant for the running statistics only."""
    _, cache = batch_norm_forward(x, gamma, beta, eps=eps)
    M = x.size / x.shape[1]
    inv_std = 1 / np.sqrt(cache.var * M / (M - 1) + eps)
    x_hat = cache.centred * inv_std
    y = cache.gamma * x_hat + spread(beta, x)
    return y, cache._replace(x_hat=x_hat, y=y, inv_std=inv_std)


def backward_of_scaling_only(dy, cache):
    dgamma, dbeta = batch_norm_backward(dy, cache)[1:]
    dx_hat = dy * cache.gamma
    return cache.inv_std * (dx_hat - cache.centred * cache.inv_std**2 * mean(dx_hat * cache.x)), dgamma, dbeta


@batch_norm.wrong_forward(backward=backward_of_scaling_only)
def mean_not_subtracted(x, gamma, beta, *, eps=1e-5):
    """Divides by the standard deviation but does not subtract the mean; the backward fits it."""
    _, cache = batch_norm_forward(x, gamma, beta, eps=eps)
    x_hat = x * cache.inv_std
    y = cache.gamma * x_hat + spread(beta, x)
    return y, cache._replace(x_hat=x_hat, y=y)


# ---- two at once ----------------------------------------------------------------------------------------------------


@batch_norm.wrong("dx", "bn-mean-constant", "bn-missing-gamma")
def no_mean_no_gamma(dy, cache):
    """Goes back through the variance only, and forgets gamma."""
    return cache.inv_std * (dy - cache.x_hat * mean(dy * cache.x_hat))


@batch_norm.wrong("dx", "bn-var-constant", "bn-missing-inv-std")
def no_variance_no_std(dy, cache):
    """Goes back through the mean only, and never divides by the standard deviation."""
    return cache.gamma * (dy - mean(dy))


@batch_norm.wrong("dx", "bn-var-sign", "bn-missing-gamma")
def plus_and_no_gamma(dy, cache):
    """Adds the variance's term, and forgets gamma."""
    return cache.inv_std * (dy - mean(dy) + cache.x_hat * mean(dy * cache.x_hat))


@batch_norm.wrong("dx", "bn-mean-constant", "bn-inv-std-squared")
def no_mean_and_the_variance(dy, cache):
    """Goes back through the variance only, and divides by the variance."""
    return cache.gamma * cache.inv_std**2 * (dy - cache.x_hat * mean(dy * cache.x_hat))


@batch_norm.wrong("dx", "bn-stats-constant", "bn-missing-gamma")
def only_the_scale(dy, cache):
    """Divides dy by the standard deviation: no statistics, no gamma."""
    return dy * cache.inv_std


@batch_norm.wrong("dx", "bn-sum-for-mean", "sign")
def sums_first(dy, cache):
    """Never divides by M, and subtracts dy from the sums."""
    x_hat = cache.x_hat
    return cache.gamma * cache.inv_std * (total(dy) + x_hat * total(dy * x_hat) - dy)


@batch_norm.wrong("dx", "bn-batch-axis-only", "bn-missing-inv-std")
def batch_axis_and_no_std(dy, cache):
    """Takes the means over axis 0 only, and never divides by the standard deviation."""
    x_hat = cache.x_hat
    return cache.gamma * (dy - dy.mean(axis=0) - x_hat * (dy * x_hat).mean(axis=0))


@batch_norm.wrong("dgamma", "bn-dgamma-uses-x", "scale-by-NHW")
def gamma_from_x_averaged(dy, cache):
    """Takes the mean, and multiplies by x."""
    return mean(dy * cache.x).ravel()


@batch_norm.wrong("dgamma", "bn-dgamma-uses-y", "last-sample-only")
def gamma_from_the_last_y(dy, cache):
    """Multiplies by the output, and types = for += in the loop over the batch."""
    for dy_n, y_n in zip(dy, cache.y, strict=True):
        dgamma = (dy_n * y_n).reshape(dy.shape[1], -1).sum(axis=1)
    return dgamma


@batch_norm.wrong("dx dgamma", "bn-stats-constant", "bn-dgamma-uses-x")
def statistics_forgotten_everywhere(dy, cache):
    """Forgets that the statistics depend on x, and multiplies dgamma by x."""
    return dy * cache.gamma * cache.inv_std, total(dy * cache.x).ravel()


@batch_norm.wrong("dx dbeta", "bn-missing-gamma", "scale-by-NHW")
def gamma_forgotten_beta_averaged(dy, cache):
    """Forgets gamma in dx, and takes the mean of dy for dbeta."""
    return gamma_forgotten(dy, cache), mean(dy).ravel()
