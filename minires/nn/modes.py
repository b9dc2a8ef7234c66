"""Looking at a model and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minires.nn.module import Module


@contextmanager
def in_mode(model: Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the ``with``; afterwards every part has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def statistics_kept(model: Module) -> Iterator[None]:
    """Afterwards every buffer, such as a running mean, holds the values that it had."""
    statistics = [(buffer, buffer.array.copy()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, values in statistics:
            buffer.array[...] = values
