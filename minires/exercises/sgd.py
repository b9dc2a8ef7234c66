"""One step of SGD with momentum, as a function on arrays: the exercise's solution, and what its training runs on.

``minires.optim.SGD`` does the same in place, with more options; a test holds the two together.
"""

from __future__ import annotations

from minires.kernels.backend import Array


def sgd_step(
    p: Array, grad: Array, v: Array, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov=False
) -> tuple[Array, Array]:
    """One step of stochastic gradient descent with momentum.

    Shapes: p, grad, v (all the same) -> p, v after the step: new arrays. v is 0 before the first step.
    Formula: g = grad + weight_decay p; v = momentum v + g; p = p - lr v, or with nesterov p - lr (g + momentum v).
    Errors: none of its own.
    Source: torch.optim.SGD; Sutskever et al. 2013.
    """
    # Weight decay: a pull towards 0, as if |p|^2 weight_decay / 2 were part of the loss.
    g = grad + weight_decay * p
    # The velocity: all gradients so far, older ones less.
    v = momentum * v + g
    # The direction: with nesterov, where the velocity will lead next.
    direction = g + momentum * v if nesterov else v
    # Downhill.
    p = p - lr * direction
    return p, v
