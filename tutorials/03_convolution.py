# %% [markdown]
# # Convolution: loops, im2col, blocks
#
# You need: NumPy, the chain rule, and lesson `tutorials/02_checking_gradients.py` if you want to know what a gradient
# check does. It takes about ten seconds on two cores.
#
# Nearly all the work of a residual network is convolution. This lesson starts from its definition, turns it into one
# matrix product, derives the backward from that, sees that a convolution is a matrix with most entries zero, and then
# asks what the trick costs in memory, and how MiniRes does without most of that cost. Every version is checked
# against the others, and timed.

# %%
import time
import tracemalloc
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, kernels
from minires.data import digits
from minires.gradcheck import check_kernel
from minires.kernels import fast
from minires.kernels.fast.convolution import (
    Block,
    Plan,
    block_matrices,
    conv2d_plan,
    im2col_by_pixels,
    im2col_by_rows,
    padded_rows,
)
from minires.kernels.shapes import conv2d_size, window_output_size

threadpool_limits(1)  # these matrix products are too small for more threads

figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## The definition
#
# Lay the kernel on the image, multiply what lies on top of each other, add it up, move on by one pixel:
#
#     y[n, o, oh, ow] = b[o] + sum over c, kh, kw of  w[o, c, kh, kw] x[n, c, oh + kh, ow + kw]
#
# `conv2d_loops` in `minires/kernels/convolution.py` is that line as seven loops. (n counts images, o output channels,
# c input channels; the other letters are explained in `minires/kernels/shapes.py`.)
#
# Many explanations add that the kernel is flipped first. It is, in mathematics and in signal processing. In deep
# learning it is not: what is called convolution there is a correlation. NumPy has both, for one axis; compare.

# %%
signal, taps = rng.standard_normal(9), rng.standard_normal(3)
ours = kernels.conv2d_loops(signal.reshape(1, 1, 1, 9), taps.reshape(1, 1, 1, 3)).ravel()
from_correlate = float(np.abs(ours - np.correlate(signal, taps, "valid")).max())
from_convolve = float(np.abs(ours - np.convolve(signal, taps, "valid")).max())
from_flipped = float(np.abs(ours - np.convolve(signal, taps[::-1], "valid")).max())
print(f"conv2d differs from np.correlate by {from_correlate:.0e}, from np.convolve by {from_convolve:.1f},")
print(f"and from np.convolve with the kernel flipped by {from_flipped:.0e}")

# %% [markdown]
# A network learns its kernels, so it makes no difference which of the two it is given: it learns the flipped numbers.
# It matters where kernels are written by hand, and in the backward, as you will see.
#
# Here are kernels written by hand, on a real digit. The first answers to a step from dark to bright from left to
# right, the second from top to bottom; the third is the first one flipped, and only turns the sign; the fourth is a
# blur.

# %%
sobel = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
by_hand = {"the digit": None, "left to right": sobel, "top to bottom": sobel.T}
by_hand |= {"the first, flipped": sobel[::-1, ::-1], "blur": np.full((3, 3), 1 / 9)}
digit = digits().train.images[2:3].astype(np.float64)  # (1, 1, 8, 8)
digit -= digit.min()  # the background is 0 again, like the padding
seen = {}
figure, rows = plt.subplots(2, 5, figsize=(9, 3.6), layout="constrained", height_ratios=[1, 2])
for (name, kernel), (above, below) in zip(by_hand.items(), rows.T, strict=True):
    above.axis("off")
    if kernel is None:
        below.imshow(digit[0, 0], cmap="gray")
    else:
        above.imshow(kernel, cmap="gray", vmin=-2, vmax=2)
        seen[name] = kernels.conv2d_loops(digit, kernel[None, None], padding=1)[0, 0]
        limit = np.abs(seen[name]).max()
        below.imshow(seen[name], cmap="gray", vmin=-limit, vmax=limit)
    below.set_title(name, fontsize=10)
    below.set(xticks=[], yticks=[])
rows[0, 0].text(0.5, 0.5, "kernel:\nwhite is\npositive", ha="center", va="center", fontsize=9)
figure.savefig(figures / "03_filters.png", dpi=90)

# %% [markdown]
# ## How large the result is
#
# Without help each axis shrinks: a window of 3 fits into 8 pixels at 6 places. *Padding* adds zeros around the image:
# 1 on each side, for a 3x3 kernel, and the size stays. A *stride* of 2 takes every second place only. Together:
#
#     OH = floor((H + 2 padding - kernel) / stride) + 1
#
# The floor is where people slip: windows that would hang over the edge are left out, so pixels at the right and at
# the bottom may be in no window at all. Some implementations refuse such strides; PyTorch and MiniRes take them.
#
# **Question before you scroll on:** an image of 8x8, a 3x3 kernel, stride 2, no padding. How many windows are there?
# Which pixels does none of them see, and what is the gradient there?

# %%
print("kernel  stride  padding   8 pixels become   224 pixels become")
for kernel, stride, padding in ((3, 1, 0), (3, 1, 1), (3, 2, 0), (3, 2, 1), (1, 2, 0), (7, 2, 3)):
    sizes = [window_output_size(size, kernel, stride, padding, 1) for size in (8, 224)]
    print(f"{kernel:6} {stride:7} {padding:8} {sizes[0]:17} {sizes[1]:19}")

x = rng.standard_normal((1, 1, 8, 8))
w = rng.standard_normal((1, 1, 3, 3))
y, cache = kernels.conv2d_forward(x, w, stride=2)
untiled_dx, _, _ = kernels.conv2d_backward(rng.standard_normal(y.shape), cache)
windows_of = kernels.col2im(np.ones((9, 9)), (1, 1, 8, 8), (3, 3), stride=2)[0, 0].astype(int)
print(f"{y.shape[2]} x {y.shape[3]} windows; each pixel is in so many of them:")
print(windows_of)
print(f"the largest gradient in the last row and column: {np.abs(untiled_dx[0, 0][windows_of == 0]).max()}")

# %% [markdown]
# Nothing that a pixel outside every window does changes y, so its gradient is exactly 0. Count the windows of the
# other pixels too: numbers of that kind come back below.
#
# ## im2col: every window becomes a row
#
# Seven loops in Python are slow. The way out is old (Chellapilla and others, 2006): copy every window into a row of a
# matrix, *cols*. Then all the sums of products are one matrix product, and somebody else has made that fast.
#
# Number the pixels of a 4x4 image from 0 to 15 and look where each goes. `im2col` in `minires/kernels/convolution.py`
# has two index arrays for it: h, the pixel row under each kernel row of each window, and w, the same of the columns.

# %%
numbered = np.arange(16.0).reshape(1, 1, 4, 4)
h = w = np.arange(2)[:, None] + np.arange(3)  # (OH, KH) and (OW, KW): [[0, 1, 2], [1, 2, 3]]
windows = numbered[:, :, h][:, :, :, :, w]  # (N, C, OH, KH, OW, KW)
cols = kernels.im2col(numbered, (3, 3))  # (N*OH*OW, C*KH*KW) = (4, 9)
by_indices = np.array_equal(windows.transpose(0, 2, 4, 1, 3, 5).reshape(4, 9), cols)
print(cols.astype(int))


def draw_numbers(axes, matrix, marked, title):
    """A matrix as a table of whole numbers; marked cells are grey."""
    axes.imshow(marked, cmap="Greys", vmin=0, vmax=2.5)
    for (row, column), number in np.ndenumerate(matrix):
        axes.text(column, row, f"{number:.0f}", ha="center", va="center", fontsize=9)
    axes.set_xticks(np.arange(matrix.shape[1] + 1) - 0.5, [])
    axes.set_yticks(np.arange(matrix.shape[0] + 1) - 0.5, [])
    axes.grid(color="black", linewidth=0.6)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10)


in_window = np.zeros((4, 4))
in_window[0:3, 1:4] = 1  # the second window
in_row = np.zeros((4, 9))
in_row[1] = 1
copies = kernels.col2im(np.ones((4, 9)), (1, 1, 4, 4), (3, 3))[0, 0]
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(9, 2.9), layout="constrained", width_ratios=[4, 9, 4], sharex=False
)
draw_numbers(left, numbered[0, 0], in_window, "x, its pixels numbered;\ngrey: the second window")
draw_numbers(middle, cols, in_row, "cols = im2col(x): a row for each window,\na column for each place in the kernel")
draw_numbers(right, copies, np.zeros((4, 4)), "how many windows\nhold each pixel")
middle.set_ylabel("window (oh, ow)")
middle.set_xlabel("place in the kernel (kh, kw)")
figure.savefig(figures / "03_im2col.png", dpi=100)

# %% [markdown]
# (Some texts put the windows into the columns of the matrix instead: everything below is then transposed. The name,
# "image to columns", comes from there.)
#
# With the weights as a matrix, one row for each output channel, the convolution is
#
#     y = cols @ W.T + b        cols (N*OH*OW, C*KH*KW),  W (O, C*KH*KW),  y (N*OH*OW, O)
#
# and a reshape puts y into its four axes. That is all of `conv2d_forward` in `minires/kernels/convolution.py` (where
# channels form groups, as in ResNeXt, each has such a product), and a good exercise: `minires exercise start im2col`,
# then `minires exercise start conv2d_forward`.

# %%
x, w, b = rng.standard_normal((2, 3, 7, 6)), rng.standard_normal((4, 3, 3, 2)), rng.standard_normal(4)
options = {"stride": (2, 1), "padding": (1, 0)}
y = kernels.conv2d_loops(x, w, b, **options)
cols = kernels.im2col(x, (3, 2), **options)
product = cols @ w.reshape(4, -1).T + b  # (N*OH*OW, O)
product = product.reshape(2, y.shape[2], y.shape[3], 4).transpose(0, 3, 1, 2)  # (N, O, OH, OW)
from_loops = float(np.abs(product - y).max())
print(f"x {x.shape} -> cols {cols.shape} -> y {product.shape}; largest difference from the loops: {from_loops:.0e}")

# %% [markdown]
# ## Backwards: the copies add up
#
# The forward is a product and a copy, so the backward is known except for the copy. For the product, as in any linear
# layer, with dy as a matrix (N*OH*OW, O):
#
#     dW = dy.T @ cols        dcols = dy @ W        db = the sum of dy's rows
#
# For the copy: a pixel that was copied into several rows takes part in several outputs, and by the chain rule its
# gradient is the *sum* of the gradients of all its copies. `col2im` puts every entry back where it came from and
# adds: `conv2d_backward`. (With the windows in columns its lines read dW = dy @ cols.T and dx = col2im(W.T @ dy).)
#
# **Question before you scroll on:** is col2im(im2col(x)) equal to x? Many explanations call col2im the inverse.

# %%
there_and_back = kernels.col2im(kernels.im2col(numbered, (3, 3)), (1, 1, 4, 4), (3, 3))
print("x:")
print(numbered[0, 0])
print("col2im(im2col(x)), divided by x (0 / 0 left out):")
print(np.divide(there_and_back[0, 0], numbered[0, 0], out=np.full((4, 4), np.nan), where=numbered[0, 0] > 0))

# %% [markdown]
# No: every pixel comes back as often as there are windows that hold it, the numbers in the right part of the picture.
# im2col is a linear map, which repeats entries; col2im is its *transpose*, not its inverse. There is a test for that
# which needs no derivation. For any linear map A and its transpose, <A x, c> = <x, A.T c>, whatever x and c are:

# %%
c = rng.standard_normal(cols.shape)
inner_cols = float((kernels.im2col(x, (3, 2), **options) * c).sum())
inner_x = float((x * kernels.col2im(c, x.shape, (3, 2), **options)).sum())
print(f"<im2col(x), c> = {inner_cols:.12f}")
print(f"<x, col2im(c)> = {inner_x:.12f}")

# %% [markdown]
# The most common mistake in a hand-written backward is `=` for `+=`: then the last window wins and the others are
# lost. Here it is, planted, and what the gradient checker makes of it.


# %%
def col2im_last_wins(cols, size):
    """col2im with the mistake: = where += belongs."""
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    windows = cols.reshape(N, OH, OW, C, KH, KW).transpose(0, 3, 4, 5, 1, 2)  # (N, C, KH, KW, OH, OW)
    x_padded = np.zeros((N, C, H + 2 * PH, W + 2 * PW))
    for kh in range(KH):
        for kw in range(KW):
            x_padded[:, :, kh : kh + (OH - 1) * SH + 1 : SH, kw : kw + (OW - 1) * SW + 1 : SW] = windows[:, :, kh, kw]
    return x_padded[:, :, PH : PH + H, PW : PW + W]


def wrong_backward(dy, cache):
    _, dw, db = kernels.conv2d_backward(dy, cache)
    O = len(cache.w)
    dcols = dy.transpose(0, 2, 3, 1).reshape(-1, O) @ cache.w.reshape(O, -1)
    return col2im_last_wins(dcols, cache.size), dw, db


check_of_textbook = check_kernel(kernels.conv2d_forward, kernels.conv2d_backward, kind="conv2d")
check_of_mistake = check_kernel(kernels.conv2d_forward, wrong_backward, kind="conv2d")
print(check_of_textbook)
print()
print(check_of_mistake)

# %% [markdown]
# Write it yourself: `minires exercise start conv2d_backward`.
#
# ## dx is a convolution too
#
# Look from a pixel's side, along one axis: x[h] was multiplied by w[0] for output h, by w[1] for the output before,
# h - 1, and by w[2] for the one before that. So its gradient walks over dy in one direction while it walks over w in
# the other: dx is dy convolved with the *flipped* kernel, the two channel axes of w exchanged, and a padding of
# KH - 1 - padding. This is the place in deep learning where a kernel is flipped.
#
# With a stride, only every second place (say) has an output. Spread dy out, zeros in between, to the size that stride
# 1 would have given; then it is the same again.


# %%
def dx_by_convolution(dy, w, x_shape, stride, padding):
    """The gradient of a convolution with respect to its input, by another convolution (square kernel)."""
    N, C, H, W = x_shape
    O, K = w.shape[0], w.shape[2]
    spread = np.zeros((N, O, H + 2 * padding - K + 1, W + 2 * padding - K + 1))  # the size at stride 1
    spread[:, :, ::stride, ::stride] = dy
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)  # (C, O, K, K)
    return kernels.conv2d_loops(spread, flipped, padding=K - 1 - padding)


flips = []
for size, stride, padding in ((5, 1, 1), (5, 2, 1), (6, 2, 0), (7, 3, 1)):  # the last two do not tile
    x, w = rng.standard_normal((2, 3, size, size)), rng.standard_normal((4, 3, 3, 3))
    y, cache = kernels.conv2d_forward(x, w, stride=stride, padding=padding)
    dy = rng.standard_normal(y.shape)
    dx, _, _ = kernels.conv2d_backward(dy, cache)
    flips.append(float(np.abs(dx_by_convolution(dy, w, x.shape, stride, padding) - dx).max()))
    print(f"{size}x{size}, stride {stride}, padding {padding}: largest difference {flips[-1]:.0e}")

# %% [markdown]
# ## A convolution is a matrix
#
# y depends on x linearly (without a bias), so there is a matrix T with y = T x, x and y as long vectors. Its columns
# are the outputs for images with a single 1. Nobody computes that way, but it shows what a convolution is: each row
# holds the same nine weights, moved (fewer of them at the border, where the others lie on padding), and zeros for all
# the rest.

# %%
w = rng.standard_normal((1, 1, 3, 3))
pixels = 5 * 5
units = np.eye(pixels).reshape(pixels, 1, 5, 5)  # a batch: every image with one pixel at 1
dense = kernels.conv2d_forward(units, w, padding=1)[0].reshape(pixels, pixels).T  # (OH*OW, H*W)
x, dy = rng.standard_normal((1, 1, 5, 5)), rng.standard_normal((1, 1, 5, 5))
y, cache = kernels.conv2d_forward(x, w, padding=1)
dx, _, _ = kernels.conv2d_backward(dy, cache)
as_matrix = float(np.abs(dense @ x.ravel() - y.ravel()).max())
transposed = float(np.abs(dense.T @ dy.ravel() - dx.ravel()).max())
undone = float(np.abs(dense.T @ y.ravel() - x.ravel()).max())
filled = float((dense != 0).mean())
print(f"T x = y: {as_matrix:.0e}; T.T dy = dx: {transposed:.0e}; T.T y and x differ by {undone:.1f}")
print(f"entries that are not 0: {filled:.0%}, and {len(np.unique(dense[dense != 0]))} different numbers among them")
inputs = 64 * 56 * 56
print(f"for 64 channels of 56x56, T would have {inputs**2:.1e} entries, made of {64 * 64 * 3 * 3} weights")

# %%
which = np.zeros((1, 1, 3, 3))
which[0, 0] = np.arange(1, 10).reshape(3, 3)
places = kernels.conv2d_forward(units, which, padding=1)[0].reshape(pixels, pixels).T
figure, axes = plt.subplots(figsize=(5.6, 5), layout="constrained")
axes.imshow(places, cmap="Greys", vmin=0, vmax=14)
for row, column in np.argwhere(places > 0):
    axes.text(column, row, f"{places[row, column]:.0f}", ha="center", va="center", fontsize=7)
axes.set_xticks([0, 5, 10, 15, 20])
axes.set_yticks([0, 5, 10, 15, 20])
axes.set(xlabel="pixel of x (row by row)", ylabel="pixel of y (row by row)")
axes.set_title(
    "A 3x3 convolution of a 5x5 image as a matrix:\nwhich of the nine weights stands where (blank: 0)", fontsize=10
)
figure.savefig(figures / "03_matrix.png", dpi=90)

# %% [markdown]
# Two things follow at once. The backward is the transposed matrix, since dx = T.T dy for every linear map; a layer
# that computes T.T as its *forward* is called a transposed convolution. Those who call it "deconvolution" promise too
# much: T.T y is not x, as the last number of the first line says; a transpose is not an inverse.
#
# And a 1x1 kernel needs none of this: a window is a pixel, so the convolution is a plain matrix product over
# channels, at every pixel the same. `im2col` only rearranges; what MiniRes runs by default does not even copy.

# %%
x, w = rng.standard_normal((4, 6, 5, 5)), rng.standard_normal((8, 6, 1, 1))
y, _ = kernels.conv2d_forward(x, w)
one_by_one = float(np.abs(np.einsum("oc,nchw->nohw", w[:, :, 0, 0], x) - y).max())
rows = np.ascontiguousarray(x.transpose(1, 2, 3, 0))  # (C, H, W, N), as the fast kernels keep arrays in memory
size = conv2d_size(x, w, None, 1, 0, 1, 1)
no_copy = np.shares_memory(im2col_by_pixels(np, rows, size), rows)
print(f"1x1: largest difference from a matrix product {one_by_one:.0e}; its columns share x's memory: {no_copy}")

# %% [markdown]
# ## What im2col costs
#
# For a 3x3 kernel with stride 1 and padding 1, cols holds nine numbers for every pixel. For one layer of ResNet-20, 16
# channels of 32x32 and a batch of 32, in float32:

# %%
N, C, SIZE, O = 32, 16, 32, 16
x = rng.standard_normal((C, SIZE, SIZE, N)).astype(np.float32).transpose(3, 0, 1, 2)  # (N, C, H, W)
w = rng.standard_normal((O, C, 3, 3)).astype(np.float32)
cols = kernels.im2col(x, (3, 3), padding=1)
print(f"x {x.nbytes / 1e6:.1f} MB, cols {cols.nbytes / 1e6:.1f} MB: {cols.nbytes / x.nbytes:.0f} times as much")

# %% [markdown]
# It is worse than that, twice. `im2col` copies the pixel rows of each window, then their columns, and then all of them
# once more to put the windows into rows: for a moment there are two such matrices and a third of one. And
# `conv2d_backward` wants cols again, so each layer keeps its own until then, however many layers there are.
#
# ## What MiniRes runs
#
# im2col itself is not at fault, only the idea of building all of it. So the kernel that you have just read is the
# textbook's, and the one that runs by default has its name in `minires/kernels/fast/convolution.py`. That
# `fast.conv2d_forward` changes four things:
#
# 1. *Layout.* In memory a batch lies as (C, H, W, N), images last; what you see as (N, C, H, W) is a transposed view.
#    The product W @ cols then comes out channels first, as the next layer wants it, and every shift of an image
#    copies long runs.
# 2. *By rows.* It copies x once for each *column* of the kernel, three times and not nine. The kernel's rows need no
#    copy: stored row by row, the three rows that an output row needs are neighbours in memory already.
# 3. *In blocks.* It builds the columns of a few output rows at a time, few enough to stay in a core's cache, and
#    multiplies them at once.
# 4. *x is kept, not cols.* The backward makes the columns that it needs itself, block by block, in the cache again.
#
# The second is the one to see. Here are the shifted copies of the numbered image, for a 3x3 kernel (one image, one
# channel), as they lie in memory:

# %%
size = conv2d_size(numbered, np.zeros((1, 1, 3, 3)), None, 1, 0, 1, 1)
rows = numbered.transpose(1, 2, 3, 0)  # (C, H, W, N)
matrices = im2col_by_rows(np, rows, size, ows=2)[0, 0]  # (rows of y, K, pixels)
lines = np.concatenate([matrices[0], matrices[1][-3:]])  # (12, 2): the second begins 3 lines further down
for line, pixels_of_line in enumerate(lines.astype(int)):
    used = ("y row 0" if line < 9 else "       ") + ("   y row 1" if line >= 3 else "")
    print(f"row {line // 3} of x, shifted left by {line % 3}: {pixels_of_line}   {used}")
shared = np.shares_memory(matrices[0], matrices[1])
print(f"the two matrices, {matrices[0].shape} each, share memory: {shared}")

# %% [markdown]
# Each output row multiplies nine neighbouring lines, and the next one starts three lines further on: two matrices
# that overlap, views of one copy. (Read the two columns of the first nine lines downwards: they are the first two
# rows of cols above.)
#
# Where it does not pay, `conv2d_plan` says so: kernels with one row, dilated ones, very short rows or very many
# weights go *by pixels*, im2col again, but in blocks and with the images last.


# %%
def forward_by_plan(x, w, padding, plan):
    """What fast.conv2d_forward does (stride 1, no bias, no groups), with a plan of our own."""
    size = conv2d_size(x, w, None, 1, padding, 1, 1)
    x_rows = np.ascontiguousarray(x.transpose(1, 2, 3, 0))  # (C, H, W, N)
    w_matrix = (w.transpose(0, 2, 1, 3) if plan.by_rows else w).reshape(1, 1, 1, size.O, -1)
    y = np.empty((size.O, size.OH, size.OW, size.N), x.dtype)
    for block in plan.blocks:
        x_block = padded_rows(np, x_rows, size, block)
        if plan.by_rows:
            cols = im2col_by_rows(np, x_block, size, plan.ows)
        else:
            cols = im2col_by_pixels(np, x_block, size)
        np.matmul(w_matrix, cols, out=block_matrices(y, block, cols))
    return y.transpose(3, 0, 1, 2)


def plans(x, w, padding):
    """By pixels all at once, by pixels in blocks of one output row, by rows all at once."""
    size = conv2d_size(x, w, None, 1, padding, 1, 1)
    whole = [Block(0, size.OH, 0, size.N)]
    single_rows = [Block(row, row + 1, 0, size.N) for row in range(size.OH)]
    return {
        "by pixels, at once": Plan(False, size.OW, whole),
        "by pixels, in blocks": Plan(False, size.OW, single_rows),
        "by rows, at once": Plan(True, size.OW, whole),
    }


layer_plan = conv2d_plan(conv2d_size(x, w, None, 1, 1, 1, 1), x.itemsize)
print(f"the fast one cuts this layer into {len(layer_plan.blocks)} blocks; by rows: {layer_plan.by_rows}; the first:")
print(layer_plan.blocks[0])

# %% [markdown]
# ## All the same numbers
#
# In float64, on a batch with odd sizes, every version must give the same.

# %%
small_x, small_w = rng.standard_normal((13, 3, 9, 11)), rng.standard_normal((5, 3, 3, 3))
reference = kernels.conv2d_loops(small_x[:2], small_w, padding=1)
results = {"textbook im2col": kernels.conv2d_forward(small_x, small_w, padding=1)[0]}
for name, plan in plans(small_x, small_w, 1).items():
    results[name] = forward_by_plan(small_x, small_w, 1, plan)
results["what runs"] = fast.conv2d_forward(small_x, small_w, padding=1)[0]
differences = {name: float(np.abs(y[:2] - reference).max()) for name, y in results.items()}
differences |= {f"{name}, the rest": float(np.abs(y - results["textbook im2col"]).max()) for name, y in results.items()}
print(f"the largest of {len(differences)} differences: {max(differences.values()):.0e}")
small_plan = conv2d_plan(conv2d_size(small_x, small_w, None, 1, 1, 1, 1), small_x.itemsize)
print(f"the fast one went by rows here: {small_plan.by_rows}")

# %% [markdown]
# And in a network? `with minires.textbook():` runs it on the kernels that you have read, and a debugger that steps
# into a convolution arrives at their lines. A ResNet-8 without it and with it:

# %%
model = minires.create_model("resnet8", in_channels=1).double()
images, labels = Tensor(digits().train.images[:16]).double(), digits().train.labels[:16]
fast_loss = F.cross_entropy(model(images), labels).item()
with minires.textbook():
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
print(f"loss of a ResNet-8: {fast_loss:.6f}, on the textbook's kernels {loss.item():.6f}")

# %% [markdown]
# ## Time and memory
#
# Now on the layer above. The loops would take minutes there, so they are timed on a small image, and the time is
# multiplied by how many more multiplications the layer has (they do the same for each). What runs goes by rows in
# blocks here. The last bar is one large matrix product alone, its columns ready before the clock starts.


# %%
def milliseconds(work, repeats=7):
    """The median of a few runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def peak_megabytes(work):
    """The most memory that NumPy held at once during the work, its result included."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


tiny_x, tiny_w = x[:1, :4, :10, :10], w[:4, :4]
layer_products = N * O * SIZE * SIZE * C * 9
tiny_products = 1 * 4 * 10 * 10 * 4 * 9
start = time.perf_counter()
kernels.conv2d_loops(tiny_x, tiny_w, padding=1)
loops_ms = 1000 * (time.perf_counter() - start) * layer_products / tiny_products
print(f"{layer_products / 1e6:.0f} million multiplications in the layer, {tiny_products} in the small one")

SHIPPED = "what runs"
work = {"textbook im2col": partial(kernels.conv2d_forward, x, w, padding=1)}
for name, plan in plans(x, w, 1).items():
    work[name] = partial(forward_by_plan, x, w, 1, plan)
work[SHIPPED] = partial(fast.conv2d_forward, x, w, padding=1)
ready = np.ascontiguousarray(cols.T)
work["the product alone"] = partial(np.matmul, w.reshape(O, -1), ready)
times = {"loops (scaled up)": loops_ms, **{name: milliseconds(run) for name, run in work.items()}}
memory = {"loops (scaled up)": N * O * SIZE * SIZE * 4 / 1e6}  # they hold nothing but y
memory |= {name: peak_megabytes(run) for name, run in work.items()}
memory["the product alone"] += ready.nbytes / 1e6
print(f"{'':22} {'time, ms':>12} {'memory, MB':>12}")
for name, duration in times.items():
    print(f"{name:22} {duration:12.1f} {memory[name]:12.1f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained", sharey=True)
names = list(times)[::-1]
hatches = ["///" if name in ("loops (scaled up)", "the product alone") else "" for name in names]
left.barh(names, [times[name] for name in names], color="lightgray", edgecolor="black", hatch=hatches)
right.barh(names, [memory[name] for name in names], color="lightgray", edgecolor="black", hatch=hatches)
for axes, values in ((left, times), (right, memory)):
    for place, name in enumerate(names):
        axes.annotate(
            f"{values[name]:,.0f}", (values[name], place), xytext=(3, 0), textcoords="offset points", va="center"
        )
left.set(xscale="log", xlabel="time (ms, logarithmic)", title="Forward, one thread")
left.set_xlim(1, 30 * max(times.values()))
right.axvline(x.nbytes / 1e6, color="black", linestyle="--", label="x itself")
right.legend(loc="center right", fontsize=9)
right.set(xlabel="peak memory beside x (MB)", title="Memory", xlim=(0, 1.15 * max(memory.values())))
figure.savefig(figures / "03_time_and_memory.png", dpi=90)

# %% [markdown]
# "im2col is a slow, memory-hungry trick" is half wrong: it *is* hungry, and it is more than 100 times faster than the
# loops all the same. (To be fair to the loops, most of that is Python, which looks at every multiplication by itself.
# In a compiled language the gap would be a small part of this.)
#
# The hunger is no law: what runs needs less than a fifth of the textbook's memory, y included, and less time. The bars
# between say where it comes from. The layout alone, "by pixels, at once", saves all copies but one; blocks save the
# memory; by rows saves two thirds of the copying that is left.
#
# "The larger the product, the faster" is not so either. On the machine that drew this picture, the many small
# products of `fast.conv2d_forward`, copies and all, took about as long as the one large product alone, and in some
# runs less. The likely reason: a small product finds its numbers in the cache, where they were put a moment ago.
# Another machine may say otherwise: look at your own bars.
#
# Now the backward: time, and what each version keeps for it until then.

# %%
y, textbook_cache = kernels.conv2d_forward(x, w, padding=1)
shipped_y, shipped_cache = fast.conv2d_forward(x, w, padding=1)
outputs_apart = float(np.abs(shipped_y - y).max() / np.abs(y).max())
print(f"forward: {len(layer_plan.blocks)} blocks against one: they differ by {outputs_apart:.0e} of the largest output")
dy = rng.standard_normal((O, SIZE, SIZE, N)).astype(np.float32).transpose(3, 0, 1, 2)
textbook_ms = milliseconds(partial(kernels.conv2d_backward, dy, textbook_cache), 3)
shipped_ms = milliseconds(partial(fast.conv2d_backward, dy, shipped_cache), 3)
keeps_x = shipped_cache.x is x
print(f"backward: textbook {textbook_ms:.1f} ms, keeps {textbook_cache.cols.nbytes / 1e6:.1f} MB of columns;")
print(f"             fast {shipped_ms:.1f} ms, keeps x itself, which is there anyway: {keeps_x}")
small_dy = rng.standard_normal(results["what runs"].shape)  # float64
textbook_grads = kernels.conv2d_backward(small_dy, kernels.conv2d_forward(small_x, small_w, padding=1)[1])
shipped_grads = fast.conv2d_backward(small_dy, fast.conv2d_forward(small_x, small_w, padding=1)[1])
backward_apart = max(
    float(np.abs(one - other).max() / np.abs(one).max())
    for one, other in zip(textbook_grads[:2], shipped_grads[:2], strict=True)
)
print(f"their gradients differ by {backward_apart:.0e} of the largest entry, on the batch with odd sizes")

# %% [markdown]
# Where a convolution with stride 1 goes by rows, the fast backward does what the section on dx said: it builds the
# columns of dy, once, and reads both gradients off them: dx as the convolution with the flipped kernel, and dw from
# the same columns and x (`conv2d_flipped_gradients` in `minires/kernels/fast/convolution.py`). Otherwise, with a
# larger stride say, it makes the columns of x again for dw, and goes the way of col2im for dx.
#
# Every claim of this lesson, once more:

# %%
assert from_correlate < 1e-12 and from_flipped < 1e-12 and from_convolve > 0.1
assert np.allclose(seen["the first, flipped"], -seen["left to right"])
assert windows_of.min() == 0 and np.all(untiled_dx[0, 0][windows_of == 0] == 0)
assert np.all(windows_of[-1] == 0) and np.all(windows_of[:, -1] == 0) and np.all(windows_of[:-1, :-1] > 0)
assert by_indices and from_loops < 1e-12 and np.array_equal(there_and_back[0, 0], copies * numbered[0, 0])
assert abs(inner_cols - inner_x) < 1e-10
assert check_of_textbook.ok and not check_of_mistake.ok and "col2im-overlap" in str(check_of_mistake)
assert max(flips) < 1e-10
assert as_matrix < 1e-12 and transposed < 1e-12 and undone > 0.1 and len(np.unique(dense[dense != 0])) == 9
assert one_by_one < 1e-12 and no_copy and shared
assert max(differences.values()) < 1e-10 and backward_apart < 1e-10 and small_plan.by_rows
assert outputs_apart < 1e-5  # float32
assert abs(loss.item() - fast_loss) < 1e-12 and model.conv1.weight.grad is not None
assert cols.nbytes == 9 * x.nbytes and keeps_x
assert memory["textbook im2col"] > 2.3 * cols.nbytes / 1e6 and memory[SHIPPED] < memory["textbook im2col"] / 5
assert times["loops (scaled up)"] > 100 * times["textbook im2col"]
