"""ReLU, sigmoid and tanh, element by element: x, y, dy and dx have any shape, the same one."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module


class ReLUCache(NamedTuple):
    y: Array  # the output: it is positive exactly where x is, and the next layer keeps it anyway


class SigmoidCache(NamedTuple):
    y: Array


class TanhCache(NamedTuple):
    y: Array


def relu_forward(x: Array, *, inplace: bool = False) -> tuple[Array, ReLUCache]:
    """y = max(x, 0), element by element: the rectified linear unit. NaN stays NaN; with inplace, y takes x's memory.

    Source: Nair & Hinton 2010; torch.nn.functional.relu.
    """
    xp = array_module(x)
    y = xp.maximum(x, 0, out=x if inplace else xp.empty_like(x))  # empty_like: in x's memory order, on CuPy too
    return y, ReLUCache(y)


def relu_backward(dy: Array, cache: ReLUCache) -> Array:
    """dx = dy where x > 0: 0 at 0, and NaN for an infinite dy where x <= 0. Source: torch.nn.functional.relu."""
    return dy * (cache.y > 0)


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


__all__ = ["relu_backward", "relu_forward", "sigmoid_backward", "sigmoid_forward", "tanh_backward", "tanh_forward"]
