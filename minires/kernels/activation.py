"""Sigmoid, tanh and softmax: x, y, dy and dx have any shape, the same one. ReLU is in residual.py."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.checks import check_softmax


class SigmoidCache(NamedTuple):
    y: Array


class TanhCache(NamedTuple):
    y: Array


class SoftmaxCache(NamedTuple):
    y: Array
    axis: int


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """y = 1 / (1 + e^-x), element by element: the logistic function. Source: torch.sigmoid."""
    xp = array_module(x)
    e = xp.exp(-abs(x))  # between 0 and 1, whatever x is: nothing overflows
    y = xp.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return y, SigmoidCache(y)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """dx = dy y (1 - y). Source: torch.sigmoid."""
    return dy * cache.y * (1 - cache.y)


def tanh_forward(x: Array) -> tuple[Array, TanhCache]:
    """y = tanh(x), element by element: the hyperbolic tangent. Source: torch.tanh."""
    xp = array_module(x)
    y = xp.tanh(x)
    return y, TanhCache(y)


def tanh_backward(dy: Array, cache: TanhCache) -> Array:
    """dx = dy (1 - y^2). Source: torch.tanh."""
    return dy * (1 - cache.y * cache.y)


def softmax_forward(x: Array, *, axis: int = -1) -> tuple[Array, SoftmaxCache]:
    """Probabilities from logits: y = e^x / sum of e^x along the axis. Source: torch.softmax.

    Shapes: x, y (any, at least one axis).
    Errors: IndexError for an axis that x lacks; ValueError for one without entries.
    """
    xp = array_module(x)
    check_softmax(x, axis, "softmax")
    shifted = x - x.max(axis=axis, keepdims=True)
    e = xp.exp(shifted)
    y = e / e.sum(axis=axis, keepdims=True)
    return y, SoftmaxCache(y, axis)


def softmax_backward(dy: Array, cache: SoftmaxCache) -> Array:
    """dx = y (dy - sum of dy y along the axis). Source: dy_i/dx_j = y_i (delta_ij - y_j)."""
    along = (dy * cache.y).sum(axis=cache.axis, keepdims=True)
    return cache.y * (dy - along)


__all__ = ["softmax_backward", "softmax_forward"]
__all__ += ["sigmoid_backward", "sigmoid_forward", "tanh_backward", "tanh_forward"]
