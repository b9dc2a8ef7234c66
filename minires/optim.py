"""Optimisers and learning-rate schedules, under PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from minires.backend import Array
from minires.graph import no_grad
from minires.tensor import Tensor


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
        given = list(params)
        if not given:
            raise ValueError("SGD: expected parameters, got none")
        if not isinstance(given[0], dict):
            given = [{"params": given}]
        self.param_groups: list[dict[str, Any]] = []
        self.velocity: dict[int, Array] = {}  # by the parameter's place over all groups
        for group in given:
            tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            for tensor in tensors:
                if not isinstance(tensor, Tensor) or not tensor.is_leaf or tensor.dtype.kind != "f":
                    raise TypeError(f"SGD: expected floating-point leaf Tensors, got {tensor!r}")
            self.param_groups.append({**defaults, **group, "params": tensors})

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
        """Move one parameter: the formula of the class, a line a step."""
        momentum = group["momentum"]
        g = grad
        if group["weight_decay"] != 0:
            g = g + group["weight_decay"] * p
        if momentum != 0:
            if place not in self.velocity:
                self.velocity[place] = g.copy()
            else:
                self.velocity[place] *= momentum
                self.velocity[place] += g if group["dampening"] == 0 else (1 - group["dampening"]) * g
            v = self.velocity[place]
            g = g + momentum * v if group["nesterov"] else v
        p -= group["lr"] * g

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
        self.velocity = {int(place): v.copy() for place, v in state["velocity"].items()}


class LRScheduler:
    """Base of the schedules: every group's rate is a function of the number of ``step()`` calls so far.

    Subclasses write ``rate(base_lr, step)``. Attribute ``last_epoch`` counts the steps.
    """

    def __init__(self, optimizer: SGD):
        self.optimizer = optimizer
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self.set_rates()

    def rate(self, base_lr: float, step: int) -> float:
        """The learning rate after so many steps."""
        raise NotImplementedError

    def set_rates(self) -> None:
        """Write the rates of this moment into the optimiser."""
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.rate(base_lr, self.last_epoch)

    def step(self) -> None:
        """One epoch (or one batch) further."""
        self.last_epoch += 1
        self.set_rates()

    def get_last_lr(self) -> list[float]:
        """The rates now, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]


class StepLR(LRScheduler):
    """base_lr gamma^(step // step_size). Source: torch.optim.lr_scheduler.StepLR."""

    def __init__(self, optimizer: SGD, step_size: int, gamma: float = 0.1):
        if step_size < 1:
            raise ValueError(f"StepLR: step_size must be at least 1, got {step_size}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        return base_lr * self.gamma ** (step // self.step_size)


class MultiStepLR(LRScheduler):
    """base_lr gamma^(number of milestones reached). Source: torch.optim.lr_scheduler.MultiStepLR."""

    def __init__(self, optimizer: SGD, milestones: Sequence[int], gamma: float = 0.1):
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        reached = sum(1 for milestone in self.milestones if step >= milestone)
        return base_lr * self.gamma**reached


class CosineAnnealingLR(LRScheduler):
    """eta_min + (base_lr - eta_min) (1 + cos(pi step / T_max)) / 2.

    Source: Loshchilov & Hutter 2017; torch.optim.lr_scheduler.CosineAnnealingLR.
    """

    def __init__(self, optimizer: SGD, T_max: int, eta_min: float = 0.0):
        if T_max < 1:
            raise ValueError(f"CosineAnnealingLR: T_max must be at least 1, got {T_max}")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        return self.eta_min + (base_lr - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class LinearLR(LRScheduler):
    """Warm-up: the rate grows from start_factor to end_factor of itself in total_iters steps, then stays.

    Source: torch.optim.lr_scheduler.LinearLR; warm-up: Goyal et al. 2017.
    """

    def __init__(self, optimizer: SGD, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5):
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1 or total_iters < 1:
            raise ValueError(
                f"LinearLR: expected 0 < start_factor <= 1, 0 <= end_factor <= 1 and total_iters >= 1, "
                f"got {start_factor}, {end_factor}, {total_iters}"
            )
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        done = min(step, self.total_iters) / self.total_iters
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * done)


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to max_lr along a cosine, and down to max_lr / div_factor / final_div_factor.

    Meant to be stepped once a batch, total_steps times; the momentum is left alone.
    Source: Smith & Topin 2018; torch.optim.lr_scheduler.OneCycleLR(cycle_momentum=False).
    """

    def __init__(
        self,
        optimizer: SGD,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ):
        if total_steps < 1 or not 0 <= pct_start <= 1:
            raise ValueError(
                f"OneCycleLR: expected total_steps >= 1 and 0 <= pct_start <= 1, got {total_steps}, {pct_start}"
            )
        self.max_lr = max_lr
        self.total_steps = total_steps
        self.top = pct_start * total_steps - 1
        self.initial_lr = max_lr / div_factor
        self.min_lr = self.initial_lr / final_div_factor
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        if step <= self.top:
            return cosine(self.initial_lr, self.max_lr, step / self.top)
        return cosine(self.max_lr, self.min_lr, (step - self.top) / max(self.total_steps - 1 - self.top, 1))


class SequentialLR(LRScheduler):
    """One schedule after the other: schedulers[i] rules until milestones[i], and each counts from its own start.

    Source: torch.optim.lr_scheduler.SequentialLR.
    """

    def __init__(self, optimizer: SGD, schedulers: Sequence[LRScheduler], milestones: Sequence[int]):
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: expected {len(schedulers) - 1} milestones between {len(schedulers)} schedulers, "
                f"got {len(milestones)}"
            )
        self.schedulers = list(schedulers)
        self.milestones = list(milestones)
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        active = sum(1 for milestone in self.milestones if step >= milestone)
        start = self.milestones[active - 1] if active else 0
        return self.schedulers[active].rate(base_lr, step - start)


def cosine(start: float, end: float, done: float) -> float:
    """From start (done = 0) to end (done = 1) along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
