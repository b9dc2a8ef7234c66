"""ReLU, sigmoid and tanh."""

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
    """Rectified linear unit.

    Shapes: x, y (any). With inplace, y takes x's memory.
    Formula: y = max(x, 0).
    Errors: none of its own; NaN stays NaN.
    Source: Nair & Hinton 2010; torch.nn.functional.relu.
    """
    xp = array_module(x)
    y = xp.maximum(x, 0, out=x if inplace else xp.empty_like(x))  # empty_like: in x's memory order, on CuPy too
    return y, ReLUCache(y)


def relu_backward(dy: Array, cache: ReLUCache) -> Array:
    """Gradient of relu_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy (x > 0): 0 at 0. An infinite dy where x <= 0 gives NaN, the product of 0 and infinity.
    Errors: none of its own.
    Source: torch.nn.functional.relu.
    """
    return dy * (cache.y > 0)


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """Logistic function.

    Shapes: x, y (any).
    Formula: y = 1 / (1 + e^-x), with e^-|x| for both signs so that nothing overflows.
    Errors: none of its own.
    Source: torch.sigmoid.
    """
    xp = array_module(x)
    e = xp.exp(-abs(x))  # between 0 and 1, whatever x is
    y = xp.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return y, SigmoidCache(y)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """Gradient of sigmoid_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy y (1 - y).
    Errors: none of its own.
    Source: torch.sigmoid.
    """
    return dy * cache.y * (1 - cache.y)


def tanh_forward(x: Array) -> tuple[Array, TanhCache]:
    """Hyperbolic tangent.

    Shapes: x, y (any).
    Formula: y = tanh(x).
    Errors: none of its own.
    Source: torch.tanh.
    """
    xp = array_module(x)
    y = xp.tanh(x)
    return y, TanhCache(y)


def tanh_backward(dy: Array, cache: TanhCache) -> Array:
    """Gradient of tanh_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy (1 - y^2).
    Errors: none of its own.
    Source: torch.tanh.
    """
    return dy * (1 - cache.y * cache.y)
