"""ReLUs gone wrong."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind


class Cache(NamedTuple):
    x: np.ndarray


def relu_forward(x):
    return np.maximum(x, 0), Cache(x)


def relu_backward(dy, cache):
    return dy * (cache.x > 0)


relu = Kind("relu", relu_forward, relu_backward)

WIDE = 3 * np.random.default_rng(0).standard_normal((2, 5, 3))  # values on both sides of 0.5 and of 1


@relu.wrong("dx", "relu-mask-from-upstream")
def mask_of_dy(dy, cache):
    """Applies ReLU to dy: the mask asks where dy is positive."""
    return np.maximum(dy, 0)


@relu.wrong("dx", "relu-mask-inverted")
def mask_inverted(dy, cache):
    """Lets through what the forward pass blocked."""
    return dy * (cache.x <= 0)


@relu.wrong("dx", "relu-mask-inverted")
def zeroed_the_wrong_half(dy, cache):
    """Copies dy and sets it to zero where x > 0."""
    dx = dy.copy()
    dx[cache.x > 0] = 0
    return dx


@relu.wrong("dx", "relu-no-mask")
def straight_through(dy, cache):
    """Returns dy."""
    return dy.copy()


@relu.wrong("dx", "relu-no-mask")
def mask_of_the_output(dy, cache):
    """Asks where the output is at least zero, which is everywhere."""
    y = np.maximum(cache.x, 0)
    return dy * (y >= 0)


@relu.wrong("dx", "relu-times-x")
def times_the_output(dy, cache):
    """Multiplies by the output, where the mask belongs."""
    return dy * np.maximum(cache.x, 0)


@relu.wrong("dx", "relu-threshold", inputs=(WIDE,))
def x_rounded(dy, cache):
    """Rounds x before asking whether it is positive, so that the threshold is 1/2."""
    return dy * (np.rint(cache.x) > 0)


@relu.wrong("dx", "relu-threshold", inputs=(WIDE,))
def x_as_integers(dy, cache):
    """Converts x to integers for the mask, so that the threshold is 1."""
    return dy * (cache.x.astype(int) > 0)


@relu.wrong("dx", "upstream-ignored")
def mask_only(dy, cache):
    """Returns the derivative of ReLU, not times dy."""
    return (cache.x > 0).astype(float)


@relu.wrong("dx", "zero")
def filled_a_copy(dy, cache):
    """Fills an array of zeros through a copy that fancy indexing made."""
    dx = np.zeros_like(cache.x)
    positive = dx[cache.x > 0]
    positive += dy[cache.x > 0]
    return dx


@relu.wrong("dx", "sign")
def subtracts(dy, cache):
    """Returns what is left of zero after subtracting."""
    dx = np.zeros_like(dy)
    dx -= dy * (cache.x > 0)
    return dx


@relu.wrong("dx", "scale-by-N")
def relu_averaged(dy, cache):
    """Divides by the batch size, as every other gradient seems to."""
    return dy * (cache.x > 0) / len(dy)


@relu.wrong("dx", "wrong-shape")
def positive_entries_only(dy, cache):
    """Returns dy[x > 0], the entries that pass, in one row."""
    return dy[cache.x > 0]


@relu.wrong("dx", "not-linear")
def clipped(dy, cache):
    """Clips dy to -1 ... 1 on the way."""
    return np.clip(dy, -1, 1) * (cache.x > 0)


@relu.wrong("dx", "last-sample-only")
def rest_left_at_zero(dy, cache):
    """Makes dx anew in each turn of the loop over the batch."""
    for n in range(len(dy)):
        dx = np.zeros_like(dy)
        dx[n] = dy[n] * (cache.x[n] > 0)
    return dx


def backward_of_the_absolute_value(dy, cache):
    return dy * np.sign(cache.x)


@relu.wrong_forward(backward=backward_of_the_absolute_value)
def absolute_value(x):
    """Takes the absolute value; the backward fits it."""
    return np.abs(x), Cache(x)


def backward_of_the_leaky(dy, cache):
    return dy * np.where(cache.x > 0, 1, 0.01)


@relu.wrong_forward(backward=backward_of_the_leaky)
def leaky(x):
    """Lets a hundredth of the negative values through; the backward fits it."""
    return np.where(x > 0, x, 0.01 * x), Cache(x)


@relu.wrong("dx", "relu-mask-inverted", "sign")
def inverted_and_subtracted(dy, cache):
    """Subtracts where x was negative."""
    return -dy * (cache.x < 0)


@relu.wrong("dx", "relu-times-x", "scale-by-N")
def times_the_output_averaged(dy, cache):
    """Multiplies by the output, and divides by the batch size."""
    return dy * np.maximum(cache.x, 0) / len(dy)


@relu.wrong("dx", "relu-threshold", "sign", inputs=(WIDE,))
def threshold_subtracted(dy, cache):
    """Has a threshold of 1/2, and subtracts."""
    return -dy * (cache.x > 0.5)


@relu.wrong("dx", "relu-mask-inverted", "upstream-ignored")
def inverted_mask_only(dy, cache):
    """Returns the mask of the blocked entries, not times dy."""
    return (cache.x <= 0).astype(float)
