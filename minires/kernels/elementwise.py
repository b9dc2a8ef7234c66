"""Operations on one array, element by element, and the change of dtype or device."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module, device_of, to_device
from minires.kernels.shapes import check_fits


class InputCache(NamedTuple):
    x: Array


class OutputCache(NamedTuple):
    y: Array


class ClipCache(NamedTuple):
    x: Array
    low: float | None
    high: float | None


class ConvertCache(NamedTuple):
    dtype: object
    device: str


def negative_forward(x: Array) -> tuple[Array, None]:
    """The opposite sign.

    Shapes: x, y (any).
    Formula: y = -x.
    Errors: none of its own.
    Source: torch.neg.
    """
    return -x, None


def negative_backward(dy: Array, cache: None) -> Array:
    """Gradient of negative_forward.

    Shapes: dy, dx (as x).
    Formula: dx = -dy.
    Errors: none of its own.
    Source: dy/dx = -1.
    """
    return -dy


def exp_forward(x: Array) -> tuple[Array, OutputCache]:
    """The exponential.

    Shapes: x, y (any).
    Formula: y = e^x.
    Errors: none of its own; a large x gives inf.
    Source: torch.exp.
    """
    xp = array_module(x)
    y = xp.exp(x)
    return y, OutputCache(y)


def exp_backward(dy: Array, cache: OutputCache) -> Array:
    """Gradient of exp_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy y.
    Errors: none of its own.
    Source: the exponential is its own derivative.
    """
    return dy * cache.y


def log_forward(x: Array) -> tuple[Array, InputCache]:
    """The natural logarithm.

    Shapes: x, y (any).
    Formula: y = log(x).
    Errors: none of its own; 0 gives -inf and a negative x NaN.
    Source: torch.log.
    """
    xp = array_module(x)
    y = xp.log(x)
    return y, InputCache(x)


def log_backward(dy: Array, cache: InputCache) -> Array:
    """Gradient of log_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy / x.
    Errors: none of its own.
    Source: d log(x) = dx / x.
    """
    return dy / cache.x


def sqrt_forward(x: Array) -> tuple[Array, OutputCache]:
    """The square root.

    Shapes: x, y (any).
    Formula: y = sqrt(x).
    Errors: none of its own; a negative x gives NaN.
    Source: torch.sqrt.
    """
    xp = array_module(x)
    y = xp.sqrt(x)
    return y, OutputCache(y)


def sqrt_backward(dy: Array, cache: OutputCache) -> Array:
    """Gradient of sqrt_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy / (2 y); infinite at 0.
    Errors: none of its own.
    Source: y^2 = x, so 2 y dy = dx.
    """
    return dy / (2 * cache.y)


def absolute_forward(x: Array) -> tuple[Array, InputCache]:
    """The absolute value.

    Shapes: x, y (any).
    Formula: y = |x|.
    Errors: none of its own.
    Source: torch.abs.
    """
    return abs(x), InputCache(x)


def absolute_backward(dy: Array, cache: InputCache) -> Array:
    """Gradient of absolute_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy sign(x), 0 at 0.
    Errors: none of its own.
    Source: torch.abs.
    """
    xp = array_module(dy)
    return dy * xp.sign(cache.x)


def clip_forward(x: Array, *, low: float | None = None, high: float | None = None) -> tuple[Array, ClipCache]:
    """x held between two bounds; None means no bound on that side.

    Shapes: x, y (any).
    Formula: y = min(max(x, low), high).
    Errors: ValueError where both bounds are None, or for one that x's integer dtype does not have.
    Source: torch.clamp.
    """
    xp = array_module(x)
    if low is None and high is None:
        raise ValueError("clip: expected a lower bound, an upper bound or both, got neither")
    for bound in (low, high):
        if bound is not None:
            check_fits(bound, x.dtype, "clip")
    y = x
    if low is not None:
        y = xp.maximum(y, low)
    if high is not None:
        y = xp.minimum(y, high)
    return y, ClipCache(x, low, high)


def clip_backward(dy: Array, cache: ClipCache) -> Array:
    """Gradient of clip_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy where low <= x <= high, 0 elsewhere.
    Errors: none of its own.
    Source: torch.clamp.
    """
    xp = array_module(dy)
    dx = dy
    if cache.low is not None:
        dx = xp.where(cache.x >= cache.low, dx, 0)
    if cache.high is not None:
        dx = xp.where(cache.x <= cache.high, dx, 0)
    return dx


def convert_forward(x: Array, *, dtype=None, device: str | None = None) -> tuple[Array, ConvertCache]:
    """x with another dtype, on another device, or both.

    Shapes: x, y (any).
    Formula: y = x.
    Errors: RuntimeError or ValueError for a device that is not there.
    Source: torch.Tensor.to.
    """
    y = x
    if dtype is not None:
        y = y.astype(dtype)
    if device is not None:
        y = to_device(y, device)
    return y, ConvertCache(x.dtype, device_of(x))


def convert_backward(dy: Array, cache: ConvertCache) -> Array:
    """Gradient of convert_forward: the way back.

    Shapes: dy, dx (as x).
    Formula: dx = dy.
    Errors: none of its own.
    Source: torch.Tensor.to.
    """
    return to_device(dy, cache.device).astype(cache.dtype, copy=False)
