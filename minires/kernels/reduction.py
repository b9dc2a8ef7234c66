"""Sums, means, variances and extremes along axes."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.arithmetic import wide
from minires.kernels.backend import Array, array_module
from minires.kernels.checks import check_floating, check_not_empty


class SumCache(NamedTuple):
    x_shape: tuple[int, ...]
    kept_shape: tuple[int, ...]  # as x, with 1 on the axes that were summed


class VarCache(NamedTuple):
    centred: Array
    kept_shape: tuple[int, ...]
    divisor: float


class ExtremeCache(NamedTuple):
    x: Array
    y: Array  # with the axes kept


class SelectCache(NamedTuple):
    index: Array  # with the axis kept
    x_shape: tuple[int, ...]
    axis: int


def kept_shape(shape: tuple[int, ...], axis: int | tuple[int, ...] | None, operation: str) -> tuple[int, ...]:
    """The shape with 1 on each reduced axis, as keepdims=True gives it; axis None reduces all.

    Errors: ValueError for an axis that is not there or named twice.
    """
    if axis is None:
        return (1,) * len(shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    kept = list(shape)
    seen = []
    for one in axes:
        if not -len(shape) <= one < len(shape):
            raise ValueError(f"{operation}: axis {one} is not there, the shape is {shape}")
        if one % len(shape) in seen:
            raise ValueError(f"{operation}: axis {one} is named twice in {axes}")
        seen.append(one % len(shape))
        kept[one] = 1
    return tuple(kept)


def values_in_a_sum(shape: tuple[int, ...], kept: tuple[int, ...]) -> int:
    """How many values are reduced to one; kept is as kept_shape gives it."""
    count = 1
    for axis in range(len(shape)):
        if kept[axis] == 1:
            count *= shape[axis]
    return count


def sum_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, SumCache]:
    """The sum along axes; integers and booleans sum to int64. Source: torch.sum.

    Shapes: x -> y without the summed axes, or with 1 there (keepdims).
    Errors: ValueError for an axis that is not there.
    """
    kept = kept_shape(x.shape, axis, "sum")
    y = x.sum(axis=axis, keepdims=keepdims, dtype=wide(x.dtype))
    if x.dtype.kind == "f":
        y = y.astype(x.dtype)  # summed in float64: see unbroadcast
    return y, SumCache(x.shape, kept)


def sum_backward(dy: Array, cache: SumCache) -> Array:
    """dx = dy, the same for every summand. Source: a sum's transpose is a broadcast."""
    xp = array_module(dy)
    dx = xp.empty(cache.x_shape, dy.dtype)
    dx[...] = dy.reshape(cache.kept_shape)
    return dx


def mean_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, SumCache]:
    """The mean along axes: y = sum of x / count. Source: torch.mean.

    Shapes: x -> y without the averaged axes, or with 1 there (keepdims).
    Errors: ValueError for an axis that is not there; TypeError for integers.
    """
    kept = kept_shape(x.shape, axis, "mean")
    check_floating(x, "mean")
    y = x.mean(axis=axis, keepdims=keepdims, dtype=wide(x.dtype)).astype(x.dtype)  # see unbroadcast
    return y, SumCache(x.shape, kept)


def mean_backward(dy: Array, cache: SumCache) -> Array:
    """dx = dy / count, the same for every value."""
    xp = array_module(dy)
    count = values_in_a_sum(cache.x_shape, cache.kept_shape)
    return xp.broadcast_to(dy.reshape(cache.kept_shape) / count, cache.x_shape)


def var_forward(x: Array, *, axis=None, keepdims: bool = False, correction: int = 1) -> tuple[Array, VarCache]:
    """The variance along axes. Source: torch.var.

    Shapes: x -> y without those axes, or with 1 there (keepdims).
    Formula: y = sum of (x - mean)^2 / (count - correction): correction 1 is unbiased, 0 is batch norm's.
    Errors: ValueError for an axis that is not there or too few values; TypeError for integers.
    """
    kept = kept_shape(x.shape, axis, "var")
    check_floating(x, "var")
    count = values_in_a_sum(x.shape, kept)
    if count <= correction:
        raise ValueError(f"var: needs more than {correction} values for correction={correction}, got {count}")
    centred = x - x.mean(axis=axis, keepdims=True, dtype=wide(x.dtype)).astype(x.dtype)
    squares = (centred * centred).sum(axis=axis, keepdims=keepdims, dtype=wide(x.dtype))
    y = (squares / (count - correction)).astype(x.dtype)
    return y, VarCache(centred, kept, count - correction)


def var_backward(dy: Array, cache: VarCache) -> Array:
    """dx = dy 2 (x - mean) / (count - correction): the way through the mean cancels."""
    return dy.reshape(cache.kept_shape) * cache.centred * (2 / cache.divisor)


def amax_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, ExtremeCache]:
    """The largest value along axes; NaN wins. Source: torch.amax.

    Shapes: x -> y without those axes, or with 1 there (keepdims).
    Errors: ValueError for an axis that is not there or empty.
    """
    kept = kept_shape(x.shape, axis, "max")
    check_not_empty(x.shape, kept, "max")
    y = x.max(axis=axis, keepdims=keepdims)
    return y, ExtremeCache(x, y.reshape(kept))


def amax_backward(dy: Array, cache: ExtremeCache) -> Array:
    """dx = dy where x is the extreme, largest or smallest, shared equally among those that tie. Source: torch.amax."""
    axes = []
    for i in range(cache.x.ndim):
        if cache.y.shape[i] == 1:
            axes.append(i)
    mask = (cache.x == cache.y).astype(dy.dtype)
    mask /= mask.sum(axis=tuple(axes), keepdims=True)
    return mask * dy.reshape(cache.y.shape)


def amin_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, ExtremeCache]:
    """The smallest value along axes; NaN wins. Source: torch.amin.

    Shapes: x -> y without those axes, or with 1 there (keepdims).
    Errors: ValueError for an axis that is not there or empty.
    """
    kept = kept_shape(x.shape, axis, "min")
    check_not_empty(x.shape, kept, "min")
    y = x.min(axis=axis, keepdims=keepdims)
    return y, ExtremeCache(x, y.reshape(kept))


def amin_backward(dy: Array, cache: ExtremeCache) -> Array:
    """dx = dy where x is the smallest, shared equally among those that tie. Source: torch.amin."""
    return amax_backward(dy, cache)


def select_forward(x: Array, *, index: Array, axis: int) -> tuple[Array, SelectCache]:
    """One entry of each line along an axis: what max(dim) and min(dim) return beside their indices.

    Shapes: x, index (as x with 1 on the axis) -> y (as x without the axis).
    Source: torch.gather.
    """
    xp = array_module(x)
    y = xp.take_along_axis(x, index, axis).squeeze(axis)
    return y, SelectCache(index, x.shape, axis)


def select_backward(dy: Array, cache: SelectCache) -> Array:
    """dx = dy at the index, 0 elsewhere."""
    xp = array_module(dy)
    dx = xp.zeros(cache.x_shape, dy.dtype)
    xp.put_along_axis(dx, cache.index, dy.reshape(cache.index.shape), cache.axis)
    return dx


__all__ = [
    "amax_backward",
    "amax_forward",
    "amin_backward",
    "amin_forward",
    "mean_backward",
    "mean_forward",
    "select_backward",
    "select_forward",
    "sum_backward",
    "sum_forward",
    "var_backward",
    "var_forward",
]
