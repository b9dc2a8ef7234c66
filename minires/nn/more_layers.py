"""Other layers: activations, pooling, flatten, dropout, the loss, and batch norm over several workers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minires.engine.tensor import Tensor
from minires.kernels.backend import Array
from minires.nn import functional as F
from minires.nn.functional import IntOrPair
from minires.nn.layers import BatchNorm2d
from minires.nn.module import Module


class Sigmoid(Module):
    """1 / (1 + e^-x). Source: torch.nn.Sigmoid."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(Module):
    """Hyperbolic tangent. Source: torch.nn.Tanh."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class AvgPool2d(Module):
    """The average of each window; the stride is the kernel size where it is None.

    Shapes: (N, C, H, W) -> (N, C, OH, OW).
    Source: torch.nn.AvgPool2d.
    """

    def __init__(
        self,
        kernel_size: IntOrPair,
        stride: IntOrPair | None = None,
        padding: IntOrPair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class Flatten(Module):
    """Axes start_dim to end_dim as one. Source: torch.nn.Flatten."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Dropout(Module):
    """In training, zeros with probability p. Draws from ``generator``, or MiniRes's own. Source: torch.nn.Dropout."""

    def __init__(self, p: float = 0.5, generator: np.random.Generator | None = None):
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must lie between 0 and 1, got {p}")
        self.p = p
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """The input itself. Source: torch.nn.Identity."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class CrossEntropyLoss(Module):
    """Cross entropy of logits (N, C) against class numbers (N,). Source: torch.nn.CrossEntropyLoss."""

    def __init__(self, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0):
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, self.ignore_index, self.reduction, self.label_smoothing)


class SyncBatchNorm(BatchNorm2d):
    """BatchNorm2d whose batch, in training, is that of all workers: several then compute what one would.

    Every worker must run it, forward and backward. A single worker, or one inside ``parallel.alone``, runs BatchNorm2d.
    Shapes, errors: as BatchNorm2d.
    Source: torch.nn.SyncBatchNorm.
    """

    #: Gives the sum over all workers, or None where there is one: ``minires.parallel`` puts its own here.
    workers: Callable[[], Callable[[Array], Array] | None] | None = None

    @property
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
