"""Cross entropy and softmax gone wrong."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind


class CrossEntropyCache(NamedTuple):
    logits: np.ndarray  # (N, C)
    labels: np.ndarray  # (N,)
    p: np.ndarray  # (N, C), the softmax


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def onehot(cache):
    return (np.arange(cache.p.shape[1]) == cache.labels[:, None]).astype(float)


# ---- cross entropy --------------------------------------------------------------------------------------------------


def cross_entropy_forward(logits, labels):
    p = softmax(logits, 1)
    return -np.log(p[np.arange(len(p)), labels]).mean(), CrossEntropyCache(logits, labels, p)


def cross_entropy_backward(dy, cache):
    return dy * (cache.p - onehot(cache)) / len(cache.p), None


cross_entropy = Kind("cross_entropy", cross_entropy_forward, cross_entropy_backward)

#: More classes than samples, and labels that are sample numbers too: the wrong axis even runs.
WIDE = (np.random.default_rng(0).standard_normal((4, 6)), np.array([2, 0, 3, 2]))


@cross_entropy.wrong("dlogits", "scale-by-N")
def mean_forgotten(dy, cache):
    """Forgets that the loss is a mean."""
    return dy * (cache.p - onehot(cache))


@cross_entropy.wrong("dlogits", "scale-by-C")
def divided_by_all_logits(dy, cache):
    """Divides by logits.size, N*C, as np.mean of the gradient's entries would."""
    return dy * (cache.p - onehot(cache)) / cache.logits.size


@cross_entropy.wrong("dlogits", "ce-no-onehot")
def labels_forgotten(dy, cache):
    """Returns the probabilities over N and never subtracts the one-hot labels."""
    return dy * cache.p / len(cache.p)


@cross_entropy.wrong("dlogits", "ce-no-onehot")
def subtracted_from_a_copy(dy, cache):
    """Subtracts the one from a copy: p[rows][:, labels] -= 1 changes nothing."""
    p = cache.p.copy()
    p[np.arange(len(p))][:, cache.labels] -= 1
    return dy * p / len(p)


@cross_entropy.wrong("dlogits", "ce-wrong-axis", inputs=WIDE)
def onehot_on_the_wrong_axis(dy, cache):
    """Subtracts one at p[labels, n], not at p[n, labels]."""
    p = cache.p.copy()
    p[cache.labels, np.arange(len(p))] -= 1
    return dy * p / len(p)


@cross_entropy.wrong("dlogits", "ce-wrong-axis")
def softmax_over_the_batch(dy, cache):
    """Computes the softmax again for the backward, over axis 0."""
    return dy * (softmax(cache.logits, 0) - onehot(cache)) / len(cache.p)


@cross_entropy.wrong("dlogits", "sign")
def labels_minus_probabilities(dy, cache):
    """Subtracts the probabilities from the labels."""
    return dy * (onehot(cache) - cache.p) / len(cache.p)


@cross_entropy.wrong("dlogits", "upstream-ignored")
def loss_is_the_end(dy, cache):
    """Takes the loss for the end of the graph and ignores dy."""
    return (cache.p - onehot(cache)) / len(cache.p)


@cross_entropy.wrong("dlogits", "last-sample-only")
def rows_made_in_the_loop(dy, cache):
    """Makes dlogits anew in each turn of the loop over the batch."""
    for n in range(len(cache.p)):
        dlogits = np.zeros_like(cache.p)
        dlogits[n] = dy * (cache.p - onehot(cache))[n] / len(cache.p)
    return dlogits


@cross_entropy.wrong("dlogits", "unexplained")
def only_the_label_moves(dy, cache):
    """Takes the gradient for the labels' logits only, since only they stand in the formula."""
    return dy * (cache.p - 1) * onehot(cache) / len(cache.p)


@cross_entropy.wrong("dlogits", "factor-2")
def two_of_a_square(dy, cache):
    """Writes 2 (p - onehot), as for a squared error."""
    return dy * 2 * (cache.p - onehot(cache)) / len(cache.p)


@cross_entropy.wrong("dlogits", "wrong-shape")
def chosen_logits_only(dy, cache):
    """Returns one value a sample, that of its label."""
    rows = np.arange(len(cache.p))
    return dy * (cache.p[rows, cache.labels] - 1) / len(cache.p)


def backward_of_the_sum(dy, cache):
    return dy * (cache.p - onehot(cache)), None


@cross_entropy.wrong_forward(backward=backward_of_the_sum)
def loss_summed(logits, labels):
    """Sums over the batch, where the mean belongs; the backward fits it."""
    loss, cache = cross_entropy_forward(logits, labels)
    return loss * len(logits), cache


@cross_entropy.wrong_forward()
def logarithm_to_base_two(logits, labels):
    """Takes the logarithm to base 2, as for bits."""
    loss, cache = cross_entropy_forward(logits, labels)
    return loss / np.log(2), cache


@cross_entropy.wrong("dlogits", "scale-by-N", "sign")
def neither_mean_nor_order(dy, cache):
    """Subtracts the probabilities from the labels, and forgets the mean."""
    return dy * (onehot(cache) - cache.p)


@cross_entropy.wrong("dlogits", "ce-no-onehot", "scale-by-N")
def probabilities_only(dy, cache):
    """Returns the probabilities: no labels, no mean."""
    return dy * cache.p


@cross_entropy.wrong("dlogits", "ce-wrong-axis", "scale-by-N")
def softmax_over_the_batch_without_mean(dy, cache):
    """Takes the softmax over axis 0, and forgets the mean."""
    return dy * (softmax(cache.logits, 0) - onehot(cache))


@cross_entropy.wrong("dlogits", "upstream-ignored", "scale-by-N")
def end_of_the_graph_without_mean(dy, cache):
    """Ignores dy, and forgets the mean."""
    return cache.p - onehot(cache)


# ---- softmax --------------------------------------------------------------------------------------------------------


class SoftmaxCache(NamedTuple):
    y: np.ndarray
    axis: int


def softmax_forward(x, *, axis=-1):
    y = softmax(x, axis)
    return y, SoftmaxCache(y, axis)


def softmax_backward(dy, cache):
    y = cache.y
    return y * (dy - (dy * y).sum(axis=cache.axis, keepdims=True))


softmax_kind = Kind("softmax", softmax_forward, softmax_backward)

MATRIX = (np.random.default_rng(0).standard_normal((3, 5)),)


@softmax_kind.wrong("dx", "unexplained")
def diagonal_only(dy, cache):
    """Writes y (1 - y), the diagonal of the Jacobian, as for a sigmoid."""
    return dy * cache.y * (1 - cache.y)


@softmax_kind.wrong("dx", "ce-wrong-axis", inputs=MATRIX)
def sum_over_the_batch(dy, cache):
    """Sums dy y over axis 0, where it must be the classes' axis."""
    return cache.y * (dy - (dy * cache.y).sum(axis=0, keepdims=True))


@softmax_kind.wrong("dx", "sign")
def sum_minus_dy(dy, cache):
    """Swaps the two sides of the difference."""
    y = cache.y
    return y * ((dy * y).sum(axis=cache.axis, keepdims=True) - dy)


@softmax_kind.wrong("dx", "zero")
def upstream_of_ones(dy, cache):
    """Works the formula out for a dy of ones, y (1 - sum of y), and returns that zero."""
    return np.zeros_like(cache.y)


@softmax_kind.wrong("dx", "scale-by-N", inputs=MATRIX)
def softmax_averaged(dy, cache):
    """Divides by the batch size."""
    return softmax_backward(dy, cache) / len(dy)


@softmax_kind.wrong_forward()
def not_normalised(x, *, axis=-1):
    """Divides by the largest exponential, not by their sum."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e, SoftmaxCache(softmax(x, axis), axis)


@softmax_kind.wrong("dx", "ce-wrong-axis", "sign", inputs=MATRIX)
def sum_over_the_batch_minus_dy(dy, cache):
    """Sums over axis 0, and swaps the two sides of the difference."""
    return -sum_over_the_batch(dy, cache)
