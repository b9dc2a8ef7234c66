"""The linear layer: a matrix product. (matmul, with batches, is in arithmetic.py.)"""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.arithmetic import unbroadcast
from minires.kernels.backend import Array
from minires.kernels.checks import check_linear


class LinearCache(NamedTuple):
    x: Array
    w: Array
    has_bias: bool


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


__all__ = ["linear_backward", "linear_forward"]
