"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minires.kernels.backend import Array, array_module, one_launch
from minires.optim.optimizer import Optimizer


def plain_step(p: Array, g: Array, lr: float, weight_decay: float) -> None:
    """One parameter a step down its gradient, in place."""
    p -= lr * (g + weight_decay * p)


def momentum_step(p: Array, g: Array, v: Array, lr: float, momentum: float, weight_decay: float) -> None:
    """One parameter and its velocity, in place."""
    v *= momentum
    v += g + weight_decay * p
    p -= lr * v


def nesterov_step(p: Array, g: Array, v: Array, lr: float, momentum: float, weight_decay: float) -> None:
    """One parameter and its velocity, in place; the step looks one velocity ahead."""
    g = g + weight_decay * p
    v *= momentum
    v += g
    p -= lr * (g + momentum * v)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, weight decay and Nesterov's variant, step for step PyTorch's.

    Formula: g = grad + weight_decay p; v = momentum v + (1 - dampening) g, in the first step v = g;
        p -= lr v, or with nesterov p -= lr (g + momentum v).
        (A weight that is infinite becomes NaN here even without weight decay.)
    Args: params, Tensors, or dicts with "params" and options of their own.
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
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options as plain numbers. Errors: ValueError for one out of range, or nesterov without momentum."""
        checked = super().checked(options)
        if checked["nesterov"] and (checked["momentum"] <= 0 or checked["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum above 0 and no dampening")
        return checked

    def update(self, state: dict[str, Any], p: Array, grad: Array, group: dict[str, Any]) -> None:
        """Move one parameter: the formula of the class, by one of the three functions at the top."""
        lr, momentum, weight_decay = float(group["lr"]), group["momentum"], group["weight_decay"]
        if momentum == 0:
            one_launch(plain_step, p)(p, grad, lr, weight_decay)
            return
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = array_module(p).zeros(p.shape, p.dtype)
        elif group["dampening"] != 0:
            grad = (1 - group["dampening"]) * grad
            weight_decay = (1 - group["dampening"]) * weight_decay
        step = nesterov_step if group["nesterov"] else momentum_step
        one_launch(step, p)(p, grad, state["momentum_buffer"], lr, momentum, weight_decay)
