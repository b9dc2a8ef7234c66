"""The matrix products: the linear layer, and matmul with batches."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.arithmetic import unbroadcast
from minires.kernels.backend import Array, array_module


class LinearCache(NamedTuple):
    x: Array
    w: Array
    has_bias: bool


class MatmulCache(NamedTuple):
    a: Array
    b: Array


def linear_forward(x: Array, w: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """A fully connected layer.

    Shapes: x (..., in), w (out, in), b (out,) or None -> y (..., out).
    Formula: y = x w.T + b.
    Errors: ValueError where x's last axis is not w's, or b does not fit; TypeError for mixed dtypes.
    Source: torch.nn.functional.linear.
    """
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: x (..., in) and w (out, in) must share in, got x {x.shape} and w {w.shape}")
    if w.size == 0:
        raise ValueError(f"linear: w is empty, shape {w.shape} (out, in)")
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"linear: b must have shape ({w.shape[0]},), got {b.shape}")
    if w.dtype != x.dtype or (b is not None and b.dtype != x.dtype):
        came = f"x {x.dtype}, w {w.dtype}" + ("" if b is None else f", b {b.dtype}")
        raise TypeError(f"linear: x, w and b must have one dtype, got {came}")
    y = x @ w.T
    if b is not None:
        y = y + b
    return y, LinearCache(x, w, b is not None)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array | None]:
    """Gradients of linear_forward.

    Shapes: dy (..., out) -> dx (..., in), dw (out, in), db (out,) or None.
    Formula: dx = dy w, dw = dy.T x, db = sum of dy, both over all leading axes.
    Errors: none of its own.
    Source: torch.nn.functional.linear.
    """
    out_features, in_features = cache.w.shape
    dx = dy @ cache.w  # (..., in)
    dy_matrix = dy.reshape(-1, out_features)  # (batch, out)
    dw = dy_matrix.T @ cache.x.reshape(-1, in_features)  # (out, in)
    db = unbroadcast(dy_matrix, (out_features,)) if cache.has_bias else None
    return dx, dw, db


def matmul_forward(a: Array, b: Array) -> tuple[Array, MatmulCache]:
    """The matrix product, with NumPy's rules for batches and for vectors.

    Shapes: a (..., n, k) or (k,), b (..., k, m) or (k,) -> y (..., n, m), without the axis that a vector lacks.
    Formula: y[.., i, j] = sum over k of a[.., i, k] b[.., k, j].
    Errors: ValueError where the inner sizes differ, for a scalar, or where the batches do not broadcast.
    Source: torch.matmul.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: both operands need at least one axis, got {a.shape} and {b.shape}; multiply with *")
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise ValueError(f"matmul: the last axis of {a.shape} and the last but one of {b.shape} differ")
    return a @ b, MatmulCache(a, b)


def matmul_backward(dy: Array, cache: MatmulCache) -> tuple[Array, Array]:
    """Gradients of matmul_forward.

    Shapes: dy (as y) -> da, db (as a, b).
    Formula: da = dy b.T, db = a.T dy, summed over the batches along which an operand was repeated.
    Errors: none of its own.
    Source: torch.matmul.
    """
    xp = array_module(dy)
    # A vector is a matrix with one row (left) or one column (right), whose axis the result lost: give it back.
    a = cache.a[None, :] if cache.a.ndim == 1 else cache.a  # (..., n, k)
    b = cache.b[:, None] if cache.b.ndim == 1 else cache.b  # (..., k, m)
    if cache.b.ndim == 1:
        dy = dy[..., None]
    if cache.a.ndim == 1:
        dy = dy[..., None, :]
    da = xp.matmul(dy, b.swapaxes(-1, -2))  # (..., n, k)
    db = xp.matmul(a.swapaxes(-1, -2), dy)  # (..., k, m)
    return unbroadcast(da, a.shape).reshape(cache.a.shape), unbroadcast(db, b.shape).reshape(cache.b.shape)
