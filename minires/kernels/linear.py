"""The matrix products: the linear layer, and matmul with batches."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.arithmetic import unbroadcast
from minires.kernels.backend import Array, array_module
from minires.kernels.checks import check_linear, check_matmul


class LinearCache(NamedTuple):
    x: Array
    w: Array
    has_bias: bool


class MatmulCache(NamedTuple):
    a: Array
    b: Array


def linear_forward(x: Array, w: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """A fully connected layer: y = x w.T + b. Source: torch.nn.functional.linear.

    Shapes: x (..., in), w (out, in), b (out,) or None -> y (..., out).
    Errors: ValueError where x's last axis is not w's, or b does not fit; TypeError for mixed dtypes.
    """
    check_linear(x, w, b)
    y = x @ w.T  # (..., out)
    if b is not None:
        y = y + b
    return y, LinearCache(x, w, b is not None)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array | None]:
    """dx = dy w, dw = dy.T x, db = sum of dy, the last two over all leading axes; db is None without b.

    Shapes: dy (..., out) -> dx (..., in), dw (out, in), db (out,) or None.
    """
    out_features, in_features = cache.w.shape
    dx = dy @ cache.w  # (..., in)
    dy_matrix = dy.reshape(-1, out_features)  # (batch, out)
    dw = dy_matrix.T @ cache.x.reshape(-1, in_features)  # (out, in)
    db = unbroadcast(dy_matrix, (out_features,)) if cache.has_bias else None
    return dx, dw, db


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


__all__ = ["linear_backward", "linear_forward", "matmul_backward", "matmul_forward"]
