"""Making tensors, under PyTorch's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.random import default_generator
from minires.tensor import Tensor, wrap
from minires.values import dims, float32


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor with a copy of the data. Errors: as Tensor. Source: torch.tensor."""
    return Tensor(data, requires_grad, dtype, device)


def from_numpy(array: np.ndarray) -> Tensor:
    """A Tensor that shares a NumPy array's memory. Errors: TypeError for anything else. Source: torch.from_numpy."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise TypeError(
            f"from_numpy: expected a NumPy array of numbers, got {type(array).__module__}.{type(array).__name__}"
        )
    if not array.dtype.isnative:
        raise TypeError(f"from_numpy: expected the machine's own byte order, got {array.dtype.str}: use Tensor(array)")
    return wrap(np.asarray(array))


def zeros(*shape: Any, dtype: Any = float32, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros. Source: torch.zeros."""
    return Tensor(np.zeros(dims(*shape), dtype or float32), requires_grad, device=device)


def ones(*shape: Any, dtype: Any = float32, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of ones. Source: torch.ones."""
    return Tensor(np.ones(dims(*shape), dtype or float32), requires_grad, device=device)


def full(shape: Any, fill_value: float, dtype: Any = None, device: str | None = None) -> Tensor:
    """A Tensor of one value, with the dtype of that value unless told otherwise. Source: torch.full."""
    values = np.full(shape, fill_value)
    return Tensor(values, dtype=float32 if dtype is None and values.dtype.kind == "f" else dtype, device=device)


def arange(*bounds: float, dtype: Any = None, device: str | None = None) -> Tensor:
    """start, start + step, ... below end: ``arange(end)``, ``arange(start, end, step)``. Source: torch.arange."""
    values = np.arange(*bounds)
    return Tensor(values, dtype=float32 if dtype is None and values.dtype.kind == "f" else dtype, device=device)


def randn(
    *shape: Any,
    generator: np.random.Generator | None = None,
    dtype: Any = float32,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A Tensor of normal values, drawn on the host from ``generator`` or MiniRes's own. Source: torch.randn."""
    values = default_generator(generator).standard_normal(dims(*shape))
    return Tensor(values, requires_grad, dtype or float32, device)


def rand(
    *shape: Any,
    generator: np.random.Generator | None = None,
    dtype: Any = float32,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A Tensor of values between 0 and 1, drawn on the host like randn. Source: torch.rand."""
    values = default_generator(generator).random(dims(*shape))
    return Tensor(values, requires_grad, dtype or float32, device)
