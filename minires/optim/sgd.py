"""Stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from minires.backend import Array, array_module, device_of, one_launch, to_device
from minires.graph import no_grad
from minires.tensor import Tensor


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


class SGD:
    """Stochastic gradient descent with momentum, weight decay and Nesterov's variant, step for step PyTorch's.

    Formula: g = grad + weight_decay p; v = momentum v + (1 - dampening) g, in the first step v = g;
        p -= lr v, or with nesterov p -= lr (g + momentum v).
    Args: params, Tensors, or dicts with "params" and options of their own.
    Errors: ValueError for options out of range, for no parameters, and for nesterov without momentum.
    Source: torch.optim.SGD; Sutskever et al. 2013.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"SGD: {name} must be a finite number of at least 0, got {value}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD: nesterov needs a momentum above 0 and no dampening")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        if not isinstance(params, Iterable):
            raise TypeError(f"SGD: expected model.parameters(), got {type(params).__name__}")
        given = list(params)
        if not given:
            raise ValueError("SGD: expected parameters, got none")
        if not isinstance(given[0], dict):
            given = [{"params": given}]
        self.param_groups: list[dict[str, Any]] = []
        self.velocity: dict[int, Array] = {}  # by the parameter's place over all groups
        seen: set[int] = set()
        for group in given:
            unknown = set(group) - set(defaults) - {"params"}
            if "params" not in group or unknown:
                raise ValueError(f'SGD: a group needs "params" and knows {", ".join(defaults)}, got {", ".join(group)}')
            tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            for tensor in tensors:
                if not isinstance(tensor, Tensor) or not tensor.is_leaf or tensor.dtype.kind != "f":
                    raise TypeError(f"SGD: expected floating-point leaf Tensors, got {tensor!r}")
                if id(tensor) in seen:
                    raise ValueError(f"SGD: a parameter of shape {tensor.shape} appears twice")
                seen.add(id(tensor))
            options = {**defaults, **group}
            for name in ("lr", "momentum", "dampening", "weight_decay"):
                options[name] = float(options[name])  # a Tensor is welcome here, and not in the formula
            self.param_groups.append({**options, "params": tensors})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients (or set them to zero)."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.array[...] = 0

    @no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, in place."""
        place = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(place, p.array, p.grad.array, group)
                place += 1

    def update(self, place: int, p: Array, grad: Array, group: dict[str, Any]) -> None:
        """Move one parameter: the formula of the class, by one of the three functions at the top."""
        if grad.shape != p.shape:
            raise ValueError(f"SGD: a parameter of shape {p.shape} has a gradient of shape {grad.shape}")
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        if momentum == 0:
            one_launch(plain_step, p)(p, grad, float(lr), weight_decay)
            return
        if place not in self.velocity:
            self.velocity[place] = array_module(p).zeros(p.shape, p.dtype)
        elif group["dampening"] != 0:
            grad = (1 - group["dampening"]) * grad
            weight_decay = (1 - group["dampening"]) * weight_decay
        v = self.velocity[place]
        if device_of(v) != device_of(p):
            raise ValueError(
                f"SGD: a parameter is on {device_of(p)} and its velocity on {device_of(v)}: move the model before the "
                "first step, or make a new optimizer and load the old one's state_dict()"
            )
        step = one_launch(nesterov_step if group["nesterov"] else momentum_step, p)
        step(p, grad, v, float(lr), momentum, weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """The options of every group and the velocities, by the parameter's place."""
        groups = [{name: value for name, value in g.items() if name != "params"} for g in self.param_groups]
        return {"param_groups": groups, "velocity": {place: v.copy() for place, v in self.velocity.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state_dict().

        Errors: ValueError for another number of groups, or a velocity without its parameter.
        """
        tensors = [p for group in self.param_groups for p in group["params"]]
        if len(state["param_groups"]) != len(self.param_groups):
            raise ValueError(
                f"SGD.load_state_dict: expected {len(self.param_groups)} groups, got {len(state['param_groups'])}"
            )
        for place, v in state["velocity"].items():
            if not 0 <= int(place) < len(tensors) or v.shape != tensors[int(place)].shape:
                raise ValueError(f"SGD.load_state_dict: velocity {place} {v.shape} belongs to no parameter here")
        for group, options in zip(self.param_groups, state["param_groups"], strict=True):
            group.update(options)
        self.velocity = {}
        for place, v in state["velocity"].items():
            p = tensors[int(place)].array
            self.velocity[int(place)] = to_device(v, device_of(p)).astype(p.dtype)  # a copy
