"""The two pieces that make a network residual: the addition, and the shortcut without parameters."""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.shapes import check_images, pair


class ShortcutACache(NamedTuple):
    x_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    before: int  # channels of zeros in front


def residual_add_forward(x: Array, branch: Array, *, inplace: bool = False) -> tuple[Array, None]:
    """The residual connection.

    Shapes: x, branch, y (all the same). With inplace, y takes branch's memory.
    Formula: y = F(x) + x, with branch = F(x).
    Errors: ValueError where the shapes differ: a shortcut is never broadcast; TypeError for two dtypes.
    Source: He et al. 2015, equation 1.
    """
    if x.shape != branch.shape:
        raise ValueError(
            f"residual_add: the shortcut has shape {x.shape} and the branch {branch.shape}: "
            "where they differ, the shortcut needs option A, B or C"
        )
    if x.dtype != branch.dtype:
        raise TypeError(f"residual_add: x and branch must have one dtype, got {x.dtype} and {branch.dtype}")
    if inplace:
        branch += x
        return branch, None
    return branch + x, None


def residual_add_backward(dy: Array, cache: None) -> tuple[Array, Array]:
    """Gradients of residual_add_forward: both ways get all of it.

    Shapes: dy (as x) -> dx, dbranch (as x).
    Formula: dx = dy, dbranch = dy.
    Errors: none of its own.
    Source: He et al. 2016, equation 5: the 1 in (1 + dF/dx).
    """
    return dy, dy


def shortcut_a_forward(x: Array, *, out_channels: int, stride=1) -> tuple[Array, ShortcutACache]:
    """Option A: a shortcut with no parameters, every stride-th pixel and zeros for the new channels.

    Shapes: x (N, C, H, W) -> y (N, O, ceil(H / SH), ceil(W / SW)), O >= C.
    Formula: y[:, before + c, i, j] = x[:, c, i SH, j SW], 0 in the other channels; before = floor((O - C) / 2).
    Errors: ValueError for fewer output channels than input channels.
    Source: He et al. 2015, section 3.3 option A; zeros on both sides as the published CIFAR weights have them.
    """
    xp = array_module(x)
    check_images(x, "shortcut_a")
    SH, SW = pair(stride, "shortcut_a", "stride", 1)
    C = x.shape[1]
    if out_channels < C:
        raise ValueError(f"shortcut_a: out_channels must be at least the {C} channels of x, got {out_channels}")
    before = (out_channels - C) // 2
    kept = x.transpose(1, 2, 3, 0)[:, ::SH, ::SW]  # (C, OH, OW, N)
    y = xp.zeros((out_channels, *kept.shape[1:]), x.dtype)
    y[before : before + C] = kept  # (O, OH, OW, N)
    return y.transpose(3, 0, 1, 2), ShortcutACache(x.shape, (SH, SW), before)


def shortcut_a_backward(dy: Array, cache: ShortcutACache) -> Array:
    """Gradient of shortcut_a_forward.

    Shapes: dy (N, O, OH, OW) -> dx (N, C, H, W).
    Formula: dx[:, c, i SH, j SW] = dy[:, before + c, i, j], 0 elsewhere.
    Errors: none of its own.
    Source: the transpose of a copy.
    """
    xp = array_module(dy)
    N, C, H, W = cache.x_shape
    SH, SW = cache.stride
    dx = xp.zeros((C, H, W, N), dy.dtype)
    dx[:, ::SH, ::SW] = dy.transpose(1, 2, 3, 0)[cache.before : cache.before + C]  # (C, H, W, N)
    return dx.transpose(3, 0, 1, 2)
