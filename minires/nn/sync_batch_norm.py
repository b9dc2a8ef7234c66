"""Batch norm by the statistics of all workers' batches together."""

from __future__ import annotations

from collections.abc import Callable

from minires.kernels.backend import Array
from minires.nn.layers import BatchNorm2d
from minires.nn.module import Module


class SyncBatchNorm(BatchNorm2d):
    """BatchNorm2d whose batch, in training, is that of all workers: several then compute what one would.

    Every worker must run it, forward and backward. A single worker, or one inside ``parallel.alone``, runs BatchNorm2d.
    Shapes, errors: as BatchNorm2d.
    Source: torch.nn.SyncBatchNorm.
    """

    #: Gives the sum over all workers, or None where there is one: ``minires.parallel`` puts its own here.
    workers: Callable[[], Callable[[Array], Array] | None] | None = None

    def total(self) -> Callable[[Array], Array] | None:
        """The sum over all workers; None where there is only this one."""
        return None if SyncBatchNorm.workers is None else SyncBatchNorm.workers()

    @classmethod
    def convert_sync_batchnorm(cls, module: Module) -> Module:
        """The module with each BatchNorm2d in it replaced; parameters and statistics stay the same tensors.

        Source: torch.nn.SyncBatchNorm.convert_sync_batchnorm.
        """
        if type(module) is BatchNorm2d:
            converted = cls.__new__(cls)
            vars(converted).update(vars(module))
            return converted
        for name, child in module.named_children():
            new = cls.convert_sync_batchnorm(child)
            if new is not child:
                setattr(module, name, new)
        return module
