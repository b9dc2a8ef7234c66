"""Operations that move values without changing them: reshape, transpose, slice, join, pad."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.arithmetic import unbroadcast
from minires.kernels.backend import Array, array_module
from minires.kernels.shapes import check_axis, check_fits


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
    """The same values in the same (row-major) order, in another shape.

    Shapes: x -> y (shape); one entry may be -1.
    Formula: none.
    Errors: ValueError where the number of values differs.
    Source: torch.reshape.
    """
    try:
        if min(shape, default=0) < -1:
            raise ValueError("NumPy takes every negative size for -1")
        y = x.reshape(shape)
    except (ValueError, TypeError) as error:
        raise ValueError(f"reshape: cannot see {x.size} values of shape {x.shape} as {shape}") from error
    return y, ShapeCache(x.shape)


def reshape_backward(dy: Array, cache: ShapeCache) -> Array:
    """Gradient of reshape_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: the reshape back.
    Errors: none of its own.
    Source: torch.reshape.
    """
    return dy.reshape(cache.x_shape)


def permute_forward(x: Array, *, axes: tuple[int, ...]) -> tuple[Array, PermuteCache]:
    """The axes in another order, without a copy.

    Shapes: x -> y with y.shape[i] = x.shape[axes[i]].
    Formula: none.
    Errors: ValueError where axes is not a permutation of x's axes.
    Source: torch.permute.
    """
    positive = []
    for axis in axes:
        positive.append(axis % x.ndim if -x.ndim <= axis < x.ndim else axis)
    if sorted(positive) != list(range(x.ndim)):
        raise ValueError(f"permute: expected each of the {x.ndim} axes of {x.shape} once, got {axes}")
    return x.transpose(positive), PermuteCache(tuple(positive))


def permute_backward(dy: Array, cache: PermuteCache) -> Array:
    """Gradient of permute_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: the inverse permutation.
    Errors: none of its own.
    Source: torch.permute.
    """
    inverse = [0] * len(cache.axes)
    for i in range(len(cache.axes)):
        inverse[cache.axes[i]] = i
    return dy.transpose(inverse)


def expand_forward(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, ShapeCache]:
    """x repeated along axes of size 1, and along new leading axes.

    Shapes: x -> y (shape); -1 keeps an axis.
    Formula: none.
    Errors: ValueError where x does not broadcast to the shape.
    Source: torch.Tensor.expand. The result is a copy: it can be written to.
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
    """Gradient of expand_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: the sum over the repeats.
    Errors: none of its own.
    Source: torch.Tensor.expand.
    """
    return unbroadcast(dy, cache.x_shape)


def slice_forward(x: Array, *, index) -> tuple[Array, SliceCache]:
    """x[index], with NumPy's rules: ints, slices, None, ..., integer arrays and boolean masks.

    Shapes: x -> y as NumPy has it.
    Formula: none.
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
    """Gradient of slice_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx[index] = dy, 0 elsewhere; an entry that was taken twice gets the sum.
    Errors: none of its own.
    Source: torch.Tensor.__getitem__.
    """
    xp = array_module(dy)
    dx = xp.zeros(cache.x_shape, dy.dtype)
    if cache.basic:
        dx[cache.index] = dy
    else:
        xp.add.at(dx, cache.index, dy)
    return dx


def concatenate_forward(*arrays: Array, axis: int = 0) -> tuple[Array, JoinCache]:
    """Arrays one after the other along an axis.

    Shapes: arrays alike except along the axis -> y, the sum of their sizes there.
    Formula: none.
    Errors: ValueError where another axis differs or there is nothing to join.
    Source: torch.cat.
    """
    if not arrays:
        raise ValueError("concatenate: expected at least one tensor, got none")
    xp = array_module(arrays[0])
    sizes = []
    for array in arrays:
        if array.ndim == 0 or array.ndim != arrays[0].ndim or not -array.ndim <= axis < array.ndim:
            raise ValueError(f"concatenate: cannot join {arrays[0].shape} and {array.shape} along axis {axis}")
        alike = list(arrays[0].shape)
        alike[axis] = array.shape[axis]
        if array.shape != tuple(alike):
            raise ValueError(f"concatenate: cannot join {arrays[0].shape} and {array.shape} along axis {axis}")
        sizes.append(array.shape[axis])
    return xp.concatenate(arrays, axis=axis), JoinCache(axis, tuple(sizes))


def concatenate_backward(dy: Array, cache: JoinCache) -> tuple[Array, ...]:
    """Gradients of concatenate_forward: each array gets its part back.

    Shapes: dy (as y) -> one gradient an array (as it).
    Formula: dy cut where the arrays met.
    Errors: none of its own.
    Source: torch.cat.
    """
    parts = []
    end = 0
    for size in cache.sizes:
        index = [slice(None)] * dy.ndim
        index[cache.axis] = slice(end, end + size)
        parts.append(dy[tuple(index)])
        end += size
    return tuple(parts)


def stack_forward(*arrays: Array, axis: int = 0) -> tuple[Array, JoinCache]:
    """Arrays of one shape, one after the other along a new axis.

    Shapes: arrays (all alike) -> y with one axis more.
    Formula: none.
    Errors: ValueError where shapes differ or there is nothing to stack.
    Source: torch.stack.
    """
    if not arrays:
        raise ValueError("stack: expected at least one tensor, got none")
    xp = array_module(arrays[0])
    for array in arrays:
        if array.shape != arrays[0].shape:
            raise ValueError(f"stack: expected tensors of one shape, got {arrays[0].shape} and {array.shape}")
    check_axis(axis, arrays[0].ndim + 1, "stack")
    return xp.stack(arrays, axis=axis), JoinCache(axis, (1,) * len(arrays))


def stack_backward(dy: Array, cache: JoinCache) -> tuple[Array, ...]:
    """Gradients of stack_forward: each array gets its layer back.

    Shapes: dy (as y) -> one gradient an array (as it).
    Formula: dy taken apart along the axis.
    Errors: none of its own.
    Source: torch.stack.
    """
    parts = []
    for i in range(len(cache.sizes)):
        index = [slice(None)] * dy.ndim
        index[cache.axis] = i
        parts.append(dy[tuple(index)])
    return tuple(parts)


def pad_forward(x: Array, *, widths: tuple[tuple[int, int], ...], value: float = 0.0) -> tuple[Array, PadCache]:
    """x with a border of constant values.

    Shapes: x, widths one pair (before, after) an axis -> y, larger by them.
    Formula: none.
    Errors: ValueError for a negative width, a pair too few, or a value that x's dtype does not have.
    Source: torch.nn.functional.pad(mode="constant"), with numpy.pad's order of axes.
    """
    xp = array_module(x)
    if len(widths) != x.ndim:
        raise ValueError(f"pad: expected one pair an axis of {x.shape}, got {widths}")
    check_fits(value, x.dtype, "pad")
    inside = []
    shape = []
    for axis in range(x.ndim):
        before, after = widths[axis]
        if before < 0 or after < 0:
            raise ValueError(f"pad: widths must not be negative, got {widths}; slice instead")
        inside.append(slice(before, before + x.shape[axis]))
        shape.append(before + x.shape[axis] + after)
    y = xp.full(shape, value, x.dtype)
    y[tuple(inside)] = x
    return y, PadCache(tuple(inside))


def pad_backward(dy: Array, cache: PadCache) -> Array:
    """Gradient of pad_forward.

    Shapes: dy (as y) -> dx (as x).
    Formula: dx = dy without the border.
    Errors: none of its own.
    Source: torch.nn.functional.pad.
    """
    return dy[cache.inside]
