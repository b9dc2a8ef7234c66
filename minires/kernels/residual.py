"""What a residual block has beside convolution and batch norm: ReLU, the addition, the shortcut of option A."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.checks import check_residual_add, check_shortcut_a
from minires.kernels.shapes import check_images, pair


class ReLUCache(NamedTuple):
    y: Array  # the output: it is positive exactly where x is, and the fast kernel of the next layer keeps it anyway


class ShortcutACache(NamedTuple):
    x_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    before: int  # channels of zeros in front


def relu_forward(x: Array, *, inplace: bool = False) -> tuple[Array, ReLUCache]:
    """y = max(x, 0), element by element: the rectified linear unit. NaN stays NaN; with inplace, y takes x's memory.

    Source: Nair & Hinton 2010; torch.nn.functional.relu.
    """
    xp = array_module(x)
    y = xp.maximum(x, 0, out=x if inplace else xp.empty_like(x))  # empty_like: in x's memory order, on CuPy too
    return y, ReLUCache(y)


def relu_backward(dy: Array, cache: ReLUCache) -> Array:
    """dx = dy where x > 0: 0 at 0, and NaN for an infinite dy where x <= 0. Source: torch.nn.functional.relu."""
    return dy * (cache.y > 0)


def residual_add_forward(x: Array, branch: Array, *, inplace: bool = False) -> tuple[Array, None]:
    """The residual connection: y = F(x) + x, with branch = F(x). Source: He et al. 2015, equation 1.

    Shapes: x, branch, y (all the same). With inplace, y takes branch's memory.
    Errors: ValueError where the shapes differ: a shortcut is never broadcast; TypeError for two dtypes.
    """
    check_residual_add(x, branch)
    if inplace:
        branch += x
        return branch, None
    return branch + x, None


def residual_add_backward(dy: Array, cache: None) -> tuple[Array, Array]:
    """dx = dy, dbranch = dy: both ways get all of it. Source: He et al. 2016, equation 5: the 1 in (1 + dF/dx)."""
    return dy, dy


def shortcut_a_forward(x: Array, *, out_channels: int, stride=1) -> tuple[Array, ShortcutACache]:
    """Option A: a shortcut with no parameters, every stride-th pixel and zeros for the new channels.

    fast/shortcut.py has the pair as it runs by default, proven equal.

    Shapes: x (N, C, H, W) -> y (N, O, ceil(H / SH), ceil(W / SW)), O >= C: else ValueError.
    Formula: y[:, before + c, i, j] = x[:, c, i SH, j SW], 0 in the other channels; before = floor((O - C) / 2).
    Source: He et al. 2015, section 3.3 option A; zeros on both sides as the published CIFAR weights have them.
    """
    xp = array_module(x)
    check_images(x, "shortcut_a")
    SH, SW = pair(stride, "shortcut_a", "stride", 1)
    C = x.shape[1]
    check_shortcut_a(C, out_channels)
    before = (out_channels - C) // 2
    kept = x[:, :, ::SH, ::SW]  # (N, C, OH, OW)
    y = xp.zeros((kept.shape[0], out_channels, *kept.shape[2:]), x.dtype)  # (N, O, OH, OW)
    y[:, before : before + C] = kept
    return y, ShortcutACache(x.shape, (SH, SW), before)


def shortcut_a_backward(dy: Array, cache: ShortcutACache) -> Array:
    """dx[:, c, i SH, j SW] = dy[:, before + c, i, j], 0 elsewhere: a copy, transposed; dx (N, C, H, W) as x."""
    xp = array_module(dy)
    N, C, H, W = cache.x_shape
    SH, SW = cache.stride
    dx = xp.zeros((N, C, H, W), dy.dtype)
    dx[:, :, ::SH, ::SW] = dy[:, cache.before : cache.before + C]  # (N, C, OH, OW)
    return dx


__all__ = ["relu_backward", "relu_forward"]
__all__ += ["residual_add_backward", "residual_add_forward", "shortcut_a_backward", "shortcut_a_forward"]
