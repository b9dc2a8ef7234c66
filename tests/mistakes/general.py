"""A student's own operations gone wrong: no kind says what they should be, so only the general codes fit."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind


def drawn(*shapes):
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def square_forward(x):
    return x**2, x


def square_backward(dy, x):
    return 2 * x * dy


square = Kind(None, square_forward, square_backward, drawn((3, 4)))


@square.wrong("dx", "factor-2", also={"scale-other"})
def two_forgotten(dy, x):
    """Writes x dy, without the 2 of the power."""
    return x * dy


@square.wrong("dx", "upstream-ignored")
def derivative_only(dy, x):
    """Returns 2 x, the derivative without dy."""
    return 2 * x


@square.wrong("dx", "upstream-ignored", "sign")
def negative_derivative_only(dy, x):
    """Returns -2 x: no dy, and the wrong sign."""
    return -2 * x


def sigmoid_forward(x):
    y = 1 / (1 + np.exp(-x))
    return y, y


def sigmoid_backward(dy, y):
    return dy * y * (1 - y)


sigmoid = Kind(None, sigmoid_forward, sigmoid_backward, drawn((3, 5)))


@sigmoid.wrong("dx", "sign")
def sigmoid_reversed(dy, y):
    """Writes y (y - 1)."""
    return dy * y * (y - 1)


def swish_forward(x):
    s = 1 / (1 + np.exp(-x))
    return x * s, (x, s)


def swish_backward(dy, cache):
    x, s = cache
    return dy * (s + x * s * (1 - s))


swish = Kind(None, swish_forward, swish_backward, drawn((5, 3)))


@swish.wrong("dx", "not-linear")
def upstream_for_x(dy, cache):
    """Types dy for x in the second term."""
    x, s = cache
    return dy * (s + dy * s * (1 - s))


def matmul_forward(a, b):
    return a @ b, (a, b)


def matmul_backward(dy, cache):
    a, b = cache
    return dy @ b.T, a.T @ dy


matmul = Kind(None, matmul_forward, matmul_backward, drawn((2, 3), (3, 5)))


@matmul.wrong("db", "transposed")
def factors_swapped(dy, cache):
    """Returns dy.T @ a."""
    return dy.T @ cache[0]


@matmul.wrong("db", "reshaped-not-transposed", "sign")
def factors_swapped_reshaped(dy, cache):
    """Reshapes -dy.T @ a until it fits."""
    return -(dy.T @ cache[0]).reshape(cache[1].shape)


def outer_forward(a, b):
    return a[:, None] * b, (a, b)


def outer_backward(dy, cache):
    a, b = cache
    return (dy * b).sum(axis=1), (dy * a[:, None]).sum(axis=0)


outer = Kind(None, outer_forward, outer_backward, drawn((3,), (5,)))


@outer.wrong("da", "missing-sum")
def outer_not_summed(dy, cache):
    """Multiplies by b and forgets to sum over the axis that b has and a has not."""
    return dy * cache[1]


def mean_forward(x):
    return x.mean(axis=-1), x.shape


def mean_backward(dy, shape):
    return np.repeat(dy[..., None], shape[-1], axis=-1) / shape[-1]


mean = Kind(None, mean_forward, mean_backward, drawn((2, 3, 5)))


@mean.wrong("dx", "scale-other")
def spread_not_divided(dy, shape):
    """Gives all of dy to every entry, as for a sum."""
    return np.repeat(dy[..., None], shape[-1], axis=-1)


def upsample_forward(x):
    return x.repeat(3, axis=1), None


def upsample_backward(dy, cache):
    return dy.reshape(len(dy), -1, 3).sum(axis=2)


upsample = Kind(None, upsample_forward, upsample_backward, drawn((3, 4)))


@upsample.wrong("dx", "first-pixel-only")
def every_third(dy, cache):
    """Takes the first of the three copies, where all three add up."""
    return dy[:, ::3].copy()


def cumulative_forward(x):
    return np.cumsum(x, axis=1), None


def cumulative_backward(dy, cache):
    return np.cumsum(dy[:, ::-1], axis=1)[:, ::-1]


cumulative = Kind(None, cumulative_forward, cumulative_backward, drawn((3, 5)))


@cumulative.wrong("dx", "flipped")
def not_turned_back(dy, cache):
    """Sums from the end, and forgets to turn the result back."""
    return np.cumsum(dy[:, ::-1], axis=1)


def roll_forward(x):
    return np.roll(x, 1, axis=1), None


def roll_backward(dy, cache):
    return np.roll(dy, -1, axis=1)


roll = Kind(None, roll_forward, roll_backward, drawn((3, 5)))


@roll.wrong("dx", "shifted")
def rolled_on(dy, cache):
    """Rolls the gradient on in the same direction, where it must come back."""
    return np.roll(dy, 1, axis=1)


class LayerNormCache(NamedTuple):
    x_hat: np.ndarray
    inv_std: np.ndarray
    gamma: np.ndarray


def layer_norm_forward(x, gamma, beta):
    inv_std = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    x_hat = (x - x.mean(axis=1, keepdims=True)) * inv_std
    return gamma * x_hat + beta, LayerNormCache(x_hat, inv_std, gamma)


def layer_norm_backward(dy, cache):
    x_hat, inv_std, gamma = cache
    dx_hat = dy * gamma
    along = (dx_hat * x_hat).mean(axis=1, keepdims=True)
    dx = inv_std * (dx_hat - dx_hat.mean(axis=1, keepdims=True) - x_hat * along)
    return dx, (dy * x_hat).sum(axis=0), dy.sum(axis=0)


layer_norm = Kind(None, layer_norm_forward, layer_norm_backward, drawn((3, 5), (5,), (5,)))


@layer_norm.wrong("dgamma", "last-sample-only")
def gamma_overwritten(dy, cache):
    """Types dgamma = for dgamma += in the loop over the batch."""
    for n in range(len(dy)):
        dgamma = dy[n] * cache.x_hat[n]
    return dgamma


@layer_norm.wrong("dgamma dbeta", "zero", "missing-sum")
def gamma_forgotten_beta_not_summed(dy, cache):
    """Leaves dgamma at zero, and returns dy for dbeta."""
    return np.zeros_like(cache.gamma), dy.copy()
