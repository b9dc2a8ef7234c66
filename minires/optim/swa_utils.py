"""Averages of a model's weights over its training, which often judge better than the last weights do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.nn import Module

#: (averaged, current, how many were averaged already) -> the new average
Average = Callable[[Tensor, Tensor, int], Tensor]


def get_ema_avg_fn(decay: float = 0.999) -> Average:
    """The exponential moving average: averaged = decay averaged + (1 - decay) current.

    Errors: ValueError for a decay outside [0, 1]. Source: torch.optim.swa_utils.get_ema_avg_fn.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"get_ema_avg_fn: decay must lie between 0 and 1, got {decay}")

    def ema_update(averaged: Tensor, current: Tensor, num_averaged: int) -> Tensor:
        return decay * averaged + (1 - decay) * current

    return ema_update


def get_swa_avg_fn() -> Average:
    """The plain mean of all so far. Source: Izmailov et al. 2018; torch.optim.swa_utils.get_swa_avg_fn."""

    def swa_update(averaged: Tensor, current: Tensor, num_averaged: int) -> Tensor:
        return averaged + (current - averaged) / (num_averaged + 1)

    return swa_update


class AveragedModel(Module):
    """A copy of a model whose parameters are an average of the model's over its training.

    Call ``update_parameters(model)`` after each step of the optimiser; the first call copies. Buffers (batch norm's
    running statistics) are copied each time, or averaged too with use_buffers=True.
    Args: avg_fn, how to average: the mean of all where None, or ``get_ema_avg_fn(decay)``.
    Source: torch.optim.swa_utils.AveragedModel.
    """

    def __init__(self, model: Module, avg_fn: Average | None = None, use_buffers: bool = False):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.avg_fn = get_swa_avg_fn() if avg_fn is None else avg_fn
        self.use_buffers = use_buffers
        self.register_buffer("n_averaged", Tensor(0))

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    @no_grad()
    def update_parameters(self, model: Module) -> None:
        """Take the model's parameters as they are now into the average."""
        count = int(self.n_averaged.item())
        averaged, current = list(self.module.parameters()), list(model.parameters())
        mine, theirs = list(self.module.buffers()), list(model.buffers())
        if self.use_buffers:
            averaged, current = averaged + mine, current + theirs
        else:
            for buffer, source in zip(mine, theirs, strict=True):
                buffer.array[...] = source.array
        for average, source in zip(averaged, current, strict=True):
            if count == 0 or average.dtype.kind != "f":
                average.array[...] = source.array
            else:
                average.array[...] = self.avg_fn(average.detach(), source.detach(), count).array
        self.n_averaged.array += 1
