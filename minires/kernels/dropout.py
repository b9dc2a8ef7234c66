"""Dropout."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minires.kernels.backend import Array, array_module


class DropoutCache(NamedTuple):
    mask: Array  # 0 where an entry was dropped, 1 / (1 - p) where it was kept


def dropout_forward(x: Array, *, p: float, generator: np.random.Generator) -> tuple[Array, DropoutCache]:
    """Sets each entry to zero with probability p and scales the others up, so that the mean stays.

    Shapes: x, y (any).
    Formula: y = x mask, mask = 0 with probability p and 1 / (1 - p) otherwise.
    Errors: ValueError for a p outside 0 <= p <= 1.
    Source: Srivastava et al. 2014; torch.nn.functional.dropout. Drawn on the host: every device drops the same entries.
    """
    xp = array_module(x)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must lie between 0 and 1, got {p}")
    kept = generator.random(x.shape, dtype=np.float32) >= p
    scale = 0.0 if p == 1 else 1 / (1 - p)
    mask = xp.asarray(kept).astype(x.dtype) * scale
    return x * mask, DropoutCache(mask)


def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """Gradient of dropout_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy mask.
    Errors: none of its own.
    Source: torch.nn.functional.dropout.
    """
    return dy * cache.mask
