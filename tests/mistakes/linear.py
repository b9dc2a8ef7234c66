"""Linear layers gone wrong."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind


class Cache(NamedTuple):
    x: np.ndarray  # (N, D)
    w: np.ndarray  # (O, D)


def linear_forward(x, w, b):
    return x @ w.T + b, Cache(x, w)


def linear_backward(dy, cache):
    return dy @ cache.w, dy.T @ cache.x, dy.sum(axis=0)


linear = Kind("linear", linear_forward, linear_backward)


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape) for shape in shapes)


SQUARE = drawn((3, 4), (4, 4), (4,))

THREE_SAMPLES = drawn((3, 4), (5, 4), (5,))  # of two, flipped and shifted are the same


@linear.wrong("dx", "transposed", inputs=SQUARE, also={"kernel-transposed"})
def as_in_the_forward(dy, cache):
    """Multiplies by w.T as the forward does: with a square w it even runs."""
    return dy @ cache.w.T


@linear.wrong("dx", "sign")
def descends_already(dy, cache):
    """Returns the negative gradient, the direction of descent."""
    return -dy @ cache.w


@linear.wrong("dx", "zero")
def product_thrown_away(dy, cache):
    """Allocates dx and lets np.dot make another array."""
    dx = np.zeros_like(cache.x)
    np.dot(dy, cache.w)
    return dx


@linear.wrong("dx", "upstream-ignored")
def weights_only(dy, cache):
    """Adds up the weights of each input, as if dy were ones."""
    return np.ones_like(dy) @ cache.w


@linear.wrong("dx", "last-sample-only")
def rows_lost(dy, cache):
    """Makes dx anew in each turn of the loop over the batch."""
    for n in range(len(dy)):
        dx = np.zeros_like(cache.x)
        dx[n] = dy[n] @ cache.w
    return dx


@linear.wrong("dx", "flipped", inputs=THREE_SAMPLES)
def rows_prepended(dy, cache):
    """Inserts each sample's row at the front of a list."""
    rows = []
    for dy_n in dy:
        rows.insert(0, dy_n @ cache.w)
    return np.stack(rows)


@linear.wrong("dx", "shifted", inputs=THREE_SAMPLES)
def one_row_early(dy, cache):
    """Counts samples from one and writes row n - 1."""
    dx = np.zeros_like(cache.x)
    for n in range(len(dy)):
        dx[n - 1] = dy[n] @ cache.w
    return dx


@linear.wrong("dw", "transposed")
def weights_as_in_a_textbook(dy, cache):
    """Returns x.T @ dy, which fits a w of shape (in, out)."""
    return cache.x.T @ dy


@linear.wrong("dw", "reshaped-not-transposed")
def reshaped_until_it_fits(dy, cache):
    """Repairs the shape of x.T @ dy with a reshape."""
    return (cache.x.T @ dy).reshape(cache.w.shape)


@linear.wrong("dw", "scale-by-N")
def weights_averaged(dy, cache):
    """Divides by the batch size, though the loss did that already."""
    return dy.T @ cache.x / len(cache.x)


@linear.wrong("dw", "factor-2")
def half_of_the_square_forgotten(dy, cache):
    """Keeps the 2 that a squared error had."""
    return 2 * dy.T @ cache.x


@linear.wrong("dw", "scale-other")
def learning_rate_inside(dy, cache):
    """Multiplies by the learning rate in the backward pass."""
    return 0.01 * dy.T @ cache.x


@linear.wrong("dw", "last-sample-only")
def weights_overwritten(dy, cache):
    """Types dw = for dw += in the loop over the batch."""
    for n in range(len(dy)):
        dw = np.outer(dy[n], cache.x[n])
    return dw


@linear.wrong("dw", "not-linear")
def weights_clipped(dy, cache):
    """Scales dw down to a norm of one, where it is larger."""
    dw = dy.T @ cache.x
    return dw / max(1, np.linalg.norm(dw))


@linear.wrong("dw", "missing-sum")
def weights_of_each_sample(dy, cache):
    """Keeps one dw for each sample, (N, O, D)."""
    return dy[:, :, None] * cache.x[:, None, :]


@linear.wrong("db", "scale-by-N")
def bias_mean(dy, cache):
    """Takes the mean over the batch."""
    return dy.mean(axis=0)


@linear.wrong("db", "missing-sum")
def bias_of_each_sample(dy, cache):
    """Returns dy, since the derivative of y by b is one."""
    return dy.copy()


@linear.wrong("db", "wrong-shape")
def bias_summed_over_outputs(dy, cache):
    """Sums over the outputs, so that db has one value a sample."""
    return dy.sum(axis=1)


@linear.wrong("db", "last-sample-only")
def bias_of_the_last_row(dy, cache):
    """Takes the last row of dy."""
    return dy[-1].copy()


@linear.wrong("db", "upstream-ignored")
def bias_of_ones(dy, cache):
    """Returns ones, the derivative without dy."""
    return np.ones(dy.shape[1])


@linear.wrong_forward()
def bias_left_out(x, w, b):
    """Does not add the bias."""
    return x @ w.T, Cache(x, w)


@linear.wrong_forward()
def bias_subtracted(x, w, b):
    """Subtracts the bias, as a threshold."""
    return x @ w.T - b, Cache(x, w)


@linear.wrong("dw", "transposed", "scale-by-N")
def textbook_and_averaged(dy, cache):
    """Returns x.T @ dy, divided by the batch size."""
    return cache.x.T @ dy / len(dy)


@linear.wrong("dw", "sign", "last-sample-only")
def weights_overwritten_negative(dy, cache):
    """Types dw = - for dw += in the loop over the batch."""
    for n in range(len(dy)):
        dw = -np.outer(dy[n], cache.x[n])
    return dw


@linear.wrong("dw", "reshaped-not-transposed", "scale-by-N")
def reshaped_and_averaged(dy, cache):
    """Repairs the shape of x.T @ dy with a reshape, and divides by the batch size."""
    return (cache.x.T @ dy).reshape(cache.w.shape) / len(dy)


@linear.wrong("dw db", "transposed", "scale-by-N")
def textbook_and_bias_mean(dy, cache):
    """Returns x.T @ dy for dw, and the mean of dy for db."""
    return cache.x.T @ dy, dy.mean(axis=0)


@linear.wrong("dx dw", "flipped", "scale-by-N", inputs=THREE_SAMPLES)
def rows_prepended_and_averaged(dy, cache):
    """Inserts the rows of dx at the front, and divides dw by the batch size."""
    return rows_prepended(dy, cache), dy.T @ cache.x / len(dy)
