"""Sums, means, variances and extremes along axes."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.arithmetic import wide
from minires.kernels.backend import Array, array_module


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
    """The shape with 1 on each reduced axis; axis None reduces all.

    Shapes: any.
    Formula: none.
    Errors: ValueError for an axis that is not there or named twice.
    Source: keepdims=True.
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


def check_not_empty(shape: tuple[int, ...], kept: tuple[int, ...], operation: str) -> None:
    """Refuse a reduction over no values, which has no extreme.

    Shapes: shape of x, kept as kept_shape gives it.
    Formula: none.
    Errors: ValueError for an empty axis.
    Source: torch.amax.
    """
    for axis in range(len(shape)):
        if shape[axis] == 0 and kept[axis] == 1:
            raise ValueError(f"{operation}: nothing to look at along axis {axis}, the shape is {shape}")


def sum_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, SumCache]:
    """The sum along axes.

    Shapes: x -> y without the summed axes, or with 1 there (keepdims).
    Formula: y = sum of x.
    Errors: ValueError for an axis that is not there.
    Source: torch.sum. Integers and booleans sum to int64.
    """
    kept = kept_shape(x.shape, axis, "sum")
    y = x.sum(axis=axis, keepdims=keepdims, dtype=wide(x.dtype))
    if x.dtype.kind == "f":
        y = y.astype(x.dtype)  # summed in float64: see unbroadcast
    return y, SumCache(x.shape, kept)


def sum_backward(dy: Array, cache: SumCache) -> Array:
    """Gradient of sum_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx = dy, the same for every summand.
    Errors: none of its own.
    Source: a sum's transpose is a broadcast.
    """
    xp = array_module(dy)
    dx = xp.empty(cache.x_shape, dy.dtype)
    dx[...] = dy.reshape(cache.kept_shape)
    return dx


def mean_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, SumCache]:
    """The mean along axes.

    Shapes: x -> y without the averaged axes, or with 1 there (keepdims).
    Formula: y = sum of x / count.
    Errors: ValueError for an axis that is not there; TypeError for integers.
    Source: torch.mean.
    """
    kept = kept_shape(x.shape, axis, "mean")
    if x.dtype.kind != "f":
        raise TypeError(f"mean: x must be floating point, got {x.dtype}: convert it with .to(minires.float32)")
    y = x.mean(axis=axis, keepdims=keepdims, dtype=wide(x.dtype)).astype(x.dtype)  # see unbroadcast
    return y, SumCache(x.shape, kept)


def mean_backward(dy: Array, cache: SumCache) -> Array:
    """Gradient of mean_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx = dy / count.
    Errors: none of its own.
    Source: torch.mean.
    """
    xp = array_module(dy)
    count = 1
    for axis in range(len(cache.x_shape)):
        if cache.kept_shape[axis] == 1:
            count *= cache.x_shape[axis]
    return xp.broadcast_to(dy.reshape(cache.kept_shape) / count, cache.x_shape)


def var_forward(x: Array, *, axis=None, keepdims: bool = False, correction: int = 1) -> tuple[Array, VarCache]:
    """The variance along axes.

    Shapes: x -> y without those axes, or with 1 there (keepdims).
    Formula: y = sum of (x - mean)^2 / (count - correction): correction 1 is unbiased, 0 is batch norm's.
    Errors: ValueError for an axis that is not there or too few values; TypeError for integers.
    Source: torch.var.
    """
    kept = kept_shape(x.shape, axis, "var")
    if x.dtype.kind != "f":
        raise TypeError(f"var: x must be floating point, got {x.dtype}: convert it with .to(minires.float32)")
    count = 1
    for i in range(x.ndim):
        if kept[i] == 1:
            count *= x.shape[i]
    if count <= correction:
        raise ValueError(f"var: needs more than {correction} values for correction={correction}, got {count}")
    centred = x - x.mean(axis=axis, keepdims=True, dtype=wide(x.dtype)).astype(x.dtype)
    y = ((centred * centred).sum(axis=axis, keepdims=keepdims, dtype=wide(x.dtype)) / (count - correction)).astype(
        x.dtype
    )
    return y, VarCache(centred, kept, count - correction)


def var_backward(dy: Array, cache: VarCache) -> Array:
    """Gradient of var_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx = dy 2 (x - mean) / (count - correction); the way through the mean cancels.
    Errors: none of its own.
    Source: torch.var.
    """
    return dy.reshape(cache.kept_shape) * cache.centred * (2 / cache.divisor)


def amax_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, ExtremeCache]:
    """The largest value along axes.

    Shapes: x -> y without those axes, or with 1 there (keepdims).
    Formula: y = max of x; NaN wins.
    Errors: ValueError for an axis that is not there or empty.
    Source: torch.amax.
    """
    kept = kept_shape(x.shape, axis, "max")
    check_not_empty(x.shape, kept, "max")
    y = x.max(axis=axis, keepdims=keepdims)
    return y, ExtremeCache(x, y.reshape(kept))


def amax_backward(dy: Array, cache: ExtremeCache) -> Array:
    """Gradient of amax_forward and of amin_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx = dy where x is the extreme, shared equally among those that tie.
    Errors: none of its own.
    Source: torch.amax.
    """
    axes = []
    for i in range(cache.x.ndim):
        if cache.y.shape[i] == 1:
            axes.append(i)
    mask = (cache.x == cache.y).astype(dy.dtype)
    mask /= mask.sum(axis=tuple(axes), keepdims=True)
    return mask * dy.reshape(cache.y.shape)


def amin_forward(x: Array, *, axis=None, keepdims: bool = False) -> tuple[Array, ExtremeCache]:
    """The smallest value along axes.

    Shapes: x -> y without those axes, or with 1 there (keepdims).
    Formula: y = min of x; NaN wins.
    Errors: ValueError for an axis that is not there or empty.
    Source: torch.amin.
    """
    kept = kept_shape(x.shape, axis, "min")
    check_not_empty(x.shape, kept, "min")
    y = x.min(axis=axis, keepdims=keepdims)
    return y, ExtremeCache(x, y.reshape(kept))


def amin_backward(dy: Array, cache: ExtremeCache) -> Array:
    """Gradient of amin_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx = dy where x is the smallest, shared equally among those that tie.
    Errors: none of its own.
    Source: torch.amin.
    """
    return amax_backward(dy, cache)


def select_forward(x: Array, *, index: Array, axis: int) -> tuple[Array, SelectCache]:
    """One entry of each line along an axis: what max(dim) and min(dim) return beside their indices.

    Shapes: x, index (as x with 1 on the axis) -> y (as x without the axis).
    Formula: y = x[index] along the axis.
    Errors: none of its own.
    Source: torch.gather.
    """
    xp = array_module(x)
    y = xp.take_along_axis(x, index, axis).squeeze(axis)
    return y, SelectCache(index, x.shape, axis)


def select_backward(dy: Array, cache: SelectCache) -> Array:
    """Gradient of select_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx = dy at the index, 0 elsewhere.
    Errors: none of its own.
    Source: torch.gather.
    """
    xp = array_module(dy)
    dx = xp.zeros(cache.x_shape, dy.dtype)
    xp.put_along_axis(dx, cache.index, dy.reshape(cache.index.shape), cache.axis)
    return dx
