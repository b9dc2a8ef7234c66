"""Log-softmax and cross entropy. The largest logit is subtracted first, so that no exponential overflows."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.checks import check_cross_entropy, check_softmax


class LogSoftmaxCache(NamedTuple):
    y: Array
    axis: int


class CrossEntropyCache(NamedTuple):
    log_p: Array  # (N, C), log-softmax of the logits
    labels: Array  # (N,), 0 where ignored
    weight: Array  # (N,), each sample's share of the result: 0 where ignored
    label_smoothing: float
    reduction: str


def log_softmax_forward(x: Array, *, axis: int = -1) -> tuple[Array, LogSoftmaxCache]:
    """Logarithms of the probabilities: y = x - log(sum of e^x along the axis). Source: torch.log_softmax.

    Shapes: x, y (any, at least one axis).
    Errors: IndexError for an axis that x lacks; ValueError for one without entries.
    """
    xp = array_module(x)
    check_softmax(x, axis, "log_softmax")
    shifted = x - x.max(axis=axis, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y, LogSoftmaxCache(y, axis)


def log_softmax_backward(dy: Array, cache: LogSoftmaxCache) -> Array:
    """dx = dy - e^y (sum of dy along the axis). Source: dy_i/dx_j = delta_ij - e^y_j."""
    xp = array_module(dy)
    return dy - xp.exp(cache.y) * dy.sum(axis=cache.axis, keepdims=True)


def cross_entropy_forward(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Array, CrossEntropyCache]:
    """Minus the log-probability that the logits give to the labels.

    Shapes: logits (N, C), labels (N,) integers -> a scalar (), or (N,) with reduction="none".
    Formula: loss[n] = -(1 - s) log_p[n, labels[n]] - s mean over c of log_p[n, c], s = label_smoothing;
        "mean" is over the samples whose label is not ignore_index, and NaN where there are none.
    Errors: TypeError for labels that are not integers; ValueError for shapes, a label out of range, an empty batch.
        On a GPU, where looking at a label would mean waiting, one out of range makes the loss NaN instead.
    Source: torch.nn.functional.cross_entropy; label smoothing: Szegedy et al. 2016.
    """
    xp = array_module(logits)
    check_cross_entropy(logits, labels, label_smoothing, ignore_index, reduction)
    N, C = logits.shape
    s = float(label_smoothing)
    counted = labels != ignore_index  # (N,)
    in_range = (labels >= 0) & (labels < C)  # (N,): what counts is, where the check above could look
    labels_or_0 = xp.where(counted & in_range, labels, 0)  # (N,)
    log_p, _ = log_softmax_forward(logits, axis=1)  # (N, C)
    losses = -log_p[xp.arange(N), labels_or_0]  # (N,)
    if s > 0:  # a masked logit's log_p is -inf, and 0 times that would be NaN
        losses = (1 - s) * losses - s / C * log_p.sum(axis=1)
    # Each sample's share of the result: 1 if it counts, and of a mean 1 / how many count.
    weight = xp.where(counted & ~in_range, xp.nan, counted).astype(logits.dtype)  # (N,)
    if reduction == "mean":
        weight = weight / xp.maximum(weight.sum(), 1)
    weighted = xp.where(counted, losses, 0) * weight  # (N,)
    y = weighted if reduction == "none" else weighted.sum()  # (N,) or ()
    if reduction == "mean":
        y = xp.where(counted.any(), y, xp.nan).astype(logits.dtype)
    return y, CrossEntropyCache(log_p, labels_or_0, weight, s, reduction)


def cross_entropy_backward(dy: Array, cache: CrossEntropyCache) -> tuple[Array, None]:
    """dlogits[n] = dy weight[n] (softmax[n] - (1 - s) onehot[n] - s / C): what is predicted less what is wanted.

    One kernel with the softmax: d log_p[c] / d logits[k] = (c == k) - p[k], so that the sum over the targets, which are
    (1 - s) onehot + s / C and sum to 1, gives p - target, and nothing is divided by a p that is nearly 0.

    Shapes: dy () or (N,) -> dlogits (N, C), None for the labels.
    """
    xp = array_module(dy)
    N, C = cache.log_p.shape
    dlogits = xp.exp(cache.log_p)  # (N, C), the softmax
    dlogits -= cache.label_smoothing / C
    dlogits[xp.arange(N), cache.labels] -= 1 - cache.label_smoothing
    dlogits *= (dy * cache.weight)[:, None]
    return dlogits, None


__all__ = ["cross_entropy_backward", "cross_entropy_forward", "log_softmax_backward", "log_softmax_forward"]
