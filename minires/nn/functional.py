"""Kernel pairs bound to the graph, under the names of torch.nn.functional."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minires import kernels
from minires.engine import random
from minires.engine.convert import floating, one_dtype, operands
from minires.engine.modes import is_grad_enabled
from minires.engine.tensor import Tensor, apply
from minires.kernels.backend import Array

IntOrPair = int | tuple[int, int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """Two-dimensional convolution.

    Shapes: input (N, C, H, W), weight (O, C/groups, KH, KW), bias (O,) or None -> (N, O, OH, OW).
    Errors: ValueError or TypeError for sizes, options or dtypes that do not fit.
    Source: torch.nn.functional.conv2d.
    """
    needs_dx = getattr(input, "_requires_grad", True)  # images need no gradient
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "needs_dx": needs_dx}
    return apply(kernels.conv2d_forward, kernels.conv2d_backward, input, weight, bias, **options)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    total: Callable[[Array], Array] | None = None,
) -> Tensor:
    """Batch normalisation: by the batch's statistics in training, by the running ones in evaluation.

    In training the running statistics, where given, move: running += momentum * (batch - running), with the unbiased
    variance.
    Shapes: input (N, C, H, W) or (N, C), all others (C,) or None -> as input.
    Args: total, which sums an array over several workers: the batch's statistics are then those of all their batches.
    Errors: ValueError for one value a channel in training, for evaluation without statistics, for wrong shapes.
    Source: torch.nn.functional.batch_norm.
    """
    inputs = (input, weight, bias, running_mean, running_var)
    if training and total is None:
        return apply(kernels.batch_norm_forward, kernels.batch_norm_backward, *inputs, eps=eps, momentum=momentum)
    if training:
        options = {"total": total, "eps": eps, "momentum": momentum}
        return apply(kernels.sync_batch_norm_forward, kernels.sync_batch_norm_backward, *inputs, **options)
    return apply(kernels.batch_norm_inference_forward, kernels.batch_norm_inference_backward, *inputs, eps=eps)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0). Any shape.

    inplace=True writes the result over the input where nothing is recorded (under no_grad), and changes nothing
    elsewhere: a backward that needs the old values never finds new ones.
    Source: torch.nn.functional.relu.
    """
    return apply(kernels.relu_forward, kernels.relu_backward, input, inplace=inplace and not is_grad_enabled())


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x). Any shape. Source: torch.sigmoid."""
    return apply(kernels.sigmoid_forward, kernels.sigmoid_backward, *floating("sigmoid", input))


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent. Any shape. Source: torch.tanh."""
    return apply(kernels.tanh_forward, kernels.tanh_backward, *floating("tanh", input))


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value of each window; the stride is the kernel size where it is None.

    Shapes: input (N, C, H, W) -> (N, C, OH, OW).
    Errors: ValueError for a window larger than the padded input, or padding over half the kernel.
    Source: torch.nn.functional.max_pool2d.
    """
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    return apply(kernels.max_pool2d_forward, kernels.max_pool2d_backward, input, ceil_mode=ceil_mode, **options)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The average of each window; the stride is the kernel size where it is None.

    Shapes: input (N, C, H, W) -> (N, C, OH, OW).
    Errors: ValueError for a window larger than the padded input, or padding over half the kernel.
    Source: torch.nn.functional.avg_pool2d.
    """
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    kernel = kernels.avg_pool2d_forward, kernels.avg_pool2d_backward
    return apply(*kernel, input, count_include_pad=count_include_pad, **options)


def adaptive_avg_pool2d(input: Tensor, output_size: int | None | tuple[int | None, int | None]) -> Tensor:
    """Averages over a grid of windows that gives the wished output size; None keeps the input's.

    Shapes: input (N, C, H, W) -> (N, C, OH, OW).
    Errors: ValueError for an output size below 1.
    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    both = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(both) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size must be an int, None or a pair, got {output_size!r}")
    OH, OW = both
    if OH == OW == 1:
        return apply(kernels.global_avg_pool_forward, kernels.global_avg_pool_backward, input)
    wished = (input.shape[-2] if OH is None else OH, input.shape[-1] if OW is None else OW)
    return apply(kernels.adaptive_avg_pool2d_forward, kernels.adaptive_avg_pool2d_backward, input, output_size=wished)


def residual_add(input: Tensor, branch: Tensor, inplace: bool = False) -> Tensor:
    """The residual connection, branch + input.

    Shapes: input, branch (the same) -> the same. inplace=True writes over the branch where relu's would.
    Errors: ValueError where the shapes differ.
    Source: He et al. 2015, equation 1.
    """
    over = inplace and not is_grad_enabled()
    return apply(kernels.residual_add_forward, kernels.residual_add_backward, input, branch, inplace=over)


def shortcut_a(input: Tensor, out_channels: int, stride: IntOrPair = 1) -> Tensor:
    """Option A: every stride-th pixel, and zeros for the new channels, half of them before and half behind.

    Shapes: input (N, C, H, W) -> (N, out_channels, ceil(H / SH), ceil(W / SW)).
    Errors: ValueError for fewer output channels than input channels.
    Source: He et al. 2015, section 3.3.
    """
    return apply(
        kernels.shortcut_a_forward, kernels.shortcut_a_backward, input, out_channels=out_channels, stride=stride
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x w.T + b.

    Shapes: input (..., in), weight (out, in), bias (out,) or None -> (..., out).
    Errors: ValueError for sizes that do not fit.
    Source: torch.nn.functional.linear.
    """
    return apply(kernels.linear_forward, kernels.linear_backward, input, weight, bias)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, generator: np.random.Generator | None = None
) -> Tensor:
    """In training, zeros with probability p and the rest scaled up by 1 / (1 - p); otherwise the input itself.

    Shapes: any. Draws from ``generator``, or MiniRes's own (``manual_seed``).
    Errors: ValueError for a p outside 0 <= p <= 1.
    Source: torch.nn.functional.dropout.
    """
    p = float(p)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must lie between 0 and 1, got {p}")
    if input.dtype.kind != "f":
        raise TypeError(f"dropout: input must be floating point, got {input.dtype}")
    if not training or p == 0:
        return input
    generator = random.default_generator(generator)
    return apply(kernels.dropout_forward, kernels.dropout_backward, input, p=p, generator=generator)


def softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Probabilities from logits, along dim. Any shape. Source: torch.softmax."""
    return apply(kernels.softmax_forward, kernels.softmax_backward, *floating("softmax", input), axis=dim)


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of the softmax along dim. Any shape. Source: torch.log_softmax."""
    return apply(kernels.log_softmax_forward, kernels.log_softmax_backward, *floating("log_softmax", input), axis=dim)


def cross_entropy(
    input: Tensor,
    target: Any,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of logits against class numbers.

    Shapes: input (N, C) logits, target (N,) integers -> a scalar, or (N,) with reduction="none".
    Errors: TypeError for labels that are not integers; ValueError for one out of range or shapes that do not fit.
    Source: torch.nn.functional.cross_entropy.
    """
    target = target if isinstance(target, Tensor) else Tensor(target)
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}
    return apply(kernels.cross_entropy_forward, kernels.cross_entropy_backward, input, target, **options)


def pad(input: Tensor, pad: tuple[int, ...], value: float = 0.0) -> Tensor:
    """A border of constant values, in PyTorch's order: (left, right, top, bottom, ...), the last axis first.

    Shapes: input -> larger by the widths.
    Errors: ValueError for an odd number of widths, too many, or a negative one.
    Source: torch.nn.functional.pad.
    """
    if len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(f"pad: expected (before, after) for up to {input.ndim} axes, the last axis first, got {pad}")
    widths = [(0, 0)] * input.ndim
    for i in range(len(pad) // 2):
        widths[-1 - i] = (pad[2 * i], pad[2 * i + 1])
    return apply(kernels.pad_forward, kernels.pad_backward, input, widths=tuple(widths), value=value)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim to end_dim as one. Source: torch.flatten."""
    return input.flatten(start_dim, end_dim)


def cat(tensors: list[Tensor] | tuple[Tensor, ...], dim: int = 0) -> Tensor:
    """Tensors one after the other along dim. Errors: ValueError where they do not fit. Source: torch.cat."""
    return apply(kernels.concatenate_forward, kernels.concatenate_backward, *one_dtype("cat", tensors), axis=dim)


def stack(tensors: list[Tensor] | tuple[Tensor, ...], dim: int = 0) -> Tensor:
    """Tensors along a new axis. Errors: ValueError where shapes differ. Source: torch.stack."""
    return apply(kernels.stack_forward, kernels.stack_backward, *one_dtype("stack", tensors), axis=dim)


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product, batched and broadcast. Source: torch.matmul."""
    return input @ other


def maximum(input: Tensor, other: Tensor) -> Tensor:
    """The larger of two tensors, element by element. Source: torch.maximum."""
    return apply(kernels.maximum_forward, kernels.maximum_backward, *operands("maximum", input, other))


def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of two tensors, element by element. Source: torch.minimum."""
    return apply(kernels.minimum_forward, kernels.minimum_backward, *operands("minimum", input, other))


def where(condition: Tensor, input: Tensor, other: Tensor) -> Tensor:
    """input where the condition holds, other elsewhere. Errors: TypeError for a condition that is not boolean.

    Source: torch.where.
    """
    return apply(kernels.where_forward, kernels.where_backward, condition, *operands("where", input, other))
