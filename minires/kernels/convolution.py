"""Two-dimensional convolution, three times: the definition, the textbook's im2col, and what runs.

1. ``conv2d_loops`` is the definition, seven loops: slow and obvious.
2. ``im2col`` / ``col2im`` and ``conv2d_im2col_forward`` / ``_backward`` copy every window into a row of a matrix, so
   that the convolution is one matrix product. Clear, and 4 to 16 times slower than PyTorch: the copy is KH*KW times
   the input.
3. ``conv2d_forward`` / ``conv2d_backward`` run. They copy each kernel column once and none of the kernel rows.

The alphabet of shapes and the memory layout are explained in ``shapes.py``.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from minires.backend import Array, array_module
from minires.kernels.shapes import FLOATS, INTEGERS, check_images, pair, window_output_size


class Conv2dSize(NamedTuple):
    """Every size that a convolution needs, by its letter in the alphabet."""

    N: int
    C: int
    H: int
    W: int
    O: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int
    DH: int
    DW: int
    G: int
    OH: int
    OW: int


def conv2d_size(x: Array, w: Array, b: Array | None, stride, padding, dilation, groups: int) -> Conv2dSize:
    """Check a convolution's arguments against each other and name all sizes.

    Shapes: x (N, C, H, W), w (O, C/G, KH, KW), b (O,) or None.
    Formula: OH = floor((H + 2 PH - DH (KH - 1) - 1) / SH) + 1, and OW alike.
    Errors: ValueError or TypeError that names the argument, what was expected and what came.
    Source: torch.nn.functional.conv2d.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"conv2d: x must have shape (N, C, H, W) with no empty axis, got {x.shape}")
    if x.dtype not in FLOATS:
        raise TypeError(f"conv2d: x must be float32 or float64, got {x.dtype}: convert it with .float()")
    if w.ndim != 4 or 0 in w.shape:
        raise ValueError(f"conv2d: w must have shape (O, C/groups, KH, KW) with no empty axis, got {w.shape}")
    if w.dtype != x.dtype or (b is not None and b.dtype != x.dtype):
        came = f"x {x.dtype}, w {w.dtype}" + ("" if b is None else f", b {b.dtype}")
        raise TypeError(f"conv2d: x, w and b must have one dtype, got {came}")
    pairs = []
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        both = value if isinstance(value, (tuple, list)) else (value, value)
        if len(both) != 2 or not isinstance(both[0], INTEGERS) or not isinstance(both[1], INTEGERS):
            raise TypeError(f"conv2d: {name} must be an int or a pair of ints, got {value!r}")
        if min(both) < least:
            raise ValueError(f"conv2d: {name} must be at least {least}, got {value!r}")
        pairs.extend((int(both[0]), int(both[1])))  # NumPy's unsigned ints would wrap below zero
    SH, SW, PH, PW, DH, DW = pairs
    N, C, H, W = x.shape
    O, C_group, KH, KW = w.shape
    if not isinstance(groups, INTEGERS) or groups < 1:
        raise ValueError(f"conv2d: groups must be a positive int, got {groups!r}")
    if C % groups or O % groups:
        raise ValueError(f"conv2d: groups={groups} must divide the input's {C} channels and the kernel's {O} outputs")
    if C_group * groups != C:
        raise ValueError(
            f"conv2d: x has {C} channels and w {w.shape} with groups={groups} expects {C_group * groups} channels"
        )
    if b is not None and b.shape != (O,):
        raise ValueError(f"conv2d: b must have shape ({O},), one value an output channel, got {b.shape}")
    OH = (H + 2 * PH - DH * (KH - 1) - 1) // SH + 1
    OW = (W + 2 * PW - DW * (KW - 1) - 1) // SW + 1
    if OH < 1 or OW < 1:
        span = f"{DH * (KH - 1) + 1}x{DW * (KW - 1) + 1}"
        raise ValueError(f"conv2d: the kernel spans {span} and the padded input is {H + 2 * PH}x{W + 2 * PW}, smaller")
    return Conv2dSize(N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, int(groups), OH, OW)


# ---- 1. The definition ------------------------------------------------------------------------------------------


def conv2d_loops(x: Array, w: Array, b: Array | None = None, *, stride=1, padding=0, dilation=1, groups=1) -> Array:
    """The convolution as it is defined, one multiplication at a time.

    Shapes: x (N, C, H, W), w (O, C/G, KH, KW), b (O,) or None -> y (N, O, OH, OW).
    Formula: y[n, o, oh, ow] = b[o] + sum over c, kh, kw of w[o, c, kh, kw] x[n, c, h, w], where
        h = oh SH + kh DH - PH and w = ow SW + kw DW - PW, and x is 0 outside its edges.
    Errors: as conv2d_size.
    Source: He et al. 2015 use it throughout; torch.nn.functional.conv2d (a correlation: the kernel is not flipped).
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
                                h = oh * SH + kh * DH - PH
                                w_ = ow * SW + kw * DW - PW
                                if 0 <= h < H and 0 <= w_ < W:
                                    y[n, o, oh, ow] += w[o, c, kh, kw] * x[n, first_channel + c, h, w_]
                    if b is not None:
                        y[n, o, oh, ow] += b[o]
    return y


# ---- 2. The textbook's im2col: the exercise, and the second reference -------------------------------------------


def im2col(x: Array, kernel_size, *, stride=1, padding=0, dilation=1) -> Array:
    """Every window of x as one row of a matrix.

    Shapes: x (N, C, H, W) -> cols (N*OH*OW, C*KH*KW).
    Formula: cols[(n, oh, ow), (c, kh, kw)] = padded x[n, c, oh SH + kh DH, ow SW + kw DW].
    Errors: ValueError where the kernel is larger than the padded input.
    Source: Chellapilla et al. 2006; torch.nn.functional.unfold (which orders its axes N, C*KH*KW, OH*OW).
    """
    xp = array_module(x)
    check_images(x, "im2col")
    N, C, H, W = x.shape
    KH, KW = pair(kernel_size, "im2col", "kernel_size", 1)
    SH, SW = pair(stride, "im2col", "stride", 1)
    PH, PW = pair(padding, "im2col", "padding", 0)
    DH, DW = pair(dilation, "im2col", "dilation", 1)
    OH = window_output_size(H, KH, SH, PH, DH)
    OW = window_output_size(W, KW, SW, PW, DW)
    if OH < 1 or OW < 1:
        raise ValueError(f"im2col: kernel_size {(KH, KW)} does not fit the padded input {(H + 2 * PH, W + 2 * PW)}")
    x_padded = xp.pad(x, ((0, 0), (0, 0), (PH, PH), (PW, PW)))
    windows = xp.empty((N, C, KH, KW, OH, OW), x.dtype)
    for kh in range(KH):
        for kw in range(KW):
            h, w = kh * DH, kw * DW
            windows[:, :, kh, kw] = x_padded[:, :, h : h + (OH - 1) * SH + 1 : SH, w : w + (OW - 1) * SW + 1 : SW]
    return windows.transpose(0, 4, 5, 1, 2, 3).reshape(N * OH * OW, C * KH * KW)


def col2im(cols: Array, x_shape: tuple[int, int, int, int], kernel_size, *, stride=1, padding=0, dilation=1) -> Array:
    """The transpose of im2col: every entry goes back to the pixel it was copied from, and copies of a pixel add up.

    Shapes: cols (N*OH*OW, C*KH*KW) -> x (N, C, H, W).
    Formula: x[n, c, h, w] = sum of cols[(n, oh, ow), (c, kh, kw)] over all windows that hold the pixel.
    Errors: ValueError where cols does not have the shape that im2col gives for x_shape.
    Source: Chellapilla et al. 2006; torch.nn.functional.fold.
    """
    xp = array_module(cols)
    N, C, H, W = x_shape
    KH, KW = pair(kernel_size, "col2im", "kernel_size", 1)
    SH, SW = pair(stride, "col2im", "stride", 1)
    PH, PW = pair(padding, "col2im", "padding", 0)
    DH, DW = pair(dilation, "col2im", "dilation", 1)
    OH = window_output_size(H, KH, SH, PH, DH)
    OW = window_output_size(W, KW, SW, PW, DW)
    if cols.shape != (N * OH * OW, C * KH * KW):
        raise ValueError(f"col2im: cols must have shape {(N * OH * OW, C * KH * KW)}, got {cols.shape}")
    windows = cols.reshape(N, OH, OW, C, KH, KW).transpose(0, 3, 4, 5, 1, 2)  # (N, C, KH, KW, OH, OW)
    x_padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), cols.dtype)
    for kh in range(KH):
        for kw in range(KW):
            h, w = kh * DH, kw * DW
            x_padded[:, :, h : h + (OH - 1) * SH + 1 : SH, w : w + (OW - 1) * SW + 1 : SW] += windows[:, :, kh, kw]
    return x_padded[:, :, PH : PH + H, PW : PW + W]


class Conv2dIm2colCache(NamedTuple):
    cols: Array  # (N*OH*OW, C*KH*KW)
    w: Array  # (O, C, KH, KW)
    x_shape: tuple[int, int, int, int]
    options: dict  # stride, padding, dilation
    has_bias: bool


def conv2d_im2col_forward(
    x: Array, w: Array, b: Array | None = None, *, stride=1, padding=0, dilation=1
) -> tuple[Array, Conv2dIm2colCache]:
    """Convolution as one matrix product, as textbooks write it (no groups).

    Shapes: x (N, C, H, W), w (O, C, KH, KW), b (O,) or None -> y (N, O, OH, OW).
    Formula: y = im2col(x) @ w.reshape(O, C*KH*KW).T + b.
    Errors: as conv2d_size.
    Source: Chellapilla et al. 2006; equals conv2d_loops.
    """
    size = conv2d_size(x, w, b, stride, padding, dilation, 1)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    cols = im2col(x, (size.KH, size.KW), **options)  # (N*OH*OW, C*KH*KW)
    w_matrix = w.reshape(size.O, -1)  # (O, C*KH*KW)
    y = cols @ w_matrix.T  # (N*OH*OW, O)
    if b is not None:
        y = y + b
    y = y.reshape(size.N, size.OH, size.OW, size.O).transpose(0, 3, 1, 2)  # (N, O, OH, OW)
    return y, Conv2dIm2colCache(cols, w, x.shape, options, b is not None)


def conv2d_im2col_backward(dy: Array, cache: Conv2dIm2colCache) -> tuple[Array, Array, Array | None]:
    """Gradients of conv2d_im2col_forward.

    Shapes: dy (N, O, OH, OW) -> dx (N, C, H, W), dw (O, C, KH, KW), db (O,) or None.
    Formula: dw = dy.T @ cols, dx = col2im(dy @ w), db = sum of dy.
    Errors: none of its own.
    Source: the chain rule for y = cols @ w.T + b, and for the copies that im2col makes.
    """
    O, C, KH, KW = cache.w.shape
    dy_matrix = dy.transpose(0, 2, 3, 1).reshape(-1, O)  # (N*OH*OW, O)
    db = dy_matrix.sum(axis=0) if cache.has_bias else None
    dw = (dy_matrix.T @ cache.cols).reshape(O, C, KH, KW)
    dcols = dy_matrix @ cache.w.reshape(O, -1)  # (N*OH*OW, C*KH*KW)
    dx = col2im(dcols, cache.x_shape, (KH, KW), **cache.options)
    return dx, dw, db


# ---- 3. What runs: im2col by rows -------------------------------------------------------------------------------
#
# With memory as (C, H, N, W), expand over the kernel's columns only: cols[c, kw] is the padded x, shifted by kw and
# strided along W. Taking rows kh .. kh + OH of every cols[c, kw] is then a plain slice of the columns of one matrix, so
#     y = sum over kh of w[:, :, kh] (O, C*KW) @ cols[rows kh ..] (C*KW, OH*N*OW)
# needs KH products and no further copy. With a stride SH, rows are stored by phase (row mod SH): kernel row kh reads
# phase (kh*DH) mod SH from row (kh*DH) div SH on, and is a plain slice again.


class Conv2dCache(NamedTuple):
    x: Array  # (N, C, H, W)
    w: Array  # (O, C/G, KH, KW)
    has_bias: bool
    needs_dx: bool
    size: Conv2dSize


#: Below this many rows a by-rows matrix is too flat for BLAS, and the kernel's rows are expanded as well.
FLAT = 32


def im2col_by_rows(xp: ModuleType, x: Array, size: Conv2dSize) -> tuple[Array, list[int]]:
    """The columns of x for each kernel column, and where each kernel row begins in them.

    Shapes: x (N, C, H, W) -> cols (G, C/G*KW, phases*rows*N*OW), starts (KH ints).
    Formula: cols[c, kw, i, row, n, ow] = padded x[n, c, row SH + phases[i], ow SW + kw DW]; kernel row kh begins at
        row (kh DH) div SH of its phase.
    Errors: none of its own.
    Source: the derivation above.
    """
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    x_rows = x.transpose(1, 2, 0, 3)  # (C, H, N, W)
    if KH == KW == SH == SW == 1 and PH == PW == 0:
        return x_rows.reshape(G, C // G, H * N * W), [0]  # a 1x1 convolution is a matrix product of x itself
    phases = []  # those that some kernel row reads
    for kh in range(KH):
        if kh * DH % SH not in phases:
            phases.append(kh * DH % SH)
    rows = (KH - 1) * DH // SH + OH
    cols = xp.zeros((C, KW, len(phases), rows, N, OW), x.dtype)
    for kw in range(KW):
        w0 = kw * DW - PW  # the column of x under output column 0, may lie in the padding
        ow0 = max(0, -(w0 // SW))  # the first output column that sees x, not padding
        ow1 = min(OW, (W - 1 - w0) // SW + 1)
        for i in range(len(phases)):
            h0 = phases[i] - PH  # the same for rows
            r0 = max(0, -(h0 // SH))
            r1 = min(rows, (H - 1 - h0) // SH + 1)
            if ow0 < ow1 and r0 < r1:
                h = slice(h0 + r0 * SH, h0 + (r1 - 1) * SH + 1, SH)
                w = slice(w0 + ow0 * SW, w0 + (ow1 - 1) * SW + 1, SW)
                cols[:, kw, i, r0:r1, :, ow0:ow1] = x_rows[:, h, :, w]
    starts = []
    for kh in range(KH):
        starts.append((phases.index(kh * DH % SH) * rows + kh * DH // SH) * N * OW)
    return cols.reshape(G, C // G * KW, -1), starts  # (G, C/G*KW, phases*rows*N*OW)


def im2col_by_pixels(xp: ModuleType, x: Array, size: Conv2dSize) -> tuple[Array, list[int]]:
    """The columns of x for each kernel column and each kernel row: what a kernel with few channels needs.

    Shapes: x (N, C, H, W) -> cols (G, C/G*KH*KW, OH*N*OW), starts [0].
    Formula: cols[c, kh, kw, oh, n, ow] = padded x[n, c, oh SH + kh DH, ow SW + kw DW].
    Errors: none of its own.
    Source: im2col, transposed, with the memory order of im2col_by_rows.
    """
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    x_rows = x.transpose(1, 2, 0, 3)  # (C, H, N, W)
    cols = xp.zeros((C, KH, KW, OH, N, OW), x.dtype)
    for kh in range(KH):
        h0 = kh * DH - PH
        oh0 = max(0, -(h0 // SH))
        oh1 = min(OH, (H - 1 - h0) // SH + 1)
        for kw in range(KW):
            w0 = kw * DW - PW  # as in im2col_by_rows
            ow0 = max(0, -(w0 // SW))
            ow1 = min(OW, (W - 1 - w0) // SW + 1)
            if oh0 < oh1 and ow0 < ow1:
                h = slice(h0 + oh0 * SH, h0 + (oh1 - 1) * SH + 1, SH)
                w = slice(w0 + ow0 * SW, w0 + (ow1 - 1) * SW + 1, SW)
                cols[:, kh, kw, oh0:oh1, :, ow0:ow1] = x_rows[:, h, :, w]
    return cols.reshape(G, C // G * KH * KW, OH * N * OW), [0]  # (G, C/G*KH*KW, OH*N*OW)


def conv2d_forward(
    x: Array, w: Array, b: Array | None = None, *, stride=1, padding=0, dilation=1, groups=1, needs_dx: bool = True
) -> tuple[Array, Conv2dCache]:
    """Two-dimensional convolution: what runs.

    Shapes: x (N, C, H, W), w (O, C/G, KH, KW), b (O,) or None -> y (N, O, OH, OW).
    Formula: as conv2d_loops. needs_dx=False (an input that is data) lets the backward skip dx.
    Errors: as conv2d_size.
    Source: torch.nn.functional.conv2d.
    """
    xp = array_module(x)
    size = conv2d_size(x, w, b, stride, padding, dilation, groups)
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    if C // G * KW < FLAT and KH > 1:
        cols, starts = im2col_by_pixels(xp, x, size)
        w_parts = w.reshape(1, G, O // G, -1)  # (1, G, O/G, C/G*KH*KW)
    else:
        cols, starts = im2col_by_rows(xp, x, size)
        w_parts = w.reshape(G, O // G, C // G, KH, KW).transpose(3, 0, 1, 2, 4)  # (KH, G, O/G, C/G, KW)
        w_parts = w_parts.reshape(KH, G, O // G, -1)  # (KH, G, O/G, C/G*KW)
    length = OH * N * OW
    y = xp.empty((G, O // G, length), x.dtype)
    xp.matmul(w_parts[0], cols[:, :, starts[0] : starts[0] + length], out=y)
    part = xp.empty_like(y) if len(starts) > 1 else None
    for kh in range(1, len(starts)):
        xp.matmul(w_parts[kh], cols[:, :, starts[kh] : starts[kh] + length], out=part)
        y += part
    y = y.reshape(O, OH, N, OW)  # the groups' channels one after the other
    if b is not None:
        y += b[:, None, None, None]
    return y.transpose(2, 0, 1, 3), Conv2dCache(x, w, b is not None, needs_dx, size)  # (N, O, OH, OW)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array | None, Array, Array | None]:
    """Gradients of conv2d_forward.

    Shapes: dy (N, O, OH, OW) -> dx (N, C, H, W) or None, dw (O, C/G, KH, KW), db (O,) or None.
    Formula: dw[:, :, kh] = dy @ cols_kh.T; db = sum of dy over n, oh, ow; dx as conv2d_input_gradient.
    Errors: none of its own.
    Source: the chain rule for y = sum over kh of w_kh @ cols_kh + b.
    """
    xp = array_module(dy)
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = cache.size
    length = OH * N * OW
    dy_rows = dy.transpose(1, 2, 0, 3).reshape(G, O // G, length)  # no copy if channels lie first in memory
    db = dy_rows.sum(axis=2).reshape(O) if cache.has_bias else None
    # The columns are made again: that costs less time than keeping them costs memory.
    if C // G * KW < FLAT and KH > 1:
        cols, starts = im2col_by_pixels(xp, cache.x, cache.size)
    else:
        cols, starts = im2col_by_rows(xp, cache.x, cache.size)
    dw = xp.empty((len(starts), G, cols.shape[1], O // G), dy.dtype)  # transposed: BLAS likes the taller matrix first
    for kh in range(len(starts)):
        xp.matmul(cols[:, :, starts[kh] : starts[kh] + length], dy_rows.transpose(0, 2, 1), out=dw[kh])
    if len(starts) == KH:
        dw = dw.reshape(KH, G, C // G, KW, O // G).transpose(1, 4, 2, 0, 3)  # (G, O/G, C/G, KH, KW)
    else:
        dw = dw.reshape(G, C // G, KH, KW, O // G).transpose(0, 4, 1, 2, 3)  # (G, O/G, C/G, KH, KW)
    dw = dw.reshape(O, C // G, KH, KW)  # (O, C/G, KH, KW)
    dx = conv2d_input_gradient(dy_rows, cache.w, cache.size) if cache.needs_dx else None
    return dx, dw, db


# The input's gradient is a convolution of dy by rows, with the kernel flipped and stride 1. Pixel h of x met kernel
# row kh in output row oh where h + PH = oh SH + kh DH. So only pixels of the phase (h + PH) mod SH = (kh DH) mod SH
# meet that kernel row, and with q = (h + PH) div SH they met it in output row oh = q - (kh DH) div SH. With stride 1
# there is one phase; with stride 2 four (two in height, two in width), each with its share of the kernel.


def conv2d_input_gradient(dy_rows: Array, w: Array, size: Conv2dSize) -> Array:
    """The gradient of a convolution with respect to its input.

    Shapes: dy_rows (G, O/G, OH*N*OW), w (O, C/G, KH, KW) -> dx (N, C, H, W).
    Formula: dx[n, c, h, w] = sum over o, kh, kw of w[o, c, kh, kw] dy[n, o, oh, ow], over those kh, kw for which
        oh = (h + PH - kh DH) / SH and ow = (w + PW - kw DW) / SW are whole numbers inside dy.
    Errors: none of its own.
    Source: the derivation above; torch.nn.grad.conv2d_input.
    """
    xp = array_module(dy_rows)
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    dx = xp.zeros((C, H, N, W), dy_rows.dtype)
    w_parts = w.reshape(G, O // G, C // G, KH, KW).transpose(3, 0, 2, 1, 4)  # (KH, G, C/G, O/G, KW)
    for w_phase in range(SW):
        w0 = (w_phase - PW) % SW  # the first column of x in this phase, then every SW-th
        width = len(range(w0, W, SW))
        q0 = (w0 + PW) // SW
        taps = []
        for kw in range(KW):
            if kw * DW % SW == w_phase:
                taps.append(kw)
        if width == 0 or not taps:
            continue
        w_taps = w_parts[:, :, :, :, taps].reshape(KH, G, C // G, -1)  # (KH, G, C/G, O/G*taps)
        above = (KH - 1) * DH // SH  # rows of zeros above dy and below it, so that every kernel row finds its slice
        rows = above + max(OH, (H - 1 + PH) // SH + 1)
        if len(taps) == 1 and above == 0 and rows == OH and q0 == taps[0] * DW // SW and width == OW:
            cols = dy_rows  # a 1x1 kernel
        else:
            cols = xp.zeros((O, len(taps), rows, N, width), dy_rows.dtype)
            for i in range(len(taps)):
                shift = q0 - taps[i] * DW // SW  # output column under the first column of x
                i0 = max(0, -shift)
                i1 = min(width, OW - shift)
                if i0 < i1:
                    dy_all = dy_rows.reshape(O, OH, N, OW)
                    cols[:, i, above : above + OH, :, i0:i1] = dy_all[:, :, :, i0 + shift : i1 + shift]
            cols = cols.reshape(G, O // G * len(taps), -1)  # (G, O/G*taps, rows*N*width)
        for h_phase in range(SH):
            h0 = (h_phase - PH) % SH
            height = len(range(h0, H, SH))
            total = None
            for kh in range(KH):
                if kh * DH % SH == h_phase and height > 0:
                    start = (above + (h0 + PH) // SH - kh * DH // SH) * N * width
                    part = xp.matmul(w_taps[kh], cols[:, :, start : start + height * N * width])
                    if total is None:
                        total = part
                    else:
                        total += part
            if total is not None:
                dx[:, h0::SH, :, w0::SW] = total.reshape(C, height, N, width)
    return dx.transpose(2, 0, 1, 3)  # (N, C, H, W)
