"""Operations that move values without changing them: reshape, transpose, slice, join, pad."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.arithmetic import unbroadcast
from minires.kernels.backend import Array, array_module
from minires.kernels.checks import check_concatenate, check_pad, check_stack


class ShapeCache(NamedTuple):
    x_shape: tuple[int, ...]


class PermuteCache(NamedTuple):
    axes: tuple[int, ...]


class SliceCache(NamedTuple):
    x_shape: tuple[int, ...]
    index: object
    basic: bool  # made of ints, slices, None and ...: no pixel can be named twice


class JoinCache(NamedTuple):
    axis: int
    sizes: tuple[int, ...]


class PadCache(NamedTuple):
    inside: tuple[slice, ...]


def reshape_forward(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, ShapeCache]:
    """The same values in the same (row-major) order, in another shape. Source: torch.reshape.

    Shapes: x -> y (shape); one entry may be -1.
    Errors: ValueError where the number of values differs.
    """
    try:
        if min(shape, default=0) < -1:
            raise ValueError("NumPy takes every negative size for -1")
        y = x.reshape(shape)
    except (ValueError, TypeError) as error:
        raise ValueError(f"reshape: cannot see {x.size} values of shape {x.shape} as {shape}") from error
    return y, ShapeCache(x.shape)


def reshape_backward(dy: Array, cache: ShapeCache) -> Array:
    """dx = dy, reshaped back."""
    return dy.reshape(cache.x_shape)


def permute_forward(x: Array, *, axes: tuple[int, ...]) -> tuple[Array, PermuteCache]:
    """The axes in another order, without a copy. Source: torch.permute.

    Shapes: x -> y with y.shape[i] = x.shape[axes[i]].
    Errors: ValueError where axes is not a permutation of x's axes.
    """
    positive = []
    for axis in axes:
        positive.append(axis % x.ndim if -x.ndim <= axis < x.ndim else axis)
    if sorted(positive) != list(range(x.ndim)):
        raise ValueError(f"permute: expected each of the {x.ndim} axes of {x.shape} once, got {axes}")
    return x.transpose(positive), PermuteCache(tuple(positive))


def permute_backward(dy: Array, cache: PermuteCache) -> Array:
    """dx = dy by the inverse permutation."""
    inverse = [0] * len(cache.axes)
    for i in range(len(cache.axes)):
        inverse[cache.axes[i]] = i
    return dy.transpose(inverse)


def expand_forward(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, ShapeCache]:
    """x repeated along axes of size 1, and along new leading axes. Source: torch.Tensor.expand.

    Shapes: x -> y (shape), a copy: it can be written to. -1 keeps an axis.
    Errors: ValueError where x does not broadcast to the shape.
    """
    xp = array_module(x)
    full = list(shape)
    for i in range(len(full)):
        if full[i] == -1 and i >= len(full) - x.ndim:
            full[i] = x.shape[i - len(full)]
    try:
        y = xp.broadcast_to(x, tuple(full)).copy()
    except ValueError as error:
        raise ValueError(f"expand: {x.shape} does not broadcast to {shape}") from error
    return y, ShapeCache(x.shape)


def expand_backward(dy: Array, cache: ShapeCache) -> Array:
    """dx = the sum of dy over the repeats."""
    return unbroadcast(dy, cache.x_shape)


def slice_forward(x: Array, *, index) -> tuple[Array, SliceCache]:
    """y = x[index], with NumPy's rules: ints, slices, None, ..., integer arrays and boolean masks.

    Shapes: x -> y as NumPy has it.
    Errors: IndexError for an index out of range or of the wrong kind. On a GPU an index array's entries are not looked
        at: CuPy lets one out of range wrap around.
    Source: torch.Tensor.__getitem__.
    """
    parts = index if isinstance(index, tuple) else (index,)
    basic = True
    for part in parts:
        basic = basic and (part is None or part is Ellipsis or isinstance(part, (int, slice)))
    try:
        y = x[index]
    except (IndexError, ValueError) as error:  # NumPy's own words do not name the operation
        raise IndexError(f"getitem: {error}, the shape is {x.shape}") from error
    return y, SliceCache(x.shape, index, basic)


def slice_backward(dy: Array, cache: SliceCache) -> Array:
    """dx[index] = dy, 0 elsewhere; an entry that was taken twice gets the sum. Source: torch.Tensor.__getitem__."""
    xp = array_module(dy)
    dx = xp.zeros(cache.x_shape, dy.dtype)
    if cache.basic:
        dx[cache.index] = dy
    else:
        xp.add.at(dx, cache.index, dy)
    return dx


def concatenate_forward(*arrays: Array, axis: int = 0) -> tuple[Array, JoinCache]:
    """Arrays one after the other along an axis. Source: torch.cat.

    Shapes: arrays alike except along the axis -> y, the sum of their sizes there.
    Errors: ValueError where another axis differs or there is nothing to join.
    """
    check_concatenate(arrays, axis)
    xp = array_module(arrays[0])
    sizes = []
    for array in arrays:
        sizes.append(array.shape[axis])
    return xp.concatenate(arrays, axis=axis), JoinCache(axis, tuple(sizes))


def concatenate_backward(dy: Array, cache: JoinCache) -> tuple[Array, ...]:
    """Each array gets its part back: dy cut where the arrays met."""
    parts = []
    end = 0
    for size in cache.sizes:
        index = [slice(None)] * dy.ndim
        index[cache.axis] = slice(end, end + size)
        parts.append(dy[tuple(index)])
        end += size
    return tuple(parts)


def stack_forward(*arrays: Array, axis: int = 0) -> tuple[Array, JoinCache]:
    """Arrays of one shape, one after the other along a new axis. Source: torch.stack.

    Shapes: arrays (all alike) -> y with one axis more.
    Errors: ValueError where shapes differ or there is nothing to stack; IndexError for an axis that y lacks.
    """
    check_stack(arrays, axis)
    xp = array_module(arrays[0])
    return xp.stack(arrays, axis=axis), JoinCache(axis, (1,) * len(arrays))


def stack_backward(dy: Array, cache: JoinCache) -> tuple[Array, ...]:
    """Each array gets its layer back: dy taken apart along the axis."""
    parts = []
    for i in range(len(cache.sizes)):
        index = [slice(None)] * dy.ndim
        index[cache.axis] = i
        parts.append(dy[tuple(index)])
    return tuple(parts)


def pad_forward(x: Array, *, widths: tuple[tuple[int, int], ...], value: float = 0.0) -> tuple[Array, PadCache]:
    """x with a border of constant values.

    Shapes: x, widths one pair (before, after) an axis -> y, larger by them.
    Errors: ValueError for a negative width, a pair too few, or a value that x's dtype does not have.
    Source: torch.nn.functional.pad(mode="constant"), with numpy.pad's order of axes.
    """
    xp = array_module(x)
    check_pad(x, widths, value)
    inside = []
    shape = []
    for axis in range(x.ndim):
        before, after = widths[axis]
        inside.append(slice(before, before + x.shape[axis]))
        shape.append(before + x.shape[axis] + after)
    y = xp.full(shape, value, x.dtype)
    y[tuple(inside)] = x
    return y, PadCache(tuple(inside))


def pad_backward(dy: Array, cache: PadCache) -> Array:
    """dx = dy without the border."""
    return dy[cache.inside]


__all__ = [
    "concatenate_backward",
    "concatenate_forward",
    "expand_backward",
    "expand_forward",
    "pad_backward",
    "pad_forward",
    "permute_backward",
    "permute_forward",
    "reshape_backward",
    "reshape_forward",
    "slice_backward",
    "slice_forward",
    "stack_backward",
    "stack_forward",
]
