"""Operations on two arrays, with NumPy's broadcasting; the matrix product too.

Shapes: a, b (broadcast against each other, or ValueError) -> y; dy (as y) -> da, db (as a, b).
Broadcasting repeats an array along an axis, so the gradient that comes back to it is the sum over the repeats:
``unbroadcast`` takes that sum, and each gradient leaves with the shape of its array.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minires.kernels.backend import Array, array_module
from minires.kernels.checks import check_matmul


class ShapesCache(NamedTuple):
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]


class OperandsCache(NamedTuple):
    a: Array
    b: Array


class PowerCache(NamedTuple):
    a: Array
    b: Array
    y: Array


class PowerScalarCache(NamedTuple):
    x: Array
    exponent: float


class MatmulCache(NamedTuple):
    a: Array
    b: Array


class WhereCache(NamedTuple):
    condition: Array
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum dy over the axes along which an array of this shape was repeated.

    Shapes: dy (any shape that ``shape`` broadcasts to) -> shape.
    Formula: the transpose of the copy that broadcasting makes.
    Source: numpy.broadcast_to, transposed.
    """
    if dy.shape == shape:
        return dy
    added = dy.ndim - len(shape)
    axes = list(range(added))
    for axis in range(len(shape)):
        if shape[axis] == 1 and dy.shape[added + axis] != 1:
            axes.append(added + axis)
    # Summed in float64: along a leading axis NumPy adds one by one, and a long float32 sum would lose digits.
    total = dy.sum(axis=tuple(axes), keepdims=True, dtype=wide(dy.dtype))
    return total.astype(dy.dtype).reshape(shape)


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype in which values are summed: float64, or int64 for integers and booleans.

    Source: torch.sum, whose float32 sums are as exact and whose integers sum to int64.
    """
    return np.dtype("float64") if dtype.kind == "f" else np.dtype("int64")


def add_forward(a: Array, b: Array) -> tuple[Array, ShapesCache]:
    """y = a + b, element by element. Source: torch.add."""
    y = a + b
    return y, ShapesCache(a.shape, b.shape)


def add_backward(dy: Array, cache: ShapesCache) -> tuple[Array, Array]:
    """da = dy, db = dy."""
    return unbroadcast(dy, cache.a_shape), unbroadcast(dy, cache.b_shape)


def subtract_forward(a: Array, b: Array) -> tuple[Array, ShapesCache]:
    """y = a - b, element by element. Source: torch.sub."""
    y = a - b
    return y, ShapesCache(a.shape, b.shape)


def subtract_backward(dy: Array, cache: ShapesCache) -> tuple[Array, Array]:
    """da = dy, db = -dy."""
    return unbroadcast(dy, cache.a_shape), unbroadcast(-dy, cache.b_shape)


def multiply_forward(a: Array, b: Array) -> tuple[Array, OperandsCache]:
    """y = a b, element by element. Source: torch.mul."""
    y = a * b
    return y, OperandsCache(a, b)


def multiply_backward(dy: Array, cache: OperandsCache) -> tuple[Array, Array]:
    """da = dy b, db = dy a. Source: the product rule."""
    da = dy * cache.b
    db = dy * cache.a
    return unbroadcast(da, cache.a.shape), unbroadcast(db, cache.b.shape)


def divide_forward(a: Array, b: Array) -> tuple[Array, OperandsCache]:
    """y = a / b, element by element; a division by zero gives inf or NaN. Source: torch.div."""
    y = a / b
    return y, OperandsCache(a, b)


def divide_backward(dy: Array, cache: OperandsCache) -> tuple[Array, Array]:
    """da = dy / b, db = -dy a / b^2. Source: the quotient rule."""
    da = dy / cache.b
    db = -dy * (cache.a / cache.b / cache.b)
    return unbroadcast(da, cache.a.shape), unbroadcast(db, cache.b.shape)


def power_forward(a: Array, b: Array) -> tuple[Array, PowerCache]:
    """y = a^b, element by element; a negative base with a broken exponent gives NaN. Source: torch.pow."""
    y = a**b
    return y, PowerCache(a, b, y)


def power_backward(dy: Array, cache: PowerCache) -> tuple[Array, Array]:
    """da = dy b a^(b-1), db = dy y log(a), with 0 where b = 0 and where a = 0 <= b.

    Source: d(a^b) = a^b (b da / a + log(a) db); torch.pow for the zeros.
    """
    xp = array_module(dy)
    a, b = cache.a, cache.b
    slope = b * a ** xp.where(b == 0, 1, b - 1)
    da = dy * xp.where(b == 0, 0, slope)
    flat = (a == 0) & (b >= 0)
    log_a = xp.log(xp.where(a > 0, a, 1))
    log_a = xp.where(a == 0, -xp.inf, log_a)
    log_a = xp.where(a >= 0, log_a, xp.nan)
    db = dy * xp.where(flat, 0, cache.y * log_a)
    return unbroadcast(da, a.shape), unbroadcast(db, b.shape)


def power_scalar_forward(x: Array, *, exponent: float) -> tuple[Array, PowerScalarCache]:
    """y = x^exponent, element by element; a negative base with a broken exponent gives NaN.

    Shapes: x, y (any); the exponent is a number.
    Errors: ValueError for integers to a negative power.
    Source: torch.pow.
    """
    if exponent < 0 and x.dtype.kind != "f":
        raise ValueError(f"power: integers to a negative power are no integers, got {x.dtype} ** {exponent}")
    y = (x**exponent).astype(x.dtype, copy=False)  # NumPy's boolean ** True is int8
    return y, PowerScalarCache(x, exponent)


def power_scalar_backward(dy: Array, cache: PowerScalarCache) -> Array:
    """dx = dy exponent x^(exponent - 1), and 0 for exponent 0. Source: torch.pow."""
    if cache.exponent == 0:
        return dy * 0
    return dy * (cache.exponent * cache.x ** (cache.exponent - 1))


def maximum_forward(a: Array, b: Array) -> tuple[Array, OperandsCache]:
    """y = max(a, b), element by element; NaN wins. Source: torch.maximum."""
    xp = array_module(a)
    y = xp.maximum(a, b)
    return y, OperandsCache(a, b)


def maximum_backward(dy: Array, cache: OperandsCache) -> tuple[Array, Array]:
    """da, db = dy to the larger one, half to each where they are equal. Source: torch.maximum."""
    xp = array_module(dy)
    tie = xp.where(cache.a == cache.b, 0.5 * dy, 0)
    da = xp.where(cache.a > cache.b, dy, tie)
    db = xp.where(cache.b > cache.a, dy, tie)
    return unbroadcast(da, cache.a.shape), unbroadcast(db, cache.b.shape)


def minimum_forward(a: Array, b: Array) -> tuple[Array, OperandsCache]:
    """y = min(a, b), element by element; NaN wins. Source: torch.minimum."""
    xp = array_module(a)
    y = xp.minimum(a, b)
    return y, OperandsCache(a, b)


def minimum_backward(dy: Array, cache: OperandsCache) -> tuple[Array, Array]:
    """da, db = dy to the smaller one, half to each where they are equal. Source: torch.minimum."""
    xp = array_module(dy)
    tie = xp.where(cache.a == cache.b, 0.5 * dy, 0)
    da = xp.where(cache.a < cache.b, dy, tie)
    db = xp.where(cache.b < cache.a, dy, tie)
    return unbroadcast(da, cache.a.shape), unbroadcast(db, cache.b.shape)


def where_forward(condition: Array, a: Array, b: Array) -> tuple[Array, WhereCache]:
    """y = a where the condition holds, b elsewhere. Source: torch.where.

    Shapes: condition (bool), a, b (all broadcast against each other) -> y.
    Errors: TypeError for a condition that is not boolean.
    """
    xp = array_module(a)
    if condition.dtype != bool:
        raise TypeError(f"where: condition must be boolean, got {condition.dtype}")
    y = xp.where(condition, a, b)
    return y, WhereCache(condition, a.shape, b.shape)


def where_backward(dy: Array, cache: WhereCache) -> tuple[None, Array, Array]:
    """da = dy where the condition holds, db = dy elsewhere; None for the condition."""
    xp = array_module(dy)
    da = xp.where(cache.condition, dy, 0)
    db = xp.where(cache.condition, 0, dy)
    return None, unbroadcast(da, cache.a_shape), unbroadcast(db, cache.b_shape)


def matmul_forward(a: Array, b: Array) -> tuple[Array, MatmulCache]:
    """y[.., i, j] = sum over k of a[.., i, k] b[.., k, j], NumPy's rules for batches and vectors. Source: torch.matmul.

    Shapes: a (..., n, k) or (k,), b (..., k, m) or (k,) -> y (..., n, m), without the axis that a vector lacks.
    Errors: ValueError where the inner sizes differ, for a scalar, or where the batches do not broadcast.
    """
    check_matmul(a, b)
    return a @ b, MatmulCache(a, b)


def matmul_backward(dy: Array, cache: MatmulCache) -> tuple[Array, Array]:
    """da = dy b.T, db = a.T dy, each summed over the batches along which its operand was repeated."""
    xp = array_module(dy)
    # A vector is a matrix with one row (left) or one column (right), whose axis the result lost: give it back.
    a = cache.a[None, :] if cache.a.ndim == 1 else cache.a  # (..., n, k)
    b = cache.b[:, None] if cache.b.ndim == 1 else cache.b  # (..., k, m)
    dy = dy[..., None] if cache.b.ndim == 1 else dy
    dy = dy[..., None, :] if cache.a.ndim == 1 else dy  # (..., n, m)
    da = xp.matmul(dy, b.swapaxes(-1, -2))  # (..., n, k)
    db = xp.matmul(a.swapaxes(-1, -2), dy)  # (..., k, m)
    return unbroadcast(da, a.shape).reshape(cache.a.shape), unbroadcast(db, b.shape).reshape(cache.b.shape)


__all__ = [
    "add_backward",
    "add_forward",
    "divide_backward",
    "divide_forward",
    "matmul_backward",
    "matmul_forward",
    "maximum_backward",
    "maximum_forward",
    "minimum_backward",
    "minimum_forward",
    "multiply_backward",
    "multiply_forward",
    "power_backward",
    "power_forward",
    "power_scalar_backward",
    "power_scalar_forward",
    "subtract_backward",
    "subtract_forward",
    "unbroadcast",
    "where_backward",
    "where_forward",
]
