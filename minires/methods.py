"""The named methods of a Tensor: PyTorch's names, each bound to its kernel pair in one line.

A class of its own so that tensor.py stays the engine. ``self.apply`` is the engine's ``apply`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minires import kernels
from minires.backend import Array
from minires.values import dims


class Extreme(NamedTuple):
    """What max(dim) and min(dim) return."""

    values: Any
    indices: Any


class Methods:
    """Functions, reductions and shapes of a Tensor."""

    __slots__ = ()

    array: Array
    shape: tuple[int, ...]
    ndim: int
    apply: Callable[..., Any]  # tensor.apply
    wrap: Callable[..., Any]  # tensor.wrap
    to: Callable[..., Any]

    def floating(self) -> Any:
        """Itself, or as float32 where it holds integers, for functions that have no integer result."""
        return self if self.array.dtype.kind == "f" else self.to(np.dtype("float32"))

    # ---- What it is, and as what ---------------------------------------------------------------------------------

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """The shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """The number of axes."""
        return self.array.ndim

    def numel(self) -> int:
        """The number of values."""
        return int(self.array.size)

    def tolist(self) -> Any:
        """The values as nested Python lists."""
        return self.array.tolist()

    def cpu(self) -> Any:
        """On the CPU."""
        return self.to("cpu")

    def cuda(self) -> Any:
        """On the GPU."""
        return self.to("cuda")

    def float(self) -> Any:
        """As float32."""
        return self.to(np.dtype("float32"))

    def double(self) -> Any:
        """As float64."""
        return self.to(np.dtype("float64"))

    def long(self) -> Any:
        """As int64."""
        return self.to(np.dtype("int64"))

    # ---- Functions -------------------------------------------------------------------------------------------------

    def exp(self) -> Any:
        """e to the power of each value."""
        return self.apply(kernels.exp_forward, kernels.exp_backward, self.floating())

    def log(self) -> Any:
        """The natural logarithm of each value."""
        return self.apply(kernels.log_forward, kernels.log_backward, self.floating())

    def sqrt(self) -> Any:
        """The square root of each value."""
        return self.apply(kernels.sqrt_forward, kernels.sqrt_backward, self.floating())

    def abs(self) -> Any:
        """The absolute value of each value."""
        return abs(self)

    def clamp(self, min: float | None = None, max: float | None = None) -> Any:
        """Each value held between two bounds."""
        return self.apply(kernels.clip_forward, kernels.clip_backward, self, low=min, high=max)

    def relu(self) -> Any:
        """max(x, 0)."""
        return self.apply(kernels.relu_forward, kernels.relu_backward, self)

    def sigmoid(self) -> Any:
        """1 / (1 + e^-x)."""
        return self.apply(kernels.sigmoid_forward, kernels.sigmoid_backward, self.floating())

    def tanh(self) -> Any:
        """The hyperbolic tangent."""
        return self.apply(kernels.tanh_forward, kernels.tanh_backward, self.floating())

    def sum(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The sum, of all or along dim (an int or several)."""
        return self.apply(kernels.sum_forward, kernels.sum_backward, self, axis=dims(dim), keepdims=keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The mean, of all or along dim (an int or several)."""
        return self.apply(kernels.mean_forward, kernels.mean_backward, self, axis=dims(dim), keepdims=keepdim)

    def var(self, dim: Any = None, correction: int = 1, keepdim: bool = False) -> Any:
        """The variance, of all or along dim; correction 1 divides by n - 1, correction 0 by n."""
        return self.apply(
            kernels.var_forward, kernels.var_backward, self, axis=dims(dim), keepdims=keepdim, correction=correction
        )

    def amax(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The largest value, of all or along dim (an int or several)."""
        return self.apply(kernels.amax_forward, kernels.amax_backward, self, axis=dims(dim), keepdims=keepdim)

    def amin(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The smallest value, of all or along dim (an int or several)."""
        return self.apply(kernels.amin_forward, kernels.amin_backward, self, axis=dims(dim), keepdims=keepdim)

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The largest value of all; with dim a pair (values, indices) along it."""
        if dim is None:
            return self.amax()
        return self.select(self.argmax(dim, keepdim=True), dim, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The smallest value of all; with dim a pair (values, indices) along it."""
        if dim is None:
            return self.amin()
        return self.select(self.argmin(dim, keepdim=True), dim, keepdim)

    def select(self, index: Any, dim: int, keepdim: bool) -> Extreme:
        """The values at an index along dim, and the index."""
        values = self.apply(kernels.select_forward, kernels.select_backward, self, index=index.array, axis=dim)
        if keepdim:
            return Extreme(values.unsqueeze(dim), index)
        return Extreme(values, index.squeeze(dim))

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """Where the largest value is, of all (in row-major order) or along dim."""
        return self.wrap(self.array.argmax(axis=dim, keepdims=keepdim))

    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """Where the smallest value is, of all (in row-major order) or along dim."""
        return self.wrap(self.array.argmin(axis=dim, keepdims=keepdim))

    # ---- Shapes ----------------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Any:
        """The same values in another shape; one size may be -1."""
        shape = dims(shape[0], shape[1:]) if shape else ()
        return self.apply(kernels.reshape_forward, kernels.reshape_backward, self, shape=shape)

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """Axes start_dim to end_dim as one."""
        first, last = start_dim % max(self.ndim, 1), end_dim % max(self.ndim, 1)
        return self.reshape(*self.shape[:first], -1, *self.shape[last + 1 :])

    def squeeze(self, dim: int | None = None) -> Any:
        """Without the axes of size 1, or without axis dim if its size is 1."""
        kept = [n for i, n in enumerate(self.shape) if n != 1 or (dim is not None and i != dim % self.ndim)]
        return self.reshape(tuple(kept))

    def unsqueeze(self, dim: int) -> Any:
        """With a new axis of size 1 at dim."""
        place = dim % (self.ndim + 1)
        return self.reshape(*self.shape[:place], 1, *self.shape[place:])

    def permute(self, *axes: Any) -> Any:
        """The axes in another order."""
        return self.apply(kernels.permute_forward, kernels.permute_backward, self, axes=dims(axes[0], axes[1:]))

    def transpose(self, dim0: int, dim1: int) -> Any:
        """Two axes exchanged."""
        axes = list(range(self.ndim))
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
        return self.permute(axes)

    @property
    def T(self) -> Any:
        """A matrix transposed (all axes in reverse order)."""
        return self.permute(tuple(range(self.ndim))[::-1])

    def expand(self, *shape: Any) -> Any:
        """Repeated along axes of size 1 and along new leading axes; -1 keeps a size."""
        return self.apply(kernels.expand_forward, kernels.expand_backward, self, shape=dims(shape[0], shape[1:]))
