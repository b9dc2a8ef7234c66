"""The kinds of operation that the checker knows: their definition, their right kernel, and inputs to try them on.

In every case the sizes, and the products of sizes that can be confused (N, C, H*W, N*H*W), are all different, and no
value lies near a kink: a factor or an axis can then be named from the numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minires import kernels
from minires.gradcheck import definitions


class Case(NamedTuple):
    """Inputs and options to try a kernel on."""

    inputs: list[np.ndarray]
    options: dict[str, Any]


class Kind(NamedTuple):
    """One kind of operation."""

    names: tuple[str, ...]  # of the inputs
    forward: Callable  # the right kernel
    backward: Callable
    definition: Callable  # forward(*inputs, **options) -> y, in loops
    cases: Callable[[np.random.Generator], list[Case]]


def apart(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random values of both signs, all at least 0.05 apart from each other and from 0, and from 1."""
    size = int(np.prod(shape))
    steps = 0.06 * (1 + np.arange(size)) * rng.choice([-1, 1], size)
    values = steps + 0.02 * rng.random(size)
    values[np.abs(values - 1) < 0.03] += 0.05
    return rng.permutation(values).reshape(shape)


def spread(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal values, none close to 0."""
    x = rng.standard_normal(shape)
    return x + 0.1 * np.sign(x)


def conv2d_cases(rng: np.random.Generator) -> list[Case]:
    """A stride of 2 with padding; then a kernel and strides that are no squares."""
    x, w, b = rng.standard_normal((5, 4, 4, 6)), rng.standard_normal((7, 4, 3, 3)), rng.standard_normal(7)
    cases = [Case([x, w, b], {"stride": 2, "padding": 1})]
    x, w, b = rng.standard_normal((3, 4, 5, 7)), rng.standard_normal((5, 4, 3, 2)), rng.standard_normal(5)
    cases.append(Case([x, w, b], {"stride": (1, 2), "padding": (1, 0)}))
    return cases


def batch_norm_cases(rng: np.random.Generator) -> list[Case]:
    """A mean and a deviation of its own for each channel."""
    x = 1.5 + 2 * rng.standard_normal((3, 4, 5, 7)) * rng.uniform(0.5, 1.5, (1, 4, 1, 1))
    return [Case([x, rng.uniform(0.5, 2, 4), rng.standard_normal(4)], {})]


def relu_cases(rng: np.random.Generator) -> list[Case]:
    """Values away from 0; then some that are 0."""
    ties = spread(rng, 3, 5)
    ties[0, :2] = 0
    return [Case([spread(rng, 3, 4, 5)], {}), Case([ties], {})]


def max_pool2d_cases(rng: np.random.Generator) -> list[Case]:
    """Overlapping windows with padding; windows that are no squares; equal values."""
    cases = [Case([apart(rng, 5, 4, 4, 6)], {"kernel_size": 3, "stride": 2, "padding": 1})]
    cases.append(Case([apart(rng, 3, 4, 4, 6)], {"kernel_size": (2, 3), "stride": (2, 1)}))
    ties = rng.integers(0, 3, (3, 5, 2, 4)).astype(np.float64)
    cases.append(Case([ties], {"kernel_size": 2, "stride": 2}))
    return cases


def avg_pool2d_cases(rng: np.random.Generator) -> list[Case]:
    """Overlapping windows with padding; windows that are no squares."""
    cases = [Case([rng.standard_normal((5, 4, 4, 6))], {"kernel_size": 3, "stride": 2, "padding": 1})]
    cases.append(Case([rng.standard_normal((3, 4, 4, 6))], {"kernel_size": (2, 3), "stride": (2, 1)}))
    return cases


def global_avg_pool_cases(rng: np.random.Generator) -> list[Case]:
    """One batch."""
    return [Case([rng.standard_normal((3, 4, 5, 7))], {})]


def linear_cases(rng: np.random.Generator) -> list[Case]:
    """A batch of vectors."""
    return [Case([rng.standard_normal((3, 5)), rng.standard_normal((7, 5)), rng.standard_normal(7)], {})]


def residual_cases(rng: np.random.Generator) -> list[Case]:
    """Inputs for which every mask has both values, and no two masks are the same."""
    for _ in range(100):  # until every mask has both values and differs from the others, away from all kinks
        x, w1, w2 = rng.standard_normal((5, 4)), rng.standard_normal((4, 7)), rng.standard_normal((7, 4))
        h = x @ w1
        z = np.maximum(h, 0) @ w2
        s = x + z
        clear = min(np.abs(h).min(), np.abs(z).min(), np.abs(s).min()) > 0.02
        mixed = ((s > 0) & (z < 0)).any() and ((s < 0) & (z > 0)).any() and (s > 0).sum() > 4 and (s < 0).sum() > 4
        if clear and mixed:
            break
    return [Case([x, w1, w2], {})]


def cross_entropy_cases(rng: np.random.Generator) -> list[Case]:
    """The mean over a batch; then one loss a row."""
    cases = [Case([rng.standard_normal((5, 7)), np.array([6, 2, 0, 2, 4])], {})]
    cases.append(Case([rng.standard_normal((5, 7)), np.array([1, 3, 3, 6, 0])], {"reduction": "none"}))
    return cases


def softmax_cases(rng: np.random.Generator) -> list[Case]:
    """Rows of logits."""
    return [Case([rng.standard_normal((5, 7))], {})]


def residual_forward(x: np.ndarray, w1: np.ndarray, w2: np.ndarray) -> tuple[np.ndarray, tuple]:
    """The smallest residual block.

    Shapes: x (N, D), w1 (D, M), w2 (M, D) -> y (N, D).
    Formula: y = relu(x + F(x)), F(x) = relu(x w1) w2.
    Source: He et al. 2015, equation 1.
    """
    h = x @ w1  # (N, M)
    a = np.maximum(h, 0)
    s = x + a @ w2  # (N, D)
    return np.maximum(s, 0), (x, w1, w2, h, a, s)


def residual_backward(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of residual_forward.

    Shapes: dy (N, D) -> dx (N, D), dw1 (D, M), dw2 (M, D).
    Formula: ds = dy (s > 0) goes both ways: dx = ds + (ds w2.T (h > 0)) w1.T.
    Source: the chain rule.
    """
    x, w1, w2, h, a, s = cache
    ds = dy * (s > 0)
    dw2 = a.T @ ds
    dh = (ds @ w2.T) * (h > 0)
    dw1 = x.T @ dh
    return ds + dh @ w1.T, dw1, dw2


def kernel(name: str, inputs: str, definition: Callable, cases: Callable) -> Kind:
    """The kind of a kernel pair, which is found by its name."""
    forward, backward = getattr(kernels, f"{name}_forward"), getattr(kernels, f"{name}_backward")
    return Kind(tuple(inputs.split()), forward, backward, definition, cases)


KINDS = {
    "conv2d": kernel("conv2d", "x w b", kernels.conv2d_loops, conv2d_cases),
    "batch_norm": kernel("batch_norm", "x gamma beta", definitions.batch_norm_loops, batch_norm_cases),
    "relu": kernel("relu", "x", definitions.relu_loops, relu_cases),
    "max_pool2d": kernel("max_pool2d", "x", definitions.max_pool2d_loops, max_pool2d_cases),
    "avg_pool2d": kernel("avg_pool2d", "x", definitions.avg_pool2d_loops, avg_pool2d_cases),
    "global_avg_pool": kernel("global_avg_pool", "x", definitions.global_avg_pool_loops, global_avg_pool_cases),
    "linear": kernel("linear", "x w b", definitions.linear_loops, linear_cases),
    "residual": Kind(
        ("x", "w1", "w2"), residual_forward, residual_backward, definitions.residual_loops, residual_cases
    ),
    "cross_entropy": kernel("cross_entropy", "logits labels", definitions.cross_entropy_loops, cross_entropy_cases),
    "softmax": kernel("softmax", "x", definitions.softmax_loops, softmax_cases),
}
