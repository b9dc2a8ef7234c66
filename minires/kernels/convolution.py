"""Two-dimensional convolution as a textbook prints it: the definition, im2col, and one matrix product.

``fast/convolution.py`` has the same pair as it runs by default, proven equal. The alphabet of shapes (N C H W, O OH OW,
KH KW ...) stands in ``shapes.py``, and so do the checks that ``conv2d_size`` makes.
"""

from __future__ import annotations

from typing import NamedTuple

from minires.kernels.backend import Array, array_module
from minires.kernels.shapes import Conv2dSize, conv2d_size, im2col_size

# ---- The definition ----------------------------------------------------------------------------------------------


def conv2d_loops(x: Array, w: Array, b: Array | None = None, *, stride=1, padding=0, dilation=1, groups=1) -> Array:
    """The convolution as it is defined, one multiplication at a time.

    Shapes: x (N, C, H, W), w (O, C/G, KH, KW), b (O,) or None -> y (N, O, OH, OW).
    Formula: y[n, o, oh, ow] = b[o] + sum over c, kh, kw of w[o, c, kh, kw] x[n, first + c, i, j], where
        i = oh SH + kh DH - PH, j = ow SW + kw DW - PW, first is o's group's first channel; x is 0 outside its edges.
    Errors: as conv2d_size.
    Source: torch.nn.functional.conv2d (a correlation: the kernel is not flipped).
    """
    xp = array_module(x)
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = conv2d_size(x, w, b, stride, padding, dilation, groups)
    y = xp.zeros((N, O, OH, OW), x.dtype)
    for n in range(N):
        for o in range(O):
            first_channel = o // (O // G) * (C // G)
            for oh in range(OH):
                for ow in range(OW):
                    for c in range(C // G):
                        for kh in range(KH):
                            for kw in range(KW):
                                i = oh * SH + kh * DH - PH
                                j = ow * SW + kw * DW - PW
                                if 0 <= i < H and 0 <= j < W:
                                    y[n, o, oh, ow] += w[o, c, kh, kw] * x[n, first_channel + c, i, j]
                    if b is not None:
                        y[n, o, oh, ow] += b[o]
    return y


# ---- im2col: every window as a row, so that a convolution is a matrix product ---------------------------------------


def im2col(x: Array, kernel_size, *, stride=1, padding=0, dilation=1) -> Array:
    """Every window of x as one row of a matrix.

    Shapes: x (N, C, H, W) -> cols (N*OH*OW, C*KH*KW).
    Formula: cols[(n, oh, ow), (c, kh, kw)] = padded x[n, c, oh SH + kh DH, ow SW + kw DW].
    Errors: ValueError where the kernel is larger than the padded input.
    Source: Chellapilla et al. 2006; torch.nn.functional.unfold (which orders its axes N, C*KH*KW, OH*OW).
    """
    xp = array_module(x)
    size = im2col_size(x, x.shape, kernel_size, stride, padding, dilation)
    N, C, H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = size
    x_padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), x.dtype)  # (N, C, H + 2 PH, W + 2 PW)
    x_padded[:, :, PH : PH + H, PW : PW + W] = x
    h = SH * xp.arange(OH)[:, None] + DH * xp.arange(KH)  # (OH, KH): the pixel row under kernel row kh of window oh
    w = SW * xp.arange(OW)[:, None] + DW * xp.arange(KW)  # (OW, KW): the pixel column, alike
    rows = x_padded[:, :, h]  # (N, C, OH, KH, W + 2 PW)
    windows = rows[:, :, :, :, w]  # (N, C, OH, KH, OW, KW)
    windows = windows.transpose(0, 2, 4, 1, 3, 5)  # (N, OH, OW, C, KH, KW)
    return windows.reshape(N * OH * OW, C * KH * KW)


def col2im(cols: Array, x_shape: tuple[int, int, int, int], kernel_size, *, stride=1, padding=0, dilation=1) -> Array:
    """The transpose of im2col: every entry goes back to the pixel it was copied from, and copies of a pixel add up.

    Shapes: cols (N*OH*OW, C*KH*KW) -> x (N, C, H, W).
    Formula: x[n, c, h, w] = sum of cols[(n, oh, ow), (c, kh, kw)] over all windows that hold the pixel.
        One place of the kernel at a time: ``x_padded[:, :, h] += ...`` would count a pixel once that h names twice.
    Errors: ValueError where cols does not have the shape that im2col gives for x_shape.
    Source: Chellapilla et al. 2006; torch.nn.functional.fold.
    """
    xp = array_module(cols)
    size = im2col_size(cols, x_shape, kernel_size, stride, padding, dilation)
    N, C, H, W, KH, KW, SH, SW, PH, PW, DH, DW, OH, OW = size
    windows = cols.reshape(N, OH, OW, C, KH, KW).transpose(0, 3, 1, 4, 2, 5)  # (N, C, OH, KH, OW, KW)
    rows = xp.zeros((N, C, OH, KH, W + 2 * PW), cols.dtype)
    for kw in range(KW):
        w = kw * DW
        rows[:, :, :, :, w : w + (OW - 1) * SW + 1 : SW] += windows[:, :, :, :, :, kw]  # (N, C, OH, KH, OW)
    x_padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), cols.dtype)
    for kh in range(KH):
        h = kh * DH
        x_padded[:, :, h : h + (OH - 1) * SH + 1 : SH] += rows[:, :, :, kh]  # (N, C, OH, W + 2 PW)
    return x_padded[:, :, PH : PH + H, PW : PW + W]  # (N, C, H, W)


# ---- The convolution ----------------------------------------------------------------------------------------------


class Conv2dCache(NamedTuple):
    cols: Array  # (G, N*OH*OW, C/G*KH*KW)
    w: Array  # (O, C/G, KH, KW)
    size: Conv2dSize
    has_bias: bool


def conv2d_forward(
    x: Array, w: Array, b: Array | None = None, *, stride=1, padding=0, dilation=1, groups=1
) -> tuple[Array, Conv2dCache]:
    """Convolution as one matrix product. G is 1 in all but ResNeXt, where each group of channels has its own product.

    Shapes: x (N, C, H, W), w (O, C/G, KH, KW), b (O,) or None -> y (N, O, OH, OW).
    Formula: y = im2col(x) @ w.T + b, with w as a matrix (O, C*KH*KW).
    Errors: ValueError or TypeError for sizes, options or dtypes that do not fit.
    Source: Chellapilla et al. 2006; torch.nn.functional.conv2d.
    """
    size = conv2d_size(x, w, b, stride, padding, dilation, groups)
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    cols = im2col(x, (KH, KW), stride=(SH, SW), padding=(PH, PW), dilation=(DH, DW))  # (N*OH*OW, C*KH*KW)
    cols = cols.reshape(N * OH * OW, G, -1).transpose(1, 0, 2)  # (G, N*OH*OW, C/G*KH*KW)
    w_matrix = w.reshape(G, O // G, -1)  # (G, O/G, C/G*KH*KW)
    y = cols @ w_matrix.transpose(0, 2, 1)  # (G, N*OH*OW, O/G)
    if b is not None:
        y = y + b.reshape(G, 1, O // G)
    y = y.transpose(1, 0, 2).reshape(N, OH, OW, O)  # (N, OH, OW, O)
    y = y.transpose(0, 3, 1, 2)  # (N, O, OH, OW)
    return y, Conv2dCache(cols, w, size, b is not None)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array, Array, Array | None]:
    """The chain rule for y = cols @ w.T + b, and for the copies that im2col made.

    Shapes: dy (N, O, OH, OW) -> dx (N, C, H, W), dw (O, C/G, KH, KW), db (O,) or None.
    Formula: dw = dy.T @ cols, dx = col2im(dy @ w), db = sum of dy.
    """
    cols, w, size, has_bias = cache
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    dy = dy.transpose(0, 2, 3, 1)  # (N, OH, OW, O)
    dy = dy.reshape(N * OH * OW, G, O // G).transpose(1, 0, 2)  # (G, N*OH*OW, O/G)
    db = dy.sum(axis=1).reshape(O) if has_bias else None  # (O,)
    dw = (dy.transpose(0, 2, 1) @ cols).reshape(w.shape)  # (O, C/G, KH, KW)
    dcols = dy @ w.reshape(G, O // G, -1)  # (G, N*OH*OW, C/G*KH*KW)
    dcols = dcols.transpose(1, 0, 2).reshape(N * OH * OW, -1)  # (N*OH*OW, C*KH*KW)
    dx = col2im(dcols, (N, C, H, W), (KH, KW), stride=(SH, SW), padding=(PH, PW), dilation=(DH, DW))  # (N, C, H, W)
    return dx, dw, db
