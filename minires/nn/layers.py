"""The layers of a residual network: each holds its parameters and options, and hands them to ``functional``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.engine.tensor import Tensor, wrap
from minires.kernels.backend import Array
from minires.kernels.shapes import pair
from minires.nn import functional as F
from minires.nn import init
from minires.nn.checks import check_channels, check_features, check_images, check_sizes
from minires.nn.functional import IntOrPair
from minires.nn.module import Module, Parameter


def empty(*shape: int) -> Parameter:
    """A float32 parameter of zeros, to be drawn or left so."""
    return Parameter(np.zeros(shape, np.float32))


class Conv2d(Module):
    """Two-dimensional convolution. Kaiming-uniform initial weights, as PyTorch's.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, OH, OW); weight (out_channels, in_channels/groups, KH, KW).
    Errors: ValueError for channels that groups does not divide, or options below their least value.
    Source: torch.nn.Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        generator: np.random.Generator | None = None,
    ):
        check_channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = pair(kernel_size, "Conv2d", "kernel_size", 1)
        self.stride = pair(stride, "Conv2d", "stride", 1)
        self.padding = pair(padding, "Conv2d", "padding", 0)
        self.dilation = pair(dilation, "Conv2d", "dilation", 1)
        self.groups = groups
        self.weight = empty(out_channels, in_channels // groups, *self.kernel_size)
        self.bias = empty(out_channels) if bias else None
        init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if bias:
            bound = 1 / math.sqrt(init.fans(self.weight)[0])
            init.uniform_(self.bias, -bound, bound, generator)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != (0, 0) else ""
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        return text if self.bias is not None else text + ", bias=False"


class BatchNorm2d(Module):
    """Batch normalisation of feature maps, with running statistics for evaluation.

    Shapes: (N, num_features, H, W) -> the same; weight, bias, running_mean, running_var (num_features,).
    momentum weighs the new value; None averages over all batches seen.
    Errors: ValueError for another number of channels, or in training one value a channel.
    Source: torch.nn.BatchNorm2d.
    """

    total: Callable[[Array], Array] | None = None  # how sums are taken over several workers: SyncBatchNorm knows

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ):
        check_features(num_features)
        self.num_features = num_features
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = init.ones_(empty(num_features)) if affine else None
        self.bias = empty(num_features) if affine else None
        ones = np.ones(num_features, np.float32)
        self.register_buffer("running_mean", wrap(0 * ones) if track_running_stats else None)
        self.register_buffer("running_var", wrap(ones) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", wrap(np.zeros((), np.int64)) if track_running_stats else None)

    def forward(self, input: Tensor) -> Tensor:
        check_images(input, self.num_features)
        use_batch = self.training or not self.track_running_stats
        track = self.training and self.track_running_stats
        momentum = self.averaging(input.dtype) if self.momentum is None else self.momentum
        mean, var, total = self.running_mean, self.running_var, self.total
        y = F.batch_norm(input, mean, var, self.weight, self.bias, use_batch, momentum, self.eps, total)
        if track:
            self.num_batches_tracked.array += 1
        return y

    def averaging(self, dtype: np.dtype) -> Any:
        """The momentum that makes the running statistics an average over all batches: one over their number."""
        return (1 / (self.num_batches_tracked.array + 1)).astype(dtype) if self.track_running_stats else 0.0

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class ReLU(Module):
    """max(x, 0). inplace=True saves memory under no_grad, see functional.relu. Source: torch.nn.ReLU."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, self.inplace)


class MaxPool2d(Module):
    """The largest value of each window; the stride is the kernel size where it is None.

    Shapes: (N, C, H, W) -> (N, C, OH, OW). Source: torch.nn.MaxPool2d.
    """

    def __init__(
        self,
        kernel_size: IntOrPair,
        stride: IntOrPair | None = None,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        ceil_mode: bool = False,
    ):
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation, self.ceil_mode = dilation, ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{text}, dilation={self.dilation}, ceil_mode={self.ceil_mode}"


class AdaptiveAvgPool2d(Module):
    """Averages over a grid of windows that gives the wished output size; None keeps the input's.

    Shapes: (N, C, H, W) -> (N, C, OH, OW). Source: torch.nn.AdaptiveAvgPool2d.
    """

    def __init__(self, output_size: Any):
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class Linear(Module):
    """A fully connected layer, with initial values uniform within 1 / sqrt(in_features).

    Shapes: (..., in_features) -> (..., out_features); weight (out_features, in_features).
    Errors: ValueError for sizes below 1, or another number of features.
    Source: torch.nn.Linear.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, generator: np.random.Generator | None = None
    ):
        check_sizes(in_features, out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = empty(out_features, in_features)
        self.bias = empty(out_features) if bias else None
        bound = 1 / math.sqrt(in_features)
        init.uniform_(self.weight, -bound, bound, generator)
        if bias:
            init.uniform_(self.bias, -bound, bound, generator)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
