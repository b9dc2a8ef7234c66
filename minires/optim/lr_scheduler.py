"""Learning-rate schedules, under PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minires.optim.optimizer import Optimizer


class LRScheduler:
    """Base of the schedules: every group's rate is a function of the number of ``step()`` calls so far.

    Subclasses write ``rate(base_lr, step)``. Attribute ``last_epoch`` counts the steps. A schedule writes the rate anew
    at every step, so one optimiser takes one schedule; SequentialLR joins several.
    """

    def __init__(self, optimizer: Optimizer):
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

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state_dict(). Errors: ValueError for another number of groups."""
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise ValueError(f"expected the rates of {len(self.base_lrs)} groups, got {len(state['base_lrs'])}")
        self.last_epoch, self.base_lrs = int(state["last_epoch"]), list(state["base_lrs"])
        self.set_rates()

    def get_last_lr(self) -> list[float]:
        """The rates now, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]


class StepLR(LRScheduler):
    """base_lr gamma^(step // step_size). Source: torch.optim.lr_scheduler.StepLR."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1):
        if step_size < 1:
            raise ValueError(f"StepLR: step_size must be at least 1, got {step_size}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        return base_lr * self.gamma ** (step // self.step_size)


class MultiStepLR(LRScheduler):
    """base_lr gamma^(number of milestones reached). Source: torch.optim.lr_scheduler.MultiStepLR."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1):
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

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0):
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

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ):
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
        optimizer: Optimizer,
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
        if step > self.total_steps:
            raise ValueError(f"OneCycleLR: stepped {step} times, it was made for total_steps={self.total_steps}")
        if step <= self.top and self.top > 0:
            return cosine(self.initial_lr, self.max_lr, step / self.top)
        return cosine(self.max_lr, self.min_lr, (step - self.top) / (self.total_steps - 1 - self.top or 1))


class SequentialLR(LRScheduler):
    """One schedule after the other: schedulers[i] rules until milestones[i], and each counts from its own start.

    Source: torch.optim.lr_scheduler.SequentialLR.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]):
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: expected {len(schedulers) - 1} milestones between {len(schedulers)} schedulers, "
                f"got {len(milestones)}"
            )
        if any(isinstance(schedule, OneCycleLR) for schedule in schedulers):
            raise ValueError("SequentialLR: OneCycleLR has its own warm-up and stands alone")
        if list(milestones) != sorted(milestones):
            raise ValueError(f"SequentialLR: milestones must grow, got {list(milestones)}")
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
