"""Operations on one array, element by element, dropout, and the change of dtype or device.

x, y, dy and dx have any shape, the same one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minires.kernels.backend import Array, array_module, device_of, to_device
from minires.kernels.checks import check_clip


class InputCache(NamedTuple):
    x: Array


class OutputCache(NamedTuple):
    y: Array


class ClipCache(NamedTuple):
    x: Array
    low: float | None
    high: float | None


class DropoutCache(NamedTuple):
    mask: Array  # 0 where an entry was dropped, 1 / (1 - p) where it was kept


class ConvertCache(NamedTuple):
    dtype: object
    device: str


def negative_forward(x: Array) -> tuple[Array, None]:
    """y = -x, element by element. Source: torch.neg."""
    return -x, None


def negative_backward(dy: Array, cache: None) -> Array:
    """dx = -dy."""
    return -dy


def exp_forward(x: Array) -> tuple[Array, OutputCache]:
    """y = e^x, element by element; a large x gives inf. Source: torch.exp."""
    xp = array_module(x)
    y = xp.exp(x)
    return y, OutputCache(y)


def exp_backward(dy: Array, cache: OutputCache) -> Array:
    """dx = dy y. Source: the exponential is its own derivative."""
    return dy * cache.y


def log_forward(x: Array) -> tuple[Array, InputCache]:
    """y = log(x), the natural one, element by element; 0 gives -inf and a negative x NaN. Source: torch.log."""
    xp = array_module(x)
    y = xp.log(x)
    return y, InputCache(x)


def log_backward(dy: Array, cache: InputCache) -> Array:
    """dx = dy / x."""
    return dy / cache.x


def sqrt_forward(x: Array) -> tuple[Array, OutputCache]:
    """y = sqrt(x), element by element; a negative x gives NaN. Source: torch.sqrt."""
    xp = array_module(x)
    y = xp.sqrt(x)
    return y, OutputCache(y)


def sqrt_backward(dy: Array, cache: OutputCache) -> Array:
    """dx = dy / (2 y), infinite at 0. Source: y^2 = x, so 2 y dy = dx."""
    return dy / (2 * cache.y)


def absolute_forward(x: Array) -> tuple[Array, InputCache]:
    """y = |x|, element by element. Source: torch.abs."""
    return abs(x), InputCache(x)


def absolute_backward(dy: Array, cache: InputCache) -> Array:
    """dx = dy sign(x), 0 at 0. Source: torch.abs."""
    xp = array_module(dy)
    return dy * xp.sign(cache.x)


def clip_forward(x: Array, *, low: float | None = None, high: float | None = None) -> tuple[Array, ClipCache]:
    """y = min(max(x, low), high), element by element; None means no bound on that side. Source: torch.clamp.

    Errors: ValueError where both bounds are None, or for one that x's integer dtype does not have.
    """
    xp = array_module(x)
    check_clip(x, low, high)
    y = x
    if low is not None:
        y = xp.maximum(y, low)
    if high is not None:
        y = xp.minimum(y, high)
    return y, ClipCache(x, low, high)


def clip_backward(dy: Array, cache: ClipCache) -> Array:
    """dx = dy where low <= x <= high, 0 elsewhere. Source: torch.clamp."""
    xp = array_module(dy)
    dx = dy
    if cache.low is not None:
        dx = xp.where(cache.x >= cache.low, dx, 0)
    if cache.high is not None:
        dx = xp.where(cache.x <= cache.high, dx, 0)
    return dx


def dropout_forward(x: Array, *, p: float, generator: np.random.Generator) -> tuple[Array, DropoutCache]:
    """y = x mask, element by element: drops each with probability p and scales the others up, so that the mean stays.

    Formula: mask = 0 with probability p, 1 / (1 - p) otherwise. Drawn on the host: every device drops the same entries.
    Errors: ValueError for a p outside 0 <= p <= 1.
    Source: Srivastava et al. 2014; torch.nn.functional.dropout.
    """
    xp = array_module(x)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must lie between 0 and 1, got {p}")
    kept = generator.random(x.shape, dtype=np.float32) >= p
    scale = 0.0 if p == 1 else 1 / (1 - p)
    mask = xp.asarray(kept).astype(x.dtype) * scale
    return x * mask, DropoutCache(mask)


def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """dx = dy mask."""
    return dy * cache.mask


def convert_forward(x: Array, *, dtype=None, device: str | None = None) -> tuple[Array, ConvertCache]:
    """y = x with another dtype, on another device, or both. Source: torch.Tensor.to.

    Shapes: x, y (any).
    Errors: RuntimeError or ValueError for a device that is not there.
    """
    y = x
    if dtype is not None:
        y = y.astype(dtype)
    if device is not None:
        y = to_device(y, device)
    return y, ConvertCache(x.dtype, device_of(x))


def convert_backward(dy: Array, cache: ConvertCache) -> Array:
    """dx = dy, with x's dtype and on x's device."""
    return to_device(dy, cache.device).astype(cache.dtype, copy=False)


__all__ = [
    "absolute_backward",
    "absolute_forward",
    "clip_backward",
    "clip_forward",
    "convert_backward",
    "convert_forward",
    "dropout_backward",
    "dropout_forward",
    "exp_backward",
    "exp_forward",
    "log_backward",
    "log_forward",
    "negative_backward",
    "negative_forward",
    "sqrt_backward",
    "sqrt_forward",
]
