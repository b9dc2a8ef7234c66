"""Eight broken kernels, the right ones beside them, and a check that tells them apart.

A mutant looks right and passes a careless check: each of them survives something that people do. ``accepts`` is the
exercise's solution: the only copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minires import kernels
from minires.kernels.backend import Array


def accepts(forward: Callable, backward: Callable, inputs: tuple[Array, ...]) -> bool:
    """Whether backward gives the gradients of forward.

    Shapes: inputs, float64 arrays; forward(*inputs) -> y, cache; backward(dy, cache) -> a gradient, or a tuple of one
        for each input.
    Formula: for each input x and each entry i, dx[i] = sum of dy (y(x + h e_i) - y(x - h e_i)) / (2 h), dy random.
    Source: Bengio 2012, section 4.
    """
    # One forward.
    y, cache = forward(*inputs)
    # An upstream gradient, of both signs: ones would hide much.
    dy = np.random.default_rng(0).standard_normal(y.shape)
    # What backward says.
    answer = backward(dy, cache)
    # Always a tuple.
    gradients = answer if isinstance(answer, tuple) else (answer,)
    # A small step.
    h = 1e-6
    # What the forward says: every entry of every input is moved by h both ways, and put back.
    for x, dx in zip(inputs, gradients, strict=True):
        if dx.shape != x.shape:
            return False
        for i in np.ndindex(x.shape):
            middle = x[i]
            x[i] = middle + h
            above, _ = forward(*inputs)
            x[i] = middle - h
            below, _ = forward(*inputs)
            x[i] = middle
            numeric = (dy * (above - below)).sum() / (2 * h)
            if not abs(numeric - dx[i]) <= 1e-6 * max(1, abs(numeric)):
                return False
    return True


class Candidate(NamedTuple):
    """A kernel, inputs for it, and what is wrong with it: None for a right one."""

    name: str
    forward: Callable
    backward: Callable
    inputs: tuple[Array, ...]
    fault: str | None


def relu_of_upstream(dy: Array, cache: Any) -> Array:
    """A ReLU that looks at the sign of dy, not of x."""
    return dy * (dy > 0)


def batch_norm_of_nothing(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """A batch norm whose dx is 0."""
    dx, dgamma, dbeta = kernels.batch_norm_backward(dy, cache)
    return 0 * dx, dgamma, dbeta


def batch_norm_of_constants(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """A batch norm that takes the batch's statistics for constants."""
    _, dgamma, dbeta = kernels.batch_norm_backward(dy, cache)
    return dy * cache.gamma[:, None, None] * cache.inv_std, dgamma, dbeta


def linear_of_ones(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """A linear layer whose dw forgets dy."""
    dx, _, db = kernels.linear_backward(dy, cache)
    _, dw, _ = kernels.linear_backward(np.ones_like(dy), cache)
    return dx, dw, db


def linear_of_last_bias(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """A linear layer whose db, the last of three gradients, is twice too large."""
    dx, dw, db = kernels.linear_backward(dy, cache)
    return dx, dw, 2 * db


def softmax_without_coupling(dy: Array, cache: Any) -> Array:
    """A softmax that forgets that a larger logit takes probability from the others."""
    return dy * cache.y * (1 - cache.y)


def average_to_one_pixel(dy: Array, cache: Any) -> Array:
    """A global average pool that gives one pixel of each map all of dy: the sum of dx is right."""
    dx = np.zeros(cache.x_shape)
    dx[:, :, 0, 0] = dy[:, :, 0, 0]
    return dx


def maximum_to_wrong_corner(dy: Array, cache: Any) -> Array:
    """A max pool that rotates every map by half a turn: the norm of dx is right."""
    return kernels.max_pool2d_backward(dy, cache)[:, :, ::-1, ::-1]


def max_pool_of_two(x: Array) -> tuple[Array, Any]:
    """Max pooling with a window of two pixels each way."""
    return kernels.max_pool2d_forward(x, kernel_size=2)


def candidates() -> list[Candidate]:
    """The eight mutants and the six right kernels that they were made from."""
    rng = np.random.default_rng(7)
    images = rng.standard_normal((2, 3, 4, 5))
    norm_inputs = (images, rng.standard_normal(3), rng.standard_normal(3))
    linear_inputs = (rng.standard_normal((3, 4)), rng.standard_normal((5, 4)), rng.standard_normal(5))
    rows = rng.standard_normal((3, 4))
    pool_inputs = (rng.standard_normal((2, 3, 4, 6)),)
    norm, linear, relu = kernels.batch_norm_forward, kernels.linear_forward, kernels.relu_forward
    softmax, average = kernels.softmax_forward, kernels.global_avg_pool_forward
    return [
        Candidate("relu", relu, kernels.relu_backward, (rows,), None),
        Candidate("batch norm", norm, kernels.batch_norm_backward, norm_inputs, None),
        Candidate("linear", linear, kernels.linear_backward, linear_inputs, None),
        Candidate("softmax", softmax, kernels.softmax_backward, (rows,), None),
        Candidate("global average pool", average, kernels.global_avg_pool_backward, (images,), None),
        Candidate("max pool", max_pool_of_two, kernels.max_pool2d_backward, pool_inputs, None),
        Candidate("mutant 1", relu, relu_of_upstream, (rows,), "a ReLU whose mask comes from dy's sign"),
        Candidate("mutant 2", norm, batch_norm_of_nothing, norm_inputs, "a batch norm whose dx is 0"),
        Candidate("mutant 3", norm, batch_norm_of_constants, norm_inputs, "a batch norm with constant statistics"),
        Candidate("mutant 4", linear, linear_of_ones, linear_inputs, "a linear layer whose dw forgets dy"),
        Candidate("mutant 5", linear, linear_of_last_bias, linear_inputs, "a linear layer whose db is doubled"),
        Candidate("mutant 6", softmax, softmax_without_coupling, (rows,), "a softmax with only the diagonal"),
        Candidate("mutant 7", average, average_to_one_pixel, (images,), "an average that pays one pixel alone"),
        Candidate("mutant 8", max_pool_of_two, maximum_to_wrong_corner, pool_inputs, "a max pool turned by half"),
    ]
