"""What each exercise's functions are tried on: small arrays of sizes that are all different, and options.

The first trial of a kernel is checked numerically; the others are compared with the shipped kernel. All arrays are
float64, drawn once and for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minires import kernels
from minires.exercises import basic_block as block
from minires.exercises import definitions
from minires.exercises.sgd import sgd_step
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
    pair = (kernels.add_forward, kernels.add_backward, definitions.add, ("a", "b"))
    shape = {"shape": (4, 1)}
    return [
        Trial(
            kernels.unbroadcast,
            None,
            definitions.unbroadcast,
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
    softmax = (kernels.log_softmax_forward, kernels.log_softmax_backward, definitions.log_softmax, ("x",))
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
    columns = (kernels.im2col, None, definitions.im2col, ("x",), (x,))
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}
    spread = {"kernel_size": 2, "padding": 1, "dilation": (2, 1)}
    return [
        Trial(*columns, options, plain=True, results=("cols",)),
        Trial(*columns, spread, plain=True, results=("cols",)),
        *conv2d(),
    ]


def conv2d() -> list[Trial]:
    """A stride, a padding, a kernel that is not square; no bias; dilation."""
    pair = (kernels.conv2d_im2col_forward, kernels.conv2d_im2col_backward, kernels.conv2d_loops)
    x, w, b = draw(2, 3, 5, 7), draw(4, 3, 3, 2), draw(4)
    options = {"stride": (2, 1), "padding": (1, 0)}
    return [
        Trial(*pair, ("x", "w", "b"), (x, w, b), options, kind="conv2d"),
        Trial(*pair, ("x", "w"), (x, w), {"stride": 1, "padding": 1, "dilation": (1, 2)}),
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
        definitions.batch_norm_inference,
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
    addition = (kernels.residual_add_forward, kernels.residual_add_backward, definitions.residual_add)
    option = (kernels.shortcut_a_forward, kernels.shortcut_a_backward, definitions.shortcut_a, ("x",))
    return [
        Trial(*addition, ("x", "branch"), (draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1))),
        Trial(*option, (draw(2, 3, 5, 6),), {"out_channels": 8, "stride": 2}),
        Trial(*option, (draw(2, 3, 4, 5),), {"out_channels": 7, "stride": (1, 2)}),
        Trial(*option, (draw(2, 3, 4, 5),), {"out_channels": 3}),
    ]


def basic_block() -> list[Trial]:
    """With stride 2 and more channels, and with the identity as its shortcut."""
    names = ("x", "w1", "gamma1", "beta1", "w2", "gamma2", "beta2")
    pair = (block.basic_block_forward, block.basic_block_backward, None, names)
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
    given = (sgd_step, None, definitions.sgd, names, (p, grad, v))
    return [Trial(*given, choice, plain=True, results=results) for choice in options]
