"""The layers: each holds its parameters and options, and hands them to ``functional``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from minires.engine.tensor import Tensor, wrap
from minires.kernels.backend import Array
from minires.kernels.shapes import pair
from minires.nn import functional as F
from minires.nn import init
from minires.nn.module import Module, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

IntOrPair = int | tuple[int, int]


def empty(*shape: int) -> Parameter:
    """A float32 parameter whose values are still to be drawn."""
    import numpy as np

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
        if groups < 1 or in_channels < 1 or out_channels < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: in_channels and out_channels must be positive and divisible by groups, "
                f"got in_channels={in_channels}, out_channels={out_channels}, groups={groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
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
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"


class BatchNorm2d(Module):
    """Batch normalisation of feature maps, with running statistics for evaluation.

    Shapes: (N, num_features, H, W) -> the same; weight, bias, running_mean, running_var (num_features,).
    momentum weighs the new value; None averages over all batches seen.
    Errors: ValueError for another number of channels, or in training one value a channel.
    Source: torch.nn.BatchNorm2d.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ):
        import numpy as np

        if num_features < 1:
            raise ValueError(f"BatchNorm2d: num_features must be positive, got {num_features}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.weight = init.ones_(empty(num_features)) if affine else None
        self.bias = empty(num_features) if affine else None
        ones = np.ones(num_features, np.float32)
        self.register_buffer("running_mean", wrap(0 * ones) if track_running_stats else None)
        self.register_buffer("running_var", wrap(ones) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", wrap(np.zeros((), np.int64)) if track_running_stats else None)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or input.shape[1] != self.num_features:
            raise ValueError(f"BatchNorm2d: expected (N, {self.num_features}, H, W), got {input.shape}")
        use_batch = self.training or not self.track_running_stats
        track = self.training and self.track_running_stats
        momentum = self.momentum
        if momentum is None:
            momentum = (1 / (self.num_batches_tracked.array + 1)).astype(input.dtype) if track else 0.0
        mean, var, total = self.running_mean, self.running_var, self.total()
        y = F.batch_norm(input, mean, var, self.weight, self.bias, use_batch, momentum, self.eps, total)
        if track:
            self.num_batches_tracked.array += 1
        return y

    def total(self) -> Callable[[Array], Array] | None:
        """How sums are taken over several workers: not at all. SyncBatchNorm has another answer."""
        return None

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class ReLU(Module):
    """max(x, 0). inplace=True saves memory under no_grad, see functional.relu. Source: torch.nn.ReLU."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, self.inplace)


class Sigmoid(Module):
    """1 / (1 + e^-x). Source: torch.nn.Sigmoid."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(Module):
    """Hyperbolic tangent. Source: torch.nn.Tanh."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class MaxPool2d(Module):
    """The largest value of each window; the stride is the kernel size where it is None.

    Shapes: (N, C, H, W) -> (N, C, OH, OW).
    Source: torch.nn.MaxPool2d.
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
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{text}, dilation={self.dilation}, ceil_mode={self.ceil_mode}"


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


class AdaptiveAvgPool2d(Module):
    """Averages over a grid of windows that gives the wished output size; None keeps the input's.

    Shapes: (N, C, H, W) -> (N, C, OH, OW).
    Source: torch.nn.AdaptiveAvgPool2d.
    """

    def __init__(self, output_size: Any):
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class Flatten(Module):
    """Axes start_dim to end_dim as one. Source: torch.nn.Flatten."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Linear(Module):
    """A fully connected layer, with initial values uniform within 1 / sqrt(in_features).

    Shapes: (..., in_features) -> (..., out_features); weight (out_features, in_features).
    Errors: ValueError for sizes below 1, or another number of features.
    Source: torch.nn.Linear.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, generator: np.random.Generator | None = None
    ):
        if in_features < 1 or out_features < 1:
            raise ValueError(f"Linear: sizes must be positive, got in {in_features}, out {out_features}")
        self.in_features = in_features
        self.out_features = out_features
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
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, self.ignore_index, self.reduction, self.label_smoothing)
