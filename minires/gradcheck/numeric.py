"""Numeric derivatives: central differences, twice, so that the error of the first cancels; and what happens at kinks.

With D(h) = (f(x + h) - f(x - h)) / 2h the error is h^2 f'''/6 + O(h^4), and (4 D(h/2) - D(h)) / 3 is left with O(h^4)
(Richardson). At a kink, such as ReLU at 0, there is no derivative: any value between the one-sided ones is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

#: The step: large enough for rounding (1e-16 / 1e-3), small enough for what Richardson leaves (1e-12).
STEP = 1e-3
#: The step that looks at one point alone: a kink further away than this does not matter.
TINY = 1e-6


class Jacobian(NamedTuple):
    """All derivatives of y's entries by one input's entries, as matrices (entries of y, entries of x)."""

    value: np.ndarray
    left: np.ndarray  # the derivative from below; equal to value where there is no kink
    right: np.ndarray
    shape: tuple[int, ...]  # of the input

    def vjp(self, u: np.ndarray) -> np.ndarray:
        """The gradient of sum(u * y), in the input's shape."""
        return (u.ravel() @ self.value).reshape(self.shape)

    def bounds(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest gradient that the one-sided derivatives allow."""
        a, b = u.reshape(-1, 1) * self.left, u.reshape(-1, 1) * self.right
        low, high = np.minimum(a, b).sum(0), np.maximum(a, b).sum(0)
        return low.reshape(self.shape), high.reshape(self.shape)


def jacobian(f: Callable[..., np.ndarray], inputs: list[np.ndarray], which: int) -> Jacobian:
    """Differentiate f(*inputs) by one of its inputs, entry by entry.

    Args: f, returning an array; inputs, float64 where they are numbers; which, the input's place.
    Returns: a Jacobian (y.size, x.size). f sees copies: the inputs stay as they are.
    Errors: whatever f raises.
    """
    x = inputs[which]
    y = np.asarray(f(*inputs), np.float64).ravel()

    def at(k: int, step: float) -> np.ndarray:
        moved = x.copy()
        moved.flat[k] += step
        return np.asarray(f(*inputs[:which], moved, *inputs[which + 1 :]), np.float64).ravel()

    if is_affine(f, inputs, which, y):  # then the difference quotient is exact for any step
        step = max(1.0, float(np.abs(x).max(initial=0)))  # as large as x, or rounding eats the difference
        value = np.stack([(at(k, step) - y) / step for k in range(x.size)], axis=1)
        return Jacobian(value, value, value, x.shape)
    value = np.empty((y.size, x.size))
    left, right = value.copy(), value.copy()
    for k in range(x.size):
        h = STEP * max(1.0, abs(float(x.flat[k])))
        todo = np.ones(y.size, bool)
        for _ in range(4):  # a tenth of the step where f bends too much within it
            with np.errstate(invalid="ignore"):
                above, below, above2, below2 = at(k, h), at(k, -h), at(k, h / 2), at(k, -h / 2)
                whole, half = (above - below) / (2 * h), (above2 - below2) / h
                better = (4 * half - whole) / 3
                # Second differences over h halve with h where f is smooth; near a kink they do not.
                bend, bend2 = (above - 2 * y + below) / h, (above2 - 2 * y + below2) / (h / 2)
                scale = 1e-7 + 1e-6 * np.abs(better)
                rough = ~(np.abs(bend2 - bend / 2) <= 0.1 * np.abs(bend) + scale + 1e-15 * np.abs(y) / h)
                rough |= ~(np.abs(half - whole) <= 1e-4 * np.abs(better).max(initial=0) + scale + 1e-15 * np.abs(y) / h)
            value[todo, k] = better[todo]
            todo &= rough
            if not todo.any():
                break
            h /= 10
        left[:, k] = right[:, k] = value[:, k]
        if todo.any():  # a kink at x itself
            up, down = (at(k, TINY) - y) / TINY, (y - at(k, -TINY)) / TINY
            kink = todo & (np.abs(up - down) >= 1e-3 * (1 + np.abs(value[:, k])))
            value[todo, k] = ((up + down) / 2)[todo]
            left[:, k] = np.where(kink, down, value[:, k])
            right[:, k] = np.where(kink, up, value[:, k])
    return Jacobian(value, left, right, x.shape)


def is_affine(f: Callable[..., np.ndarray], inputs: list[np.ndarray], which: int, y: np.ndarray) -> bool:
    """Whether f looks affine in one input: f(x + v) + f(x - v) = 2 f(x) for three random v."""
    x = inputs[which]
    rng = np.random.default_rng(0)
    for size in (0.5, 1.0, 4.0):
        v = size * max(1.0, float(np.abs(x).max(initial=0))) * rng.standard_normal(x.shape)
        plus = np.asarray(f(*inputs[:which], x + v, *inputs[which + 1 :]), np.float64).ravel()
        minus = np.asarray(f(*inputs[:which], x - v, *inputs[which + 1 :]), np.float64).ravel()
        far = np.asarray(f(*inputs[:which], x + 2 * v, *inputs[which + 1 :]), np.float64).ravel()
        limit = 1e-12 * (1 + np.abs(far).max(initial=0))
        if not (np.abs(far + y - 2 * plus) <= limit).all():  # not centred on x, as an odd f would pass
            return False
        if not np.allclose(plus + minus, 2 * y, rtol=1e-12, atol=1e-12 * (1 + np.abs(plus).max(initial=0))):
            return False
    return True
