"""Softmax, log-softmax and cross entropy. All subtract the largest logit first, so that no exponential overflows."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module, values_are_at_hand
from minires.kernels.shapes import FLOATS, check_axis


class SoftmaxCache(NamedTuple):
    y: Array
    axis: int


class LogSoftmaxCache(NamedTuple):
    y: Array
    axis: int


class CrossEntropyCache(NamedTuple):
    log_p: Array  # (N, C), log-softmax of the logits
    labels: Array  # (N,), 0 where ignored
    weight: Array  # (N,), each sample's share of the result: 0 where ignored
    label_smoothing: float
    reduction: str


def check_softmax(x: Array, axis: int, operation: str) -> None:
    """Refuse an axis that x lacks, or one without entries.

    Shapes: x (any).
    Formula: none.
    Errors: IndexError for an axis that x lacks; ValueError for an empty one.
    Source: torch.softmax.
    """
    if x.shape[check_axis(axis, x.ndim, operation)] == 0:
        raise ValueError(f"{operation}: x is empty along axis {axis}, shape {x.shape}")


def softmax_forward(x: Array, *, axis: int = -1) -> tuple[Array, SoftmaxCache]:
    """Probabilities from logits.

    Shapes: x, y (any, at least one axis).
    Formula: y = e^x / sum of e^x along the axis.
    Errors: IndexError for an axis that x lacks.
    Source: torch.softmax.
    """
    xp = array_module(x)
    check_softmax(x, axis, "softmax")
    shifted = x - x.max(axis=axis, keepdims=True)
    e = xp.exp(shifted)
    y = e / e.sum(axis=axis, keepdims=True)
    return y, SoftmaxCache(y, axis)


def softmax_backward(dy: Array, cache: SoftmaxCache) -> Array:
    """Gradient of softmax_forward.

    Shapes: dy, dx (as x).
    Formula: dx = y (dy - sum of dy y along the axis).
    Errors: none of its own.
    Source: dy_i/dx_j = y_i (delta_ij - y_j).
    """
    along = (dy * cache.y).sum(axis=cache.axis, keepdims=True)
    return cache.y * (dy - along)


def log_softmax_forward(x: Array, *, axis: int = -1) -> tuple[Array, LogSoftmaxCache]:
    """Logarithms of the probabilities that logits stand for.

    Shapes: x, y (any, at least one axis).
    Formula: y = x - log(sum of e^x along the axis).
    Errors: IndexError for an axis that x lacks.
    Source: torch.log_softmax.
    """
    xp = array_module(x)
    check_softmax(x, axis, "log_softmax")
    shifted = x - x.max(axis=axis, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y, LogSoftmaxCache(y, axis)


def log_softmax_backward(dy: Array, cache: LogSoftmaxCache) -> Array:
    """Gradient of log_softmax_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy - e^y (sum of dy along the axis).
    Errors: none of its own.
    Source: dy_i/dx_j = delta_ij - e^y_j.
    """
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
    """How surprised the logits are by the labels.

    Shapes: logits (N, C), labels (N,) integers -> a scalar (), or (N,) with reduction="none".
    Formula: loss[n] = -(1 - s) log_p[n, labels[n]] - s mean over c of log_p[n, c], s = label_smoothing;
        "mean" is over the samples whose label is not ignore_index, and NaN where there are none.
    Errors: TypeError for labels that are not integers; ValueError for shapes, a label out of range, an empty batch.
        On a GPU, where looking at a label would mean waiting, one out of range makes the loss NaN instead.
    Source: torch.nn.functional.cross_entropy; label smoothing: Szegedy et al. 2016.
    """
    xp = array_module(logits)
    check_cross_entropy(logits, labels, label_smoothing, ignore_index, reduction)
    label_smoothing = float(label_smoothing)
    N, C = logits.shape
    counted = labels != ignore_index  # (N,)
    wrong = counted & ((labels < 0) | (labels >= C))  # (N,): none, if the check above could look
    labels_or_0 = xp.where(counted & ~wrong, labels, 0)  # (N,)
    weight = xp.where(wrong, xp.nan, counted).astype(logits.dtype)  # (N,), 1 a sample that counts
    log_p, _ = log_softmax_forward(logits, axis=1)  # (N, C)
    chosen = log_p[xp.arange(N), labels_or_0]  # (N,)
    losses = -chosen  # (N,)
    if label_smoothing > 0:  # a masked logit's log_p is -inf, and 0 times that would be NaN
        losses = (1 - label_smoothing) * losses - label_smoothing / C * log_p.sum(axis=1)
    if reduction == "mean":
        total = weight.sum()
        weight = weight / xp.maximum(total, 1)
    losses = xp.where(counted, losses, 0) * weight  # (N,)
    if reduction == "none":
        y = losses
    elif reduction == "sum":
        y = losses.sum()
    else:
        y = xp.where(total > 0, losses.sum(), xp.nan).astype(logits.dtype)
    return y, CrossEntropyCache(log_p, labels_or_0, weight, label_smoothing, reduction)


def cross_entropy_backward(dy: Array, cache: CrossEntropyCache) -> tuple[Array, None]:
    """Gradient of cross_entropy_forward.

    Shapes: dy () or (N,) -> dlogits (N, C), None for the labels.
    Formula: dlogits[n] = dy weight[n] (softmax[n] - (1 - s) onehot[n] - s / C).
    Errors: none of its own.
    Source: torch.nn.functional.cross_entropy.
    """
    xp = array_module(dy)
    N, C = cache.log_p.shape
    dlogits = xp.exp(cache.log_p)  # (N, C), the softmax
    dlogits -= cache.label_smoothing / C
    dlogits[xp.arange(N), cache.labels] -= 1 - cache.label_smoothing
    dlogits *= (dy * cache.weight)[:, None]
    return dlogits, None


def check_cross_entropy(
    logits: Array, labels: Array, label_smoothing: float, ignore_index: int, reduction: str
) -> None:
    """Refuse logits and labels that do not belong together.

    Shapes: logits (N, C), labels (N,).
    Formula: none.
    Errors: TypeError or ValueError that names the argument, what was expected and what came.
    Source: torch.nn.functional.cross_entropy.
    """
    if logits.ndim != 2 or logits.dtype not in FLOATS:
        raise ValueError(f"cross_entropy: logits must be float32 or float64 (N, C), got {logits.dtype} {logits.shape}")
    N, C = logits.shape
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers (class numbers), got {labels.dtype}")
    if labels.shape != (N,):
        raise ValueError(f"cross_entropy: labels must have shape ({N},), one a row of logits, got {labels.shape}")
    if N == 0 or C == 0:
        raise ValueError(f"cross_entropy: the batch is empty, logits have shape {logits.shape}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie between 0 and 1, got {label_smoothing}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'cross_entropy: reduction must be "mean", "sum" or "none", got {reduction!r}')
    if not values_are_at_hand(array_module(labels)):
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= C))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"cross_entropy: labels must lie between 0 and {C - 1} (or be ignore_index={ignore_index}), "
            f"got {int(labels[row])} in row {row}"
        )
