"""Making tensors, under PyTorch's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.engine.convert import float32, floating_dtype, sizes
from minires.engine.random import default_generator
from minires.engine.tensor import Tensor, wrap
from minires.kernels.shapes import check_fits


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
    return Tensor(np.zeros(sizes("zeros", *shape), dtype or float32), requires_grad, device=device)


def ones(*shape: Any, dtype: Any = float32, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of ones. Source: torch.ones."""
    return Tensor(np.ones(sizes("ones", *shape), dtype or float32), requires_grad, device=device)


def full(shape: Any, fill_value: float, dtype: Any = None, device: str | None = None) -> Tensor:
    """A Tensor of one value, with the dtype of that value unless told otherwise. Source: torch.full."""
    values = np.full(sizes("full", shape), fill_value)
    if dtype is not None:
        check_fits(fill_value, np.dtype(dtype), "full")
    return Tensor(values, dtype=float32 if dtype is None and values.dtype.kind == "f" else dtype, device=device)


def arange(*bounds: float, dtype: Any = None, device: str | None = None) -> Tensor:
    """start, start + step, ... below end: ``arange(end)``, ``arange(start, end, step)``. Source: torch.arange."""
    if not 1 <= len(bounds) <= 3 or not all(isinstance(one, (int, float, np.number)) for one in bounds):
        raise TypeError(f"arange: expected one to three numbers, got {bounds}")
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    if step == 0 or not np.isfinite([start, end, step]).all() or (end - start) * step < 0:
        raise ValueError(f"arange: no step of {step} leads from {start} to {end}")
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
    values = default_generator(generator).standard_normal(sizes("randn", *shape))
    return Tensor(values, requires_grad, floating_dtype("randn", dtype), device)


def rand(
    *shape: Any,
    generator: np.random.Generator | None = None,
    dtype: Any = float32,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A Tensor of values between 0 and 1, drawn on the host like randn. Source: torch.rand."""
    values = default_generator(generator).random(sizes("rand", *shape))
    return Tensor(values, requires_grad, floating_dtype("rand", dtype), device)
