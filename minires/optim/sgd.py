"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minires.kernels.backend import Array, array_module
from minires.optim.optimizer import Optimizer, launch


def plain_step(p: Array, g: Array, lr: float, weight_decay: float) -> None:
    """A parameter, in place: p = p - lr (g + weight_decay p)."""
    p -= lr * (g + weight_decay * p)


def momentum_step(p: Array, g: Array, v: Array, lr: float, momentum: float, weight_decay: float) -> None:
    """A parameter and its velocity, in place: v = momentum v + g + weight_decay p, p = p - lr v."""
    v *= momentum
    v += g + weight_decay * p
    p -= lr * v


def nesterov_step(p: Array, g: Array, v: Array, lr: float, momentum: float, weight_decay: float) -> None:
    """As momentum_step, looking one velocity ahead: p = p - lr (g + momentum v)."""
    g = g + weight_decay * p
    v *= momentum
    v += g
    p -= lr * (g + momentum * v)


class SGD(Optimizer):
    """Moves each of params (Tensors, or dicts with "params" and options of their own) by one of the steps above.

    The first step sets v = g, with g = grad + weight_decay p; later ones v = momentum v + (1 - dampening) g.
    (A weight that is infinite becomes NaN here even without weight decay.)
    Errors: ValueError for options out of range, for no parameters, and for nesterov without momentum.
    Source: torch.optim.SGD; Sutskever et al. 2013.
    """

    remembers = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov})

    def update(self, state: dict[str, Any], p: Array, grad: Array, group: dict[str, Any]) -> None:
        """Move one parameter by one of the steps at the top."""
        lr, momentum, weight_decay = float(group["lr"]), group["momentum"], group["weight_decay"]
        if momentum == 0:
            launch(plain_step, p, grad, lr, weight_decay)
            return
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = array_module(p).zeros(p.shape, p.dtype)
        elif group["dampening"] != 0:
            kept = 1 - group["dampening"]
            grad, weight_decay = kept * grad, kept * weight_decay
        step = nesterov_step if group["nesterov"] else momentum_step
        launch(step, p, grad, state["momentum_buffer"], lr, momentum, weight_decay)
