"""Making tensors, under PyTorch's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.tensor import Tensor, wrap
from minires.values import dims, float32


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor with a copy of the data. Errors: as Tensor. Source: torch.tensor."""
    return Tensor(data, requires_grad, dtype, device)


def from_numpy(array: np.ndarray) -> Tensor:
    """A Tensor that shares a NumPy array's memory. Errors: TypeError for anything else. Source: torch.from_numpy."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise TypeError(f"from_numpy: expected a NumPy array of numbers, got {type(array).__name__}")
    if not array.dtype.isnative:
        raise TypeError(f"from_numpy: expected the machine's own byte order, got {array.dtype.str}: use Tensor(array)")
    return wrap(np.asarray(array))


def zeros(*shape: Any, dtype: Any = float32, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros. Source: torch.zeros."""
    return Tensor(np.zeros(dims(shape[0], shape[1:]) if shape else (), dtype), requires_grad, device=device)


def ones(*shape: Any, dtype: Any = float32, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of ones. Source: torch.ones."""
    return Tensor(np.ones(dims(shape[0], shape[1:]) if shape else (), dtype), requires_grad, device=device)
