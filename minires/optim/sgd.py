"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minires.backend import Array
from minires.optim.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, weight decay and Nesterov's variant, step for step PyTorch's.

    Formula: g = grad + weight_decay p; v = momentum v + (1 - dampening) g, in the first step v = g;
        p -= lr v, or with nesterov p -= lr (g + momentum v).
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
        """Move one parameter: the formula of the class, a line a step."""
        momentum = group["momentum"]
        g = grad
        if group["weight_decay"] != 0:
            g = g + group["weight_decay"] * p
        if momentum != 0:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = g.copy()
            else:
                state["momentum_buffer"] *= momentum
                state["momentum_buffer"] += g if group["dampening"] == 0 else (1 - group["dampening"]) * g
            v = state["momentum_buffer"]
            g = g + momentum * v if group["nesterov"] else v
        p -= float(group["lr"]) * g
