"""What each exercise's functions are tried on, and what their forwards should give.

The trials: small arrays of sizes that are all different, and options. The first trial of a kernel is checked
numerically; the others are compared with the shipped kernel. All arrays are float64, drawn once and for all.

The definitions: one number at a time, loops over indices, as the formulas are written. These are references, not
solutions: they are slow, and none of them knows a shortcut or a backward. gradcheck has those of the other kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minires import kernels
from minires.exercises.basic_block import basic_block_backward, basic_block_forward
from minires.exercises.training import sgd_step
from minires.gradcheck import definitions as loops
from minires.kernels.backend import Array


class Trial(NamedTuple):
    """A kernel and what it is given.

    Args: forward and backward, shipped functions, which the student's of the same names replace; definition, what the
        forward should give, by loops; names, of the inputs; kind, what check_kernel calls this kernel; plain, for a
        function that returns its result without a cache, or several results, named by ``results``.
    """

    forward: Callable
    backward: Callable | None
    definition: Callable | None
    names: tuple[str, ...]
    inputs: tuple[Any, ...]
    options: dict[str, Any] = {}
    kind: str | None = None
    plain: bool = False
    results: tuple[str, ...] = ("y",)


def draw(*shape: int, seed: int = 0) -> Array:
    """Normal random numbers, the same for the same shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def add_broadcast() -> list[Trial]:
    """Axes of size 1, and axes that are missing."""
    pair = (kernels.add_forward, kernels.add_backward, add_loops, ("a", "b"))
    shape = {"shape": (4, 1)}
    return [
        Trial(
            kernels.unbroadcast,
            None,
            unbroadcast_loops,
            ("dy",),
            (draw(3, 4, 5),),
            shape,
            plain=True,
            results=("total",),
        ),
        Trial(*pair, (draw(3, 4, 5), draw(4, 1))),
        Trial(*pair, (draw(3, 1), draw(2, 1, 5))),
        Trial(*pair, (draw(2, 3), draw(2, 3, seed=1))),
    ]


def relu() -> list[Trial]:
    """Both signs, and 0 itself."""
    pair = (kernels.relu_forward, kernels.relu_backward, loops.relu_loops, ("x",))
    return [Trial(*pair, (draw(3, 4, 5),), kind="relu"), Trial(*pair, (np.array([-2.0, 0.0, 3.0, 0.0]),))]


def linear() -> list[Trial]:
    """With a bias; and without one, on two leading axes."""
    pair = (kernels.linear_forward, kernels.linear_backward, loops.linear_loops)
    return [
        Trial(*pair, ("x", "w", "b"), (draw(3, 4), draw(5, 4), draw(5)), kind="linear"),
        Trial(*pair, ("x", "w"), (draw(2, 3, 4), draw(5, 4))),
    ]


def softmax_cross_entropy() -> list[Trial]:
    """The plain loss, logits that overflow, smoothing, a label to ignore, one loss a row."""
    softmax = (kernels.log_softmax_forward, kernels.log_softmax_backward, log_softmax_loops, ("x",))
    pair = (kernels.cross_entropy_forward, kernels.cross_entropy_backward, loops.cross_entropy_loops)
    names = ("logits", "labels")
    logits, labels = 2 * draw(4, 6), np.array([2, 0, 5, 2])
    ignored = np.array([2, -100, 5, 2])
    smooth = {"label_smoothing": 0.2}
    return [
        Trial(*softmax, (draw(3, 5),), {"axis": -1}),
        Trial(*softmax, (1000 * draw(3, 5),), {"axis": 0}),
        Trial(*pair, names, (logits, labels), kind="cross_entropy"),
        Trial(*pair, names, (logits, ignored), smooth),
        Trial(*pair, names, (500 * logits, labels), {"reduction": "none"}),
        Trial(*pair, names, (logits, ignored), {"reduction": "sum"}),
    ]


def im2col() -> list[Trial]:
    """im2col by itself, then both functions at work in the textbook's convolution."""
    x = draw(2, 3, 6, 5)
    columns = (kernels.im2col, None, im2col_loops, ("x",), (x,))
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}
    spread = {"kernel_size": 2, "padding": 1, "dilation": (2, 1)}
    return [
        Trial(*columns, options, plain=True, results=("cols",)),
        Trial(*columns, spread, plain=True, results=("cols",)),
        *conv2d(),
    ]


def conv2d() -> list[Trial]:
    """A stride, a padding, a kernel that is not square; no bias; dilation; groups."""
    pair = (kernels.conv2d_forward, kernels.conv2d_backward, kernels.conv2d_loops)
    x, w, b = draw(2, 3, 5, 7), draw(4, 3, 3, 2), draw(4)
    options = {"stride": (2, 1), "padding": (1, 0)}
    return [
        Trial(*pair, ("x", "w", "b"), (x, w, b), options, kind="conv2d"),
        Trial(*pair, ("x", "w"), (x, w), {"stride": 1, "padding": 1, "dilation": (1, 2)}),
        Trial(*pair, ("x", "w", "b"), (draw(2, 4, 5, 6), draw(6, 2, 3, 3), draw(6)), {"groups": 2}),
    ]


def max_pool() -> list[Trial]:
    """Windows that overlap, a padding, values that tie."""
    pair = (kernels.max_pool2d_forward, kernels.max_pool2d_backward, loops.max_pool2d_loops, ("x",))
    ties = np.random.default_rng(0).integers(-1, 2, (2, 3, 4, 5)).astype("float64")
    return [
        Trial(*pair, (draw(2, 3, 7, 6),), {"kernel_size": 3, "stride": 2, "padding": 1}, kind="max_pool2d"),
        Trial(*pair, (draw(2, 3, 7, 6),), {"kernel_size": (3, 2), "stride": 1, "dilation": (1, 2)}),
        Trial(*pair, (ties,), {"kernel_size": 2, "stride": 1}, kind="max_pool2d"),
        Trial(*pair, (draw(1, 2, 5, 6) - 4,), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ]


def global_avg_pool() -> list[Trial]:
    """Maps that are not square."""
    pair = (kernels.global_avg_pool_forward, kernels.global_avg_pool_backward, loops.global_avg_pool_loops, ("x",))
    return [Trial(*pair, (draw(2, 3, 4, 5),), kind="global_avg_pool")]


def batch_norm() -> list[Trial]:
    """Feature maps with gamma and beta; vectors without."""
    pair = (kernels.batch_norm_forward, kernels.batch_norm_backward, loops.batch_norm_loops)
    x = 3 * draw(2, 3, 4, 5) + 2
    return [
        Trial(*pair, ("x", "gamma", "beta"), (x, draw(3), draw(3, seed=1)), kind="batch_norm"),
        Trial(*pair, ("x",), (draw(5, 4),), {"eps": 0.1}),
        Trial(*pair, ("x", "gamma"), (draw(5, 4), draw(4))),
    ]


def batch_norm_inference() -> list[Trial]:
    """Feature maps with gamma and beta; vectors without."""
    pair = (
        kernels.batch_norm_inference_forward,
        kernels.batch_norm_inference_backward,
        batch_norm_inference_loops,
    )
    x = 3 * draw(2, 3, 4, 5) + 2
    statistics = {"mean": draw(3, seed=2), "var": draw(3, seed=3) ** 2 + 0.5}
    others = {"mean": draw(4, seed=2), "var": draw(4, seed=3) ** 2 + 0.5, "eps": 0.1}
    return [
        Trial(*pair, ("x", "gamma", "beta"), (x, draw(3), draw(3, seed=1)), statistics),
        Trial(*pair, ("x",), (draw(5, 4),), others),
    ]


def residual_add() -> list[Trial]:
    """The addition; option A with odd and with even numbers of new channels, and where it is the identity."""
    addition = (kernels.residual_add_forward, kernels.residual_add_backward, residual_add_loops)
    option = (kernels.shortcut_a_forward, kernels.shortcut_a_backward, shortcut_a_loops, ("x",))
    return [
        Trial(*addition, ("x", "branch"), (draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1))),
        Trial(*option, (draw(2, 3, 5, 6),), {"out_channels": 8, "stride": 2}),
        Trial(*option, (draw(2, 3, 4, 5),), {"out_channels": 7, "stride": (1, 2)}),
        Trial(*option, (draw(2, 3, 4, 5),), {"out_channels": 3}),
    ]


def basic_block() -> list[Trial]:
    """With stride 2 and more channels, and with the identity as its shortcut."""
    names = ("x", "w1", "gamma1", "beta1", "w2", "gamma2", "beta2")
    pair = (basic_block_forward, basic_block_backward, None, names)
    wider = (draw(3, 2, 5, 4), draw(4, 2, 3, 3), *block_vectors(4)[:2], draw(4, 4, 3, 3), *block_vectors(4)[2:])
    same = (draw(2, 3, 4, 5), draw(3, 3, 3, 3), *block_vectors(3)[:2], draw(3, 3, 3, 3, seed=1), *block_vectors(3)[2:])
    return [Trial(*pair, wider, {"stride": 2}), Trial(*pair, same)]


def block_vectors(channels: int) -> tuple[Array, Array, Array, Array]:
    """gamma1, beta1, gamma2, beta2 of a block."""
    return draw(channels), draw(channels, seed=1), draw(channels, seed=2), draw(channels, seed=3)


def sgd() -> list[Trial]:
    """Without and with each option."""
    p, grad, v = draw(3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    names, results = ("p", "grad", "v"), ("p", "v")
    options = [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
    ]
    given = (sgd_step, None, sgd_loops, names, (p, grad, v))
    return [Trial(*given, choice, plain=True, results=results) for choice in options]


# ---- the definitions


def add_loops(a: Array, b: Array) -> Array:
    """y[i] = a[i] + b[i], where an axis of size 1, or a missing one, counts for every index."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    y = np.zeros(shape)
    for i in np.ndindex(*shape):
        y[i] = a[broadcast_index(i, a.shape)] + b[broadcast_index(i, b.shape)]
    return y


def broadcast_index(i: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index into an array of this shape that index i of the broadcast result means."""
    last = i[len(i) - len(shape) :]
    return tuple(0 if size == 1 else place for place, size in zip(last, shape, strict=True))


def unbroadcast_loops(dy: Array, shape: tuple[int, ...]) -> Array:
    """total[j] = sum of dy over all indices that meant j."""
    total = np.zeros(shape)
    for i in np.ndindex(*dy.shape):
        total[broadcast_index(i, shape)] += dy[i]
    return total


def log_softmax_loops(x: Array, *, axis: int = -1) -> Array:
    """y = x - log(sum of e^x), for each row along the axis; the largest logit is taken out of the sum first."""
    rows = np.moveaxis(x, axis, -1)
    y = np.zeros(rows.shape)
    for i in np.ndindex(*rows.shape[:-1]):
        largest = max(rows[i])
        total = 0.0
        for logit in rows[i]:
            total += math.exp(logit - largest)
        for c in range(rows.shape[-1]):
            y[(*i, c)] = rows[(*i, c)] - largest - math.log(total)
    return np.moveaxis(y, -1, axis)


def im2col_loops(x: Array, kernel_size: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Array:
    """cols[(n, oh, ow), (c, kh, kw)] = padded x[n, c, oh SH + kh DH - PH, ow SW + kw DW - PW]."""
    N, C, H, W = x.shape
    KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = loops.window_sizes(x.shape, kernel_size, stride, padding, dilation)
    cols = np.zeros((N * OH * OW, C * KH * KW))
    for n, oh, ow, c, kh, kw in np.ndindex(N, OH, OW, C, KH, KW):
        h, w = oh * SH + kh * DH - PH, ow * SW + kw * DW - PW
        if 0 <= h < H and 0 <= w < W:
            cols[(n * OH + oh) * OW + ow, (c * KH + kh) * KW + kw] = x[n, c, h, w]
    return cols


def batch_norm_inference_loops(
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    """y[n, c, ..] = gamma[c] (x[n, c, ..] - mean[c]) / sqrt(var[c] + eps) + beta[c]."""
    y = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        c = i[1]
        x_hat = (x[i] - mean[c]) / math.sqrt(var[c] + eps)
        y[i] = (1.0 if gamma is None else gamma[c]) * x_hat + (0.0 if beta is None else beta[c])
    return y


def residual_add_loops(x: Array, branch: Array, *, inplace: bool = False) -> Array:
    """y[i] = branch[i] + x[i]."""
    y = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        y[i] = branch[i] + x[i]
    return y


def shortcut_a_loops(x: Array, *, out_channels: int, stride: Any = 1) -> Array:
    """y[n, before + c, i, j] = x[n, c, i SH, j SW], and 0 in the channels before and after."""
    N, C, H, W = x.shape
    SH, SW = stride if isinstance(stride, tuple) else (stride, stride)
    before = (out_channels - C) // 2
    y = np.zeros((N, out_channels, -(-H // SH), -(-W // SW)))
    for n, o, i, j in np.ndindex(*y.shape):
        if before <= o < before + C:
            y[n, o, i, j] = x[n, o - before, i * SH, j * SW]
    return y


def sgd_loops(
    p: Array, grad: Array, v: Array, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov=False
) -> tuple[Array, Array]:
    """The formula, weight by weight."""
    new_p, new_v = np.zeros(p.shape), np.zeros(p.shape)
    for i in np.ndindex(*p.shape):
        g = grad[i] + weight_decay * p[i]
        new_v[i] = momentum * v[i] + g
        new_p[i] = p[i] - lr * (g + momentum * new_v[i] if nesterov else new_v[i])
    return new_p, new_v
