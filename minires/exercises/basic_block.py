"""The BasicBlock by hand: shipped kernels forwards, and their backwards in the opposite order.

The engine composes these backwards by itself; here it is written out once. This is the only copy: the exercise's
solution.
"""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels import (
    batch_norm_backward,
    batch_norm_forward,
    conv2d_backward,
    conv2d_forward,
    relu_backward,
    relu_forward,
    residual_add_backward,
    residual_add_forward,
    shortcut_a_backward,
    shortcut_a_forward,
)
from minires.kernels.backend import Array


class BasicBlockCache(NamedTuple):
    conv1: NamedTuple  # each is the cache of one kernel, in the order of the forward pass
    bn1: NamedTuple
    relu1: NamedTuple
    conv2: NamedTuple
    bn2: NamedTuple
    shortcut: NamedTuple
    addition: None
    relu2: NamedTuple


def basic_block_forward(
    x: Array, w1: Array, gamma1: Array, beta1: Array, w2: Array, gamma2: Array, beta2: Array, *, stride: int = 1
) -> tuple[Array, BasicBlockCache]:
    """A residual block with option A: two 3x3 convolutions, and a shortcut past them.

    Shapes: x (N, C, H, W), w1 (O, C, 3, 3), w2 (O, O, 3, 3), gammas and betas (O,)
        -> y (N, O, ceil(H / stride), ceil(W / stride)).
    Formula: y = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)).
    Errors: as the kernels.
    Source: He et al. 2015, figure 5 left; minires.models.BasicBlock with shortcut="A".
    """
    out, conv1 = conv2d_forward(x, w1, stride=stride, padding=1)  # (N, O, OH, OW), and so are all below
    out, bn1 = batch_norm_forward(out, gamma1, beta1)
    out, relu1 = relu_forward(out)
    out, conv2 = conv2d_forward(out, w2, padding=1)
    branch, bn2 = batch_norm_forward(out, gamma2, beta2)
    identity, shortcut = shortcut_a_forward(x, out_channels=w1.shape[0], stride=stride)
    total, addition = residual_add_forward(identity, branch)
    y, relu2 = relu_forward(total)
    return y, BasicBlockCache(conv1, bn1, relu1, conv2, bn2, shortcut, addition, relu2)


def basic_block_backward(dy: Array, cache: BasicBlockCache) -> tuple[Array, Array, Array, Array, Array, Array, Array]:
    """Gradients of basic_block_forward: each kernel's backward, from the last to the first.

    Shapes: dy (N, O, OH, OW) -> dx (N, C, H, W), dw1 (O, C, 3, 3), dgamma1 and dbeta1 (O,), dw2 (O, O, 3, 3),
        dgamma2 and dbeta2 (O,).
    Formula: dx is the sum of what comes back through the branch and through the shortcut.
    Source: the chain rule.
    """
    # Through the last ReLU.
    dtotal = relu_backward(dy, cache.relu2)  # (N, O, OH, OW)
    # Through the addition: two ways lead on from here.
    didentity, dbranch = residual_add_backward(dtotal, cache.addition)  # (N, O, OH, OW) both
    # Down the branch, to the output of its second convolution.
    dout, dgamma2, dbeta2 = batch_norm_backward(dbranch, cache.bn2)  # (N, O, OH, OW)
    # Through that convolution, to the output of the inner ReLU.
    dinner, dw2, _ = conv2d_backward(dout, cache.conv2)  # (N, O, OH, OW)
    # Through the inner ReLU.
    dnormal = relu_backward(dinner, cache.relu1)  # (N, O, OH, OW)
    # Through the first batch norm.
    dfirst, dgamma1, dbeta1 = batch_norm_backward(dnormal, cache.bn1)  # (N, O, OH, OW)
    # Through the first convolution: the branch's part of dx.
    dx_branch, dw1, _ = conv2d_backward(dfirst, cache.conv1)  # (N, C, H, W)
    # Through the shortcut: the other part of dx.
    dx_shortcut = shortcut_a_backward(didentity, cache.shortcut)  # (N, C, H, W)
    # x was used twice.
    dx = dx_branch + dx_shortcut  # (N, C, H, W)
    return dx, dw1, dgamma1, dbeta1, dw2, dgamma2, dbeta2
