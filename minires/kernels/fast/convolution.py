"""The convolution that runs: im2col by rows, which copies x once for each column of the kernel and not for its rows.

Where that does not pay it makes the columns by pixels, as the textbook's im2col does, a block at a time. Equal to
``kernels/convolution.py``, whose copy is KH*KW times the input and costs 4 to 16 times PyTorch's time.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from minires.kernels.backend import Array, array_module, blocks_pay
from minires.kernels.shapes import Conv2dSize, conv2d_size

# Memory lies as (C, H, W, N). Take KW copies of the padded x, copy kw shifted left by kw, and store them row by row:
#     shifted[row, (c, kw), (ow, n)]
# Output row oh is w times the KH rows from oh SH on. They are neighbours in memory: after a row's last (c, kw) comes
# the next row's first. So (kh, c, kw) is one axis, and these KH rows already are the im2col matrix of output row oh,
# (KH*C*KW, OW*N). The matrix of oh + 1 starts SH rows further on and shares KH - SH rows with it: a view, no copy.
# Its relative is MEC, memory-efficient convolution (Cho & Brand 2017), which shares rows in the same way on images that
# lie one after the other. Here images lie last: shifts copy long runs, and BLAS gets a block's matrices as one batch.
# Two more letters: Q = OW/ows pieces of a row, S rows of a block, so cols is (G, Q, S, K, ows*n), one matrix each.

#: By rows where a row has at least so many output pixels (OW*N) and a filter bank at most so many weights: else BLAS
#: would load all the weights for too few pixels. Short rows, large and dilated kernels go by pixels.
ROW_PIXELS, ROW_WEIGHTS = 100, 1 << 18
#: OpenBLAS skips copying its operands ("packing") for products of up to so many multiplications, O*K*columns: up to
#: twice as fast, if that leaves at least FEW columns.
SMALL_PRODUCT, FEW = 1_000_000, 48
#: The columns of other products, by rows and by pixels.
COLUMNS, PIXEL_COLUMNS = 512, 1024
#: Bytes of the shifted copies of one block: what stays in a core's cache.
ROW_BLOCK = 1 << 20
#: Bytes of the columns where blocks do not pay, on a GPU: by pixels, all of the output in one product up to here.
WHOLE = 1 << 30


class Conv2dCache(NamedTuple):
    x: Array  # (N, C, H, W)
    w: Array  # (O, C/G, KH, KW)
    has_bias: bool
    needs_dx: bool
    size: Conv2dSize


class Block(NamedTuple):
    """Output rows oh0 to oh1 of images n0 to n1."""

    oh0: int
    oh1: int
    n0: int
    n1: int


class Plan(NamedTuple):
    """How a convolution is cut into products."""

    by_rows: bool
    ows: int  # by rows: a matrix covers this many neighbouring pixels of one output row (a divisor of OW)
    blocks: list[Block]


def conv2d_plan(size: Conv2dSize, itemsize: int, in_blocks: bool = True) -> Plan:
    """Choose by rows or by pixels, and cut the output into blocks.

    Formula: as many columns and rows as the limits above allow; ows divides OW. Where a block has some of the images
        only, ows is 1: so (ow, n) is one axis in memory. By pixels a block is at least one row of all images.
        in_blocks=False (a GPU) has as few blocks as WHOLE allows.
    Source: measured. The limits change the speed, never the result.
    """
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    weights = O // G * (C // G) * KH * KW
    by_rows = in_blocks and KH > 1 and DH == 1 and OW * N >= ROW_PIXELS and weights <= ROW_WEIGHTS
    if by_rows:
        columns = SMALL_PRODUCT // weights if SMALL_PRODUCT // weights >= FEW else COLUMNS
        images = min(N, columns)
        ows = max(1, min(OW, columns // images))
        while OW % ows:
            ows -= 1
        if ows * images < FEW and images == N:
            ows = OW  # OW has no good divisor (a prime, say): a whole row beats a few columns
        # Neighbouring blocks share KH - SH input rows, which are copied again for each: at least 4 output rows a block.
        rows = max(4, ROW_BLOCK // (C * KW * SH * OW * images * itemsize))
    else:
        images, ows = N, OW
        columns = PIXEL_COLUMNS if in_blocks else WHOLE // (C * KH * KW * itemsize)
        rows = OH if KH == KW == 1 else max(1, columns // (OW * N))
    blocks = []
    for oh in range(0, OH, rows):
        for n in range(0, N, images):
            blocks.append(Block._make((oh, min(oh + rows, OH), n, min(n + images, N))))
    return Plan._make((by_rows, ows, blocks))


def padded_rows(xp: ModuleType, x_rows: Array, size: Conv2dSize, block: Block) -> Array:
    """The rows of the padded x that a block of the output sees.

    Shapes: x_rows (C, H, W, N) -> x_block (C, h, W + 2 PW, n), h = (rows - 1) SH + (KH - 1) DH + 1.
    Formula: x_block[c, i, j, n] = padded x[n0 + n, c, oh0 SH + i, j].
    Source: the definition.
    """
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    h0 = block.oh0 * SH - PH  # the first row of x, or of the padding above it
    h1 = (block.oh1 - 1) * SH - PH + (KH - 1) * DH + 1
    inside = x_rows[:, max(0, h0) : max(0, h1), :, block.n0 : block.n1]  # no rows where all of it is padding
    if h0 >= 0 and h1 <= H and PW == 0:
        return inside  # a view of x, to be read only
    x_block = xp.zeros((C, h1 - h0, W + 2 * PW, inside.shape[3]), x_rows.dtype)
    above = max(0, -h0)
    x_block[:, above : above + inside.shape[1], PW : PW + W] = inside
    return x_block


def im2col_by_rows(xp: ModuleType, x_block: Array, size: Conv2dSize, ows: int) -> Array:
    """The windows of a block, one matrix for each output row and each ows pixels of it.

    Shapes: x_block (C, h, w, n) -> cols (G, OW/ows, rows, KH*C/G*KW, ows*n), a view in which the rows overlap.
    Formula: shifted[q, row, c, kw, (ow, n)] = x_block[c, row, (q ows + ow) SW + kw DW, n];
        cols[q, oh, (kh, c, kw), (ow, n)] = shifted[q, oh SH + kh, c, kw, (ow, n)].
    Source: the derivation above.
    """
    KH, KW, SH, SW, DW, G, OW = size.KH, size.KW, size.SH, size.SW, size.DW, size.G, size.OW
    C, h, w, n = x_block.shape
    channel, row, column, image = x_block.strides  # the bytes from one to the next
    shape = (G, OW // ows, h, C // G, KW, ows, n)
    strides = (C // G * channel, ows * SW * column, row, channel, DW * column, SW * column, image)
    shifted = xp.lib.stride_tricks.as_strided(x_block, shape, strides).copy()  # the only copy
    group, q, row, channel, kernel_column, column, image = shifted.strides
    # After a row's last (c, kw) comes the next row's first: kh needs no axis of its own.
    shape = (G, OW // ows, (h - KH) // SH + 1, KH * (C // G) * KW, ows * n)
    return xp.lib.stride_tricks.as_strided(shifted, shape, (group, q, SH * row, kernel_column, image))


def im2col_by_pixels(xp: ModuleType, x_block: Array, size: Conv2dSize) -> Array:
    """The windows of a block in one matrix.

    Shapes: x_block (C, h, w, n) -> cols (G, 1, 1, C/G*KH*KW, rows*OW*n).
    Formula: cols[(c, kh, kw), (oh, ow, n)] = x_block[c, oh SH + kh DH, ow SW + kw DW, n].
    Source: im2col, transposed, with the memory order of x.
    """
    KH, KW, SH, SW, DH, DW, G, OW = size.KH, size.KW, size.SH, size.SW, size.DH, size.DW, size.G, size.OW
    C, h, w, n = x_block.shape
    channel, row, column, image = x_block.strides
    shape = (C, KH, KW, (h - (KH - 1) * DH - 1) // SH + 1, OW, n)
    strides = (channel, DH * row, DW * column, SH * row, SW * column, image)
    cols = xp.lib.stride_tricks.as_strided(x_block, shape, strides)
    return cols.reshape(G, 1, 1, C // G * KH * KW, -1)  # copies, save for a 1x1 kernel with stride 1: x is its cols


def block_matrices(rows: Array, block: Block, cols: Array) -> Array:
    """A block of an array in pieces as cols has them.

    Shapes: rows (C, H, W, N), cols (G, Q, S, K, pixels) -> (G, Q, S, C/G, pixels), a view.
    Formula: rows[g C/G + c, oh0 + s, (q ows + ow), n0 + n] at [g, q, s, c, (ow, n)].
    Source: a block has all images, or ows is 1 (conv2d_plan), so (ow, n) is one axis in memory.
    """
    G, Q, S, K, pixels = cols.shape
    part = rows[:, block.oh0 : block.oh1, :, block.n0 : block.n1]
    return part.reshape(G, -1, S, Q, pixels).transpose(0, 3, 2, 1, 4)


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
    by_rows, ows, blocks = conv2d_plan(size, x.itemsize, blocks_pay(xp))
    x_rows = xp.ascontiguousarray(x.transpose(1, 2, 3, 0))  # (C, H, W, N), no copy within a network
    w_rows = w.transpose(0, 2, 1, 3) if by_rows else w  # (O, KH, C/G, KW), the order of cols
    w_matrix = w_rows.reshape(G, 1, 1, O // G, -1)  # (G, 1, 1, O/G, K)
    y = xp.empty((O, OH, OW, N), x.dtype)
    for block in blocks:
        x_block = padded_rows(xp, x_rows, size, block)  # (C, h, w, n)
        if by_rows:
            cols = im2col_by_rows(xp, x_block, size, ows)  # (G, Q, S, K, ows*n)
        else:
            cols = im2col_by_pixels(xp, x_block, size)  # (G, Q, S, K, rows*OW*n), Q = S = 1
        y_block = block_matrices(y, block, cols)  # (G, Q, S, O/G, pixels)
        xp.matmul(w_matrix, cols, out=y_block)
        if b is not None:
            y_block += b.reshape(G, 1, 1, O // G, 1)
    return y.transpose(3, 0, 1, 2), Conv2dCache(x, w, b is not None, needs_dx, size)  # (N, O, OH, OW)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array | None, Array, Array | None]:
    """Gradients of conv2d_forward.

    Shapes: dy (N, O, OH, OW) -> dx (N, C, H, W) or None, dw (O, C/G, KH, KW), db (O,) or None.
    Formula: db = sum of dy over n, oh, ow; dx and dw as in the three functions below.
    Source: the chain rule for y = w @ cols + b.
    """
    xp = array_module(dy)
    x, w, has_bias, needs_dx, size = cache
    x_rows = xp.ascontiguousarray(x.transpose(1, 2, 3, 0))  # (C, H, W, N)
    dy_rows = xp.ascontiguousarray(dy.transpose(1, 2, 3, 0))  # (O, OH, OW, N)
    db = dy_rows.sum(axis=(1, 2, 3)) if has_bias else None
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    # With stride 1, dx is the convolution of dy with the flipped kernel. Its sizes: O, OH, OW stand where C, H, W
    # stood, and the other way round. (A padding beyond the kernel would mean cutting dy: the general way.)
    flipped = Conv2dSize(N, O, OH, OW, C, KH, KW, 1, 1, (KH - 1) * DH - PH, (KW - 1) * DW - PW, DH, DW, G, H, W)
    plan = conv2d_plan(flipped, dy.itemsize, blocks_pay(xp))
    pays = plan.by_rows or (KH * KW > 1 and not blocks_pay(xp))  # by pixels in blocks, col2im is faster
    if needs_dx and pays and SH == SW == 1 and flipped.PH >= 0 and flipped.PW >= 0:
        dx, dw = conv2d_flipped_gradients(dy_rows, x_rows, w, flipped, plan)
    else:
        dw = conv2d_weight_gradient(dy_rows, x_rows, size)
        dx = conv2d_input_gradient(dy_rows, w, size) if needs_dx else None
    return dx, dw, db


def conv2d_flipped_gradients(
    dy_rows: Array, x_rows: Array, w: Array, size: Conv2dSize, plan: Plan
) -> tuple[Array, Array]:
    """Both gradients of a convolution with stride 1, from the columns of dy alone.

    Shapes: dy_rows (O, OH, OW, N), x_rows (C, H, W, N), w (O, C/G, KH, KW) -> dx (N, C, H, W), dw (as w). ``size`` is
        that of the convolution from dy to dx.
    Formula: dx = w_flipped @ cols; dw_flipped.T = cols @ x.T: at each pixel of x, every weight met the dy that stands
        in its row of cols.
    Source: y[oh, ow] += w[kh, kw] x[oh - PH + kh, ow - PW + kw], read from x's side.
    """
    xp = array_module(dy_rows)
    N, O, OH, OW, C, KH, KW, SH, SW, PH, PW, DH, DW, G, H, W = size  # the letters of the forward convolution again
    w_flipped = w[:, :, ::-1, ::-1].reshape(G, O // G, C // G, KH, KW)
    w_flipped = w_flipped.transpose((0, 2, 3, 1, 4) if plan.by_rows else (0, 2, 1, 3, 4))  # the order of cols
    w_matrix = w_flipped.reshape(G, 1, 1, C // G, -1)  # (G, 1, 1, C/G, K), K = KH*O/G*KW
    dx = xp.empty((C, H, W, N), dy_rows.dtype)
    dw = None
    for block in plan.blocks:
        dy_block = padded_rows(xp, dy_rows, size, block)  # (O, h, w, n)
        if plan.by_rows:
            cols = im2col_by_rows(xp, dy_block, size, plan.ows)  # (G, Q, S, K, pixels)
        else:
            cols = im2col_by_pixels(xp, dy_block, size)  # (G, Q, S, K, pixels), Q = S = 1
        xp.matmul(w_matrix, cols, out=block_matrices(dx, block, cols))
        x_block = block_matrices(x_rows, block, cols).swapaxes(3, 4)  # (G, Q, S, pixels, C/G)
        if plan.by_rows and x_block.shape[3] * w.size <= G * SMALL_PRODUCT:
            x_block = xp.ascontiguousarray(x_block)  # a small product is not packed, and reads a transpose slowly
        dw_block = xp.matmul(cols, x_block)  # (G, Q, S, K, C/G)
        dw_block = dw_block.sum(axis=(1, 2)) if plan.by_rows else dw_block[:, 0, 0]  # (G, K, C/G)
        dw = dw_block if dw is None else dw + dw_block
    if plan.by_rows:
        dw = dw.reshape(G, KH, O // G, KW, C // G).transpose(0, 2, 1, 3, 4)
    dw = dw.reshape(G, O // G, KH, KW, C // G)[:, :, ::-1, ::-1].transpose(0, 1, 4, 2, 3)  # (G, O/G, C/G, KH, KW)
    return dx.transpose(3, 0, 1, 2), xp.ascontiguousarray(dw).reshape(w.shape)


def conv2d_weight_gradient(dy_rows: Array, x_rows: Array, size: Conv2dSize) -> Array:
    """The gradient of a convolution with respect to its weights, for any stride.

    Shapes: dy_rows (O, OH, OW, N), x_rows (C, H, W, N) -> dw (O, C/G, KH, KW).
    Formula: by pixels dw = dy @ cols.T; by rows dw.T = cols @ dy.T, as BLAS likes the taller matrix first.
    Source: the chain rule for y = w @ cols. The columns are made again: keeping them costs more than making them.
    """
    xp = array_module(dy_rows)
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    by_rows, ows, blocks = conv2d_plan(size, dy_rows.itemsize, blocks_pay(xp))
    dw = None
    for block in blocks:
        x_block = padded_rows(xp, x_rows, size, block)  # (C, h, w, n)
        if by_rows:
            cols = im2col_by_rows(xp, x_block, size, ows)  # (G, Q, S, K, pixels)
            dy_block = block_matrices(dy_rows, block, cols)  # (G, Q, S, O/G, pixels)
            dw_block = xp.matmul(cols, dy_block.swapaxes(3, 4)).sum(axis=(1, 2))  # (G, K, O/G)
        else:
            cols = im2col_by_pixels(xp, x_block, size)
            dy_block = block_matrices(dy_rows, block, cols)
            dw_block = xp.matmul(dy_block, cols.swapaxes(3, 4))[:, 0, 0]  # (G, O/G, K)
        dw = dw_block if dw is None else dw + dw_block
    if by_rows:
        dw = dw.reshape(G, KH, C // G, KW, O // G).transpose(0, 4, 2, 1, 3)  # (G, O/G, C/G, KH, KW)
    return xp.ascontiguousarray(dw).reshape(O, C // G, KH, KW)


def conv2d_input_gradient(dy_rows: Array, w: Array, size: Conv2dSize) -> Array:
    """The gradient of a convolution with respect to its input, for any stride: im2col by pixels, backwards.

    Shapes: dy_rows (O, OH, OW, N), w (O, C/G, KH, KW) -> dx (N, C, H, W).
    Formula: dcols = w.T @ dy; padded dx[c, oh SH + kh DH, ow SW + kw DW, n] += dcols[(c, kh, kw), (oh, ow, n)].
    Source: the chain rule for y = w @ cols, and col2im for the copies in cols.
    """
    xp = array_module(dy_rows)
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    w_matrix = w.reshape(G, O // G, -1).transpose(0, 2, 1)  # (G, C/G*KH*KW, O/G)
    if KH == KW == SH == SW == 1 and PH == PW == 0:
        dx = xp.matmul(w_matrix, dy_rows.reshape(G, O // G, -1))  # of a 1x1 kernel, dcols is dx
        return dx.reshape(C, H, W, N).transpose(3, 0, 1, 2)
    dx = xp.zeros((C, H + 2 * PH, W + 2 * PW, N), dy_rows.dtype)
    columns = PIXEL_COLUMNS if blocks_pay(xp) else WHOLE // (C * KH * KW * dy_rows.itemsize)
    rows = max(1, columns // (OW * N))  # of a block, as in conv2d_plan
    for oh0 in range(0, OH, rows):
        dy_block = dy_rows[:, oh0 : oh0 + rows]  # (O, rows, OW, N)
        dcols = xp.matmul(w_matrix, dy_block.reshape(G, O // G, -1))  # (G, C/G*KH*KW, rows*OW*N)
        dcols = dcols.reshape(C, KH, KW, -1, OW, N)
        for kh in range(KH):
            h = oh0 * SH + kh * DH
            dx_rows = dx[:, h : h + (dcols.shape[3] - 1) * SH + 1 : SH]  # (C, rows, W + 2 PW, N)
            for kw in range(KW):
                dx_rows[:, :, kw * DW : kw * DW + (OW - 1) * SW + 1 : SW] += dcols[:, kh, kw]
    return xp.ascontiguousarray(dx[:, PH : PH + H, PW : PW + W]).transpose(3, 0, 1, 2)  # (N, C, H, W)
