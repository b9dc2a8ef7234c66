"""A kernel of one's own as an exercise: a whole example. Copy this file, and change what is in it.

    minires exercise new > my_exercises.py
    minires exercise start swish --from my_exercises.py
    minires exercise check swish --from my_exercises.py
    pytest --exercise swish --exercises-from my_exercises.py swish.py

The functions below are the solution, and the student's file is cut from them: the signature, the docstring and the
comments stay, every statement that computes a name becomes a step, and a comment that ends in a shape stays with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minires.exercises.table import Exercise
from minires.exercises.trials import Trial
from minires.kernels.backend import Array, array_module


class SwishCache(NamedTuple):
    x: Array
    gate: Array  # 1 / (1 + e^-x)


def swish_forward(x: Array) -> tuple[Array, SwishCache]:
    """A smooth relative of ReLU.

    Shapes: x, y (any).
    Formula: y = x / (1 + e^-x).
    Source: Ramachandran et al. 2017; torch.nn.functional.silu.
    """
    xp = array_module(x)
    # The gate: between 0 and 1, the larger x is the more open.
    gate = 1 / (1 + xp.exp(-x))
    # Through the gate.
    y = x * gate
    return y, SwishCache(x, gate)


def swish_backward(dy: Array, cache: SwishCache) -> Array:
    """Gradient of swish_forward.

    Shapes: dy, dx (as x).
    Formula: dx = dy gate (1 + x (1 - gate)).
    Source: torch.nn.functional.silu.
    """
    # The slope of the gate.
    dgate = cache.gate * (1 - cache.gate)
    # The product rule: x appears twice in x gate(x).
    slope = cache.gate + cache.x * dgate
    # The chain rule.
    dx = dy * slope
    return dx


def swish_by_loops(x: Array) -> Array:
    """The definition, one number at a time: what the student's forward is held against."""
    y = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        y[i] = x[i] / (1 + math.exp(-x[i]))
    return y


def swish_trials() -> list[Trial]:
    """Inputs, each of another size. The gradient of the first one is checked numerically."""
    rng = np.random.default_rng(0)
    kernel = (swish_forward, swish_backward, swish_by_loops, ("x",))
    return [Trial(*kernel, (rng.standard_normal((3, 4)),)), Trial(*kernel, (np.array([-5.0, 0.0, 5.0]),))]


EXERCISES = [
    Exercise(
        name="swish",
        title="swish, forward and backward",
        functions=(swish_forward, swish_backward),
        trials=swish_trials,
        hints=(
            "Draw the gate, and x times the gate.",
            "x appears twice in x gate(x): the product rule gives two terms.",
            "The slope of the gate is gate (1 - gate).",
        ),
    )
]
